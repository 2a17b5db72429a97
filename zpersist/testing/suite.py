"""The conformance suite: what every stash promises, as tests that pytest collects from a subclass."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zpersist.errors import InvalidKeyError, UnsupportedOperationError
from zpersist.stash import Stash
from zpersist.testing.reading import HOSTILE_KEYS, ReadStashSuite, in_child, in_threads

__all__ = ["StashSuite"]

AnyStash = Stash[Any]


class StashSuite(ReadStashSuite):
    """What a stash promises; a subclass gives :meth:`make`, and pytest runs the rest.

    Attributes that a subclass may set: ``keys`` and ``values``, if the stash can't keep all of those here;
    ``atomic = False``, if it has no ``add`` and ``update``; ``encodes = True``, if it turns values into bytes.

    Examples
    --------
    >>> class TestDictionaryStash(StashSuite):
    ...     def make(self, path):
    ...         return DictionaryStash()
    """

    #: Whether the stash has ``add`` and ``update``.
    atomic: ClassVar[bool] = True
    #: Whether it turns values into bytes, so that a lambda can't be kept.
    encodes: ClassVar[bool] = False
    #: Whether it refuses keys that are no keys.
    checks_keys: ClassVar[bool] = True
    #: Whether a method that a subclass overrides is seen by the methods that are derived from it.
    can_be_subclassed: ClassVar[bool] = True

    def make(self, path: Path) -> AnyStash:
        """Return a new, empty stash.

        Parameters
        ----------
        path :
            An empty directory for this stash alone; use a folder or file **in** it.
        """
        raise NotImplementedError("a conformance suite gives make(path)")

    def reopen(self, path: Path) -> AnyStash | None:
        """Return another stash on the data that ``make(path)`` left; ``None`` if there is no such thing."""
        return None

    def raw(self, path: Path) -> Mapping[str, Any] | None:
        """Return what lies there, read in another way than by the stash; ``None`` if there is no other way."""
        return None

    def filled(self, path: Path, data: Mapping[str, Any]) -> AnyStash:
        """Return a stash that has this data."""
        stash = self.make(path)
        for key, value in data.items():
            stash.dump(key, value)
        return stash

    @property
    def _two(self) -> tuple[Any, Any]:
        return self.values[-1], self.values[-2]

    def _needs_atomic(self, stash: AnyStash) -> bool:
        if self.atomic:
            return True
        with pytest.raises(UnsupportedOperationError):
            stash.add(self.keys[0], self.values[-1])
        with pytest.raises(UnsupportedOperationError):
            stash.update(self.keys[0], lambda value: value)
        return False

    # one key

    def test_dump_over(self, tmp_path: Path) -> None:
        """A dump replaces what is there, also by None, and is seen at once."""
        key = self.keys[0]
        with self.make(tmp_path) as stash:
            for value in (*self.values, *self.values[:3]):
                stash.dump(key, value)
                self._is(stash, {key: value})
                stash[key] = value
                self._is(stash, {key: value})

    def test_delete(self, tmp_path: Path) -> None:
        """Delete says whether there was anything, and leaves nothing."""
        one, other = self.keys[:2]
        with self.filled(tmp_path, {one: self.values[0], other: self.values[-1]}) as stash:
            assert stash.delete(one) is True
            self._is(stash, {other: self.values[-1]})
            assert stash.load(one) is None
            assert stash.delete(one) is False
            with pytest.raises(KeyError):
                del stash[one]
            del stash[other]
            self._is(stash, {})
            stash.dump(one, self.values[-1])
            self._is(stash, {one: self.values[-1]})

    def test_every_key_alone(self, tmp_path: Path) -> None:
        """Each key can be dumped, deleted and dumped again without touching another one."""
        data = self._data()
        with self.filled(tmp_path, data) as stash:
            for key in tuple(data):
                assert stash.delete(key), f"{key!r} was there"
                value = data.pop(key)
                assert not stash.exists(key), f"{key!r} is gone"
                assert len(stash) == len(data), f"only {key!r} is gone"
                stash.dump(key, value)
                data[key] = value
            self._is(stash, data)

    def test_nothing_outside(self, tmp_path: Path) -> None:
        """No key makes the stash write, or delete, outside its place."""
        inner = tmp_path / "inner"
        inner.mkdir()
        hostile = (*self.keys, *(str(tmp_path / name) for name in ("victim", "victim.dat")))
        hostile = hostile if self.keys is HOSTILE_KEYS else self.keys
        (tmp_path / "victim.dat").write_bytes(b"mine")
        with self.make(inner) as stash:
            usual = set()
            for _ in range(3):
                stash.dump(self.keys[0], self.values[-1])
                usual |= {path.name for path in inner.iterdir()}
                stash.close()
                usual |= {path.name for path in inner.iterdir()}
            for key in hostile:
                stash.dump(key, self.values[-1])
                stash.delete(key)
                stash.dump(key, self.values[-1])
            assert {path.name for path in inner.iterdir()} <= usual
            assert {path.name for path in tmp_path.iterdir()} == {"inner", "victim.dat"}
            assert (tmp_path / "victim.dat").read_bytes() == b"mine"

    @pytest.mark.parametrize("bad", ["", None, "x" * 1025, "é" * 513, "\ud800"])
    def test_bad_keys(self, tmp_path: Path, bad: Any) -> None:
        """What is no key is refused by name, and nothing happens."""
        with self.filled(tmp_path, {self.keys[0]: self.values[-1]}) as stash:
            if self.checks_keys:
                with pytest.raises(InvalidKeyError):
                    stash.dump(bad, self.values[-1])
                with pytest.raises(InvalidKeyError):
                    stash.delete(bad)
            self._is(stash, {self.keys[0]: self.values[-1]})

    def test_value_that_cannot_be_kept(self, tmp_path: Path) -> None:
        """A value that can't be encoded raises, and the old one stays."""
        if not self.encodes:
            return
        one, other = self.keys[:2]
        with self.filled(tmp_path, {one: self.values[-1]}) as stash:
            for key in (one, other):
                with pytest.raises(TypeError):
                    stash.dump(key, lambda: None)
            self._is(stash, {one: self.values[-1]})

    # the atomic pair

    def test_add(self, tmp_path: Path) -> None:
        """Add keeps only the first value."""
        (one, other), key = self._two, self.keys[0]
        with self.make(tmp_path) as stash:
            if self._needs_atomic(stash):
                assert stash.add(key, one) is True
                assert stash.add(key, other) is False
                self._is(stash, {key: one})
                stash.delete(key)
                assert stash.add(key, other) is True
                self._is(stash, {key: other})

    def test_add_has_one_winner(self, tmp_path: Path) -> None:
        """Of many threads that add at once, one does."""
        with self.make(tmp_path) as stash:
            if self._needs_atomic(stash):
                for key in self.keys[:5]:
                    won = in_threads(8, lambda number, key=key: stash.add(key, self.values[number % len(self.values)]))  # type: ignore[misc]
                    assert sum(won) == 1
                    assert self.same(stash[key], self.values[won.index(True) % len(self.values)])

    def test_update(self, tmp_path: Path) -> None:
        """Update gives the function what is there, or the default, and keeps and returns its result."""
        (one, other), key = self._two, self.keys[0]
        with self.make(tmp_path) as stash:
            if self._needs_atomic(stash):
                seen: list[Any] = []

                def put(value: Any) -> Any:
                    def replace(old: Any) -> Any:
                        seen.append(old)
                        return value

                    return replace

                assert self.same(stash.update(key, put(one), default=self), one)
                assert self.same(stash.update(key, put(other), default=self), other)
                assert seen[0] is self
                assert self.same(seen[-1], one)
                self._is(stash, {key: other})

                def fail(old: Any) -> Any:
                    raise ZeroDivisionError

                with pytest.raises(ZeroDivisionError):
                    stash.update(key, fail)
                self._is(stash, {key: other})

    def _count(self, stash: AnyStash, key: str, times: int) -> None:
        for _ in range(times):
            stash.update(key, lambda old: [*old, self.values[-1]] if isinstance(old, list) else [self.values[-1]])

    def test_update_loses_nothing(self, tmp_path: Path) -> None:
        """Of many threads that update at once, every update counts."""
        with self.make(tmp_path) as stash:
            if self._needs_atomic(stash) and list in map(type, self.values):
                in_threads(4, lambda _: self._count(stash, self.keys[0], 10))
                assert len(stash[self.keys[0]]) == 40

    # many keys

    def test_dump_many(self, tmp_path: Path) -> None:
        """Many values are kept, given as a mapping or as pairs."""
        data = self._data()
        half = dict(list(data.items())[::2])
        with self.make(tmp_path) as stash:
            stash.dump_many(half)
            self._is(stash, half)
            stash.dump_many((key, value) for key, value in data.items())
            self._is(stash, data)
            stash.dump_many([])
            self._is(stash, data)

    def test_delete_many(self, tmp_path: Path) -> None:
        """Many keys are deleted, and those that were there are counted."""
        data = self._data()
        missing, *present = data
        del data[missing]
        with self.filled(tmp_path, data) as stash:
            assert stash.delete_many([missing, *present[:4]]) == 4
            self._is(stash, {key: data[key] for key in present[4:]})

    def test_clear(self, tmp_path: Path) -> None:
        """Clear leaves nothing, and can be done again."""
        with self.filled(tmp_path, self._data()) as stash:
            stash.clear()
            self._is(stash, {})
            stash.clear()
            stash.dump(self.keys[0], self.values[-1])
            self._is(stash, {self.keys[0]: self.values[-1]})

    def test_mapping_writes(self, tmp_path: Path) -> None:
        """What is done to the mapping is done to the stash."""
        (one, other), key = self._two, self.keys[0]
        with self.make(tmp_path) as stash:
            mapping = stash.mapping
            mapping.update({key: one, self.keys[1]: other})
            assert self.same(mapping.pop(key), one)
            assert self.same(mapping.setdefault(self.keys[1], one), other)
            self._is(stash, {self.keys[1]: other})
            mapping.clear()
            self._is(stash, {})

    def test_overrides_are_seen(self, tmp_path: Path) -> None:
        """Bulk methods go through what a subclass overrides."""
        if not self.can_be_subclassed:
            return
        seen: list[tuple[str, str]] = []
        keys = list(self.keys[:3])
        with self.filled(tmp_path, dict.fromkeys(keys, self.values[-1])) as stash:
            kind: Any = type(stash)

            class Watched(kind):  # type: ignore[misc]
                def load(self, name: str) -> Any:
                    seen.append(("load", name))
                    return super().load(name)

                def dump(self, name: str, inst: Any) -> None:
                    seen.append(("dump", name))
                    super().dump(name, inst)

                def delete(self, name: str) -> bool:
                    seen.append(("delete", name))
                    return bool(super().delete(name))

            stash.__class__ = Watched

            def reaches(what: str, use: Callable[[], object]) -> bool:
                del seen[:]
                use()
                return sorted(name for verb, name in seen if verb == what) == sorted(keys)

            assert reaches("dump", lambda: stash.dump_many(dict.fromkeys(keys, self.values[-1])))
            assert reaches("load", lambda: stash.load_many(keys))
            assert reaches("load", lambda: list(stash.items()))
            assert reaches("load", lambda: list(stash.values()))
            assert reaches("load", lambda: [stash.get(key) for key in keys])
            assert reaches("load", lambda: [stash[key] for key in keys])
            assert reaches("delete", lambda: stash.delete_many(keys))
            stash.dump_many(dict.fromkeys(keys, self.values[-1]))
            assert reaches("delete", stash.clear)

    # other objects, threads and processes

    def test_two_stashes_share_nothing(self, tmp_path: Path) -> None:
        """Two stashes in two places have nothing to do with each other."""
        one, other = tmp_path / "one", tmp_path / "other"
        one.mkdir()
        other.mkdir()
        with self.make(one) as first, self.make(other) as second:
            first.dump(self.keys[0], self.values[-1])
            self._is(second, {})
            second.dump(self.keys[1], self.values[-1])
            self._is(first, {self.keys[0]: self.values[-1]})

    def test_opened_again(self, tmp_path: Path) -> None:
        """What is durable is there for the next one who opens it, and for those who read it in another way."""
        data = self._data()
        with self.filled(tmp_path, data) as stash:
            durable = stash.durable
        raw = self.raw(tmp_path)
        if raw is not None:
            assert sorted(raw) == sorted(data)
            assert all(self.same(raw[key], value) for key, value in data.items())
        twin = self.reopen(tmp_path)
        assert (twin is not None) == durable, "a durable stash can be opened again, no other one can"
        if twin is not None:
            with twin:
                self._is(twin, data)
                twin.delete(self.keys[0])
                del data[self.keys[0]]
                self._is(twin, data)

    def test_threads_never_see_a_mixture(self, tmp_path: Path) -> None:
        """Readers get a value that was dumped, whole, however often it is replaced."""
        one, other = self._two
        key = self.keys[0]
        with self.filled(tmp_path, {key: one}) as stash:
            done = threading.Event()

            def run(number: int) -> None:
                if number == 0:
                    try:
                        for turn in range(40):
                            stash.dump(key, (one, other)[turn % 2])
                    finally:
                        done.set()
                while not done.is_set():
                    value = stash.load(key)
                    assert self.same(value, one) or self.same(value, other)

            in_threads(3, run)

    def test_processes(self, tmp_path: Path) -> None:
        """A child works with the stash of its parent; what is shared, the parent sees."""
        one, other, *_ = self.keys
        with self.filled(tmp_path, {one: self.values[-1]}) as stash:

            def write() -> None:
                assert self.same(stash.load(one), self.values[-1])
                stash.dump(other, self.values[-2])
                assert self.same(stash.load(other), self.values[-2])
                stash.close()

            assert in_child(write) == 0
            expected = {one: self.values[-1]}
            if stash.shared:
                expected[other] = self.values[-2]
            self._is(stash, expected)

    def test_updates_of_processes(self, tmp_path: Path) -> None:
        """Updates of several processes at once all count, if the stash is shared."""
        with self.make(tmp_path) as stash:
            if not stash.shared or not self._needs_atomic(stash) or list not in map(type, self.values):
                return
            stash.dump(self.keys[0], [])
            fork = multiprocessing.get_context("fork")
            children = [fork.Process(target=self._count, args=(stash, self.keys[0], 10)) for _ in range(3)]
            for child in children:
                child.start()
            for child in children:
                child.join()
                assert child.exitcode == 0
                child.close()
            # Another stash, for this one may have cached what it knew before.
            with self.reopen(tmp_path) or stash as twin:
                assert len(twin[self.keys[0]]) == 30

    def test_no_descriptor_is_left(self, tmp_path: Path) -> None:
        """A stash that is closed holds no descriptor."""
        folder = "/proc/self/fd"
        if not os.path.isdir(folder):
            return

        def use() -> None:
            with self.filled(tmp_path, {self.keys[0]: self.values[-1]}) as stash:
                self._is(stash, {self.keys[0]: self.values[-1]})
                stash.clear()

        use()
        before = len(os.listdir(folder))
        use()
        assert len(os.listdir(folder)) == before
