"""What every stash promises to its readers, as tests that pytest collects from a subclass."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zpersist.stash import Stash

__all__ = ["HOSTILE_KEYS", "ReadStashSuite", "in_child", "in_threads", "names_of_tests"]

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


def in_child(run: Callable[[], None]) -> int:
    """Run a function in a forked child, and return its exit code."""
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

            assert in_child(read) == 0
            self._is(stash, data)


def names_of_tests(suite: type[ReadStashSuite]) -> Iterable[str]:
    """Return the names of the tests of a suite."""
    return (name for name in dir(suite) if name.startswith("test_"))
