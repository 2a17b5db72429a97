"""The conformance suite: what every stash promises, as tests that pytest collects from a subclass."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zpersist.errors import InvalidKeyError, UnsupportedOperationError
from zpersist.stash import Stash

__all__ = ["HOSTILE_KEYS", "ReadStashSuite", "StashSuite", "in_threads"]

AnyStash = Stash[Any]

#: Keys that break what is not careful: paths, devices, case twins, escapes, controls, length.
HOSTILE_KEYS: tuple[str, ...] = (
    "a/b", "../escaped", "..", ".", "/abs", "a\\b", "~", "~root", "-rf", "CON", "con.txt", "NUL", "LPT1",
    "a", "A", "aa", "Aa", " ", " a", "a ", "a.", ".a", "a.dat", "%", "%41", "%2F", "%zz", "a%~b",
    "\0", "a\0b", "\n", "\r\n", "\t", "\x7f", "\"'`$;|&", "*?[]", "{name}", "ключ", "é", "e\u0301",
    "\U0001f600", "\ufeff", "\u202e", "\U0010ffff", "x" * 255, "x" * 1024, "é" * 512, "\U0001f600" * 256,
    "None", "0", "1.0", "__class__", "lock", ".lock", ".zpersist", "DROP TABLE stash", "a" * 199, "A" * 201,
)  # fmt: skip

#: Values of every kind, with those that a careless store takes for nothing.
VALUES: tuple[Any, ...] = (
    None, False, 0, "", b"", (), {}, [], 1, -1.5, "text", b"bytes", (1, "a"), {"a": [1, {"b": None}]},
    {1, 2}, frozenset("ab"), complex(1, 2), 10**40, "\U0001f600", b"\0" * 70_000, list(range(2000)),
)  # fmt: skip


def in_threads(count: int, target: Callable[[int], object]) -> list[Any]:
    """Run a function in threads that start together, and return the results; an error is raised here."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = target(number)
        except BaseException as err:  # noqa: BLE001 - raised again below, in the thread of the test
            results[number] = err

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _in_child(run: Callable[[], None]) -> int:
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join()
    code = child.exitcode
    child.close()
    return -1 if code is None else code


class ReadStashSuite:
    """What a stash promises to its readers; for one that can't be written to, give :meth:`filled`.

    Every test gets a directory of its own (``tmp_path`` of pytest), of which the stash may use a part.
    """

    #: Keys that the stash can have.
    keys: ClassVar[tuple[str, ...]] = HOSTILE_KEYS
    #: Values that it can have; at least three, and the first is ``None`` if that is one.
    values: ClassVar[tuple[Any, ...]] = VALUES

    def filled(self, path: Path, data: Mapping[str, Any]) -> AnyStash:
        """Return a stash that has this data.

        Parameters
        ----------
        path :
            An empty directory for this stash alone; use a folder or file **in** it.
        data :
            What the stash has.
        """
        raise NotImplementedError("a conformance suite gives filled(path, data), or make(path)")

    def _data(self) -> dict[str, Any]:
        return {key: self.values[i % len(self.values)] for i, key in enumerate(self.keys)}

    # Equality of values; to be overridden where == is not enough.
    def same(self, one: object, other: object) -> bool:
        """Return whether two values are the same, with the same type."""
        return type(one) is type(other) and one == other

    def _is(self, stash: AnyStash, data: Mapping[str, Any]) -> None:
        assert sorted(stash.keys()) == sorted(data), "keys() gives back exactly what was put in, each once"
        assert len(stash) == len(data)
        assert bool(stash) == bool(data)
        for key, value in data.items():
            assert stash.exists(key), f"{key!r} is listed, so it exists"
            assert self.same(stash.load(key), value), f"load({key!r}) gives what was dumped"
            assert self.same(stash[key], value), f"stash[{key!r}] gives what was dumped, also None"
            assert self.same(stash.get(key, self), value), f"get({key!r}) does not take None for nothing"

    def test_read_everything(self, tmp_path: Path) -> None:
        """Keys, load, [], get, exists, len and bool agree."""
        with self.filled(tmp_path, self._data()) as stash:
            self._is(stash, self._data())

    def test_read_nothing(self, tmp_path: Path) -> None:
        """An empty stash is empty in every way."""
        with self.filled(tmp_path, {}) as stash:
            self._is(stash, {})
            assert list(stash) == list(stash.items()) == list(stash.values()) == []

    def test_missing_key(self, tmp_path: Path) -> None:
        """What is not there is None, the default, a KeyError, and is not made by being asked for."""
        missing, *others = self.keys[:3]
        data = dict.fromkeys(others, self.values[-1])
        with self.filled(tmp_path, data) as stash:
            assert stash.load(missing) is None
            assert stash.get(missing) is None
            assert stash.get(missing, self) is self
            assert not stash.exists(missing)
            assert missing not in stash
            with pytest.raises(KeyError) as caught:
                stash[missing]
            assert caught.value.args[0] == missing
            self._is(stash, data)

    def test_iteration_is_over_items(self, tmp_path: Path) -> None:
        """Iterating gives (key, value), in the order of keys(), as items() does."""
        data = self._data()
        with self.filled(tmp_path, data) as stash:
            keys = list(stash.keys())
            assert [key for key, _ in stash] == [key for key, _ in stash.items()] == keys
            for (key, value), alone in zip(stash.items(), stash.values(), strict=True):
                assert self.same(value, data[key])
                assert self.same(alone, data[key])

    def test_key_groups(self, tmp_path: Path) -> None:
        """Key groups are lists of at most n keys that together are all keys."""
        data = self._data()
        with self.filled(tmp_path, data) as stash:
            groups = list(stash.key_groups(3))
            assert all(isinstance(group, list) and 0 < len(group) <= 3 for group in groups)
            assert sorted(key for group in groups for key in group) == sorted(data)

    def test_load_many(self, tmp_path: Path) -> None:
        """load_many gives those that are there."""
        data = self._data()
        missing, *present = data
        del data[missing]
        with self.filled(tmp_path, data) as stash:
            found = stash.load_many([missing, *present[:5]])
            assert sorted(found) == sorted(present[:5])
            assert all(self.same(found[key], data[key]) for key in found)
            assert stash.load_many([]) == {}

    def test_scan(self, tmp_path: Path) -> None:
        """Scan gives keys in code-point order, by prefix, after a key, reversed, and not too many."""
        data = self._data()
        names = sorted(data)
        with self.filled(tmp_path, data) as stash:
            assert list(stash.scan()) == names
            assert list(stash.scan(reverse=True)) == names[::-1]
            assert list(stash.scan(limit=0)) == []
            for bound in (names[0], names[len(names) // 2], names[-1]):
                prefix = bound[:1]
                fits = [name for name in names if name.startswith(prefix)]
                assert list(stash.scan(prefix)) == fits
                assert list(stash.scan(prefix, reverse=True)) == fits[::-1]
                assert list(stash.scan(after=bound)) == [name for name in names if name > bound]
                assert list(stash.scan(after=bound, reverse=True)) == [name for name in names if name < bound][::-1]
                assert list(stash.scan(prefix, after=bound, limit=2)) == [name for name in fits if name > bound][:2]
                expected = [name for name in fits if name < bound][::-1][:2]
                assert list(stash.scan(prefix, after=bound, limit=2, reverse=True)) == expected

    def test_ordered_means_ordered(self, tmp_path: Path) -> None:
        """A stash that says it is ordered lists its keys in code-point order."""
        with self.filled(tmp_path, self._data()) as stash:
            if stash.ordered:
                assert list(stash.keys()) == sorted(self._data())

    def test_capabilities(self, tmp_path: Path) -> None:
        """Capabilities are stated as bools."""
        with self.filled(tmp_path, {}) as stash:
            assert {type(stash.shared), type(stash.ordered), type(stash.durable)} == {bool}

    def test_mapping(self, tmp_path: Path) -> None:
        """The mapping is one, and iterates over keys."""
        data = self._data()
        with self.filled(tmp_path, data) as stash:
            mapping = stash.mapping
            assert isinstance(mapping, MutableMapping)
            assert sorted(mapping) == sorted(data)
            assert len(mapping) == len(data)
            assert all(self.same(mapping[key], value) for key, value in data.items())
            assert object() not in mapping

    def test_usable_after_close(self, tmp_path: Path) -> None:
        """close() gives back what is open; the next use opens it again."""
        data = self._data()
        stash = self.filled(tmp_path, data)
        stash.close()
        stash.close()
        if stash.durable:
            self._is(stash, data)
        stash.close()

    def test_pickled(self, tmp_path: Path) -> None:
        """A stash that is open can be pickled, and what comes back works."""
        data = {self.keys[0]: self.values[-1]}
        with self.filled(tmp_path, data) as stash:
            assert stash.exists(self.keys[0])
            with pickle.loads(pickle.dumps(stash)) as twin:
                self._is(twin, data)

    def test_read_after_fork(self, tmp_path: Path) -> None:
        """A child reads what is there, through a stash that its parent has open."""
        data = dict.fromkeys(self.keys[:3], self.values[-1])
        with self.filled(tmp_path, data) as stash:
            self._is(stash, data)

            def read() -> None:
                self._is(stash, data)

            assert _in_child(read) == 0
            self._is(stash, data)


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
                    for turn in range(40):
                        stash.dump(key, (one, other)[turn % 2])
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

            assert _in_child(write) == 0
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


def names_of_tests(suite: type[ReadStashSuite]) -> Iterable[str]:
    """Return the names of the tests of a suite."""
    return (name for name in dir(suite) if name.startswith("test_"))
