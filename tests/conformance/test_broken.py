"""The suite can fail: stashes that are broken on purpose, each of which must be found out."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from zpersist import DictionaryStash, DirectoryStash, Stash
from zpersist.testing import StashSuite, stash_machine
from zpersist.testing.reading import names_of_tests


class DropsNone(DictionaryStash):
    def dump(self, name, inst):
        if inst is not None:
            super().dump(name, inst)


class TakesNoneForNothing(DictionaryStash):
    def exists(self, name):
        return self.load(name) is not None


class Stale(DictionaryStash):
    """Gives the first value that was read for ever."""

    def load(self, name):
        cache = self.__dict__.setdefault("seen", {})
        return cache.setdefault(name, super().load(name))


class ExistsLies(DictionaryStash):
    def exists(self, name):
        return True


class ListsDeleted(DictionaryStash):
    def keys(self):
        return list(dict.fromkeys([*self.__dict__.get("gone", ()), *super().keys()]))

    def delete(self, name):
        self.__dict__.setdefault("gone", []).append(name)
        return super().delete(name)


class ListsTwice(DictionaryStash):
    def keys(self):
        return [*super().keys(), *super().keys()]


class SharesState(Stash):
    data: dict = {}

    def load(self, name):
        return self.data.get(name)

    def dump(self, name, inst):
        self.data[name] = inst

    def delete(self, name):
        return self.data.pop(name, self) is not self

    def keys(self):
        return self.data.keys()


class Escapes(Stash):
    """Takes a key for a path."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir()

    def file(self, name):
        return self.path / f"{name}.dat"

    def load(self, name):
        try:
            return pickle.loads(self.file(name).read_bytes())
        except OSError:
            return None

    def dump(self, name, inst):
        self.file(name).write_bytes(pickle.dumps(inst))

    def delete(self, name):
        there = self.file(name).exists()
        self.file(name).unlink(missing_ok=True)
        return there

    def exists(self, name):
        return self.file(name).exists()

    def keys(self) -> Iterator[str]:
        return (path.name.removesuffix(".dat") for path in self.path.iterdir())


class DeleteSaysNothing(DictionaryStash):
    def delete(self, name):
        super().delete(name)


class RacyUpdate(DictionaryStash):
    def update(self, name, fn, default=None):
        import time

        value = fn(self.get(name, default))
        time.sleep(0.001)
        self.dump(name, value)
        return value


class WritesInPlace(DirectoryStash):
    """Cuts the old value off before the new one is written, in two steps."""

    def dump(self, name, inst):
        import time

        self.path.mkdir(exist_ok=True)
        data = pickle.dumps(inst)
        with open(self.key_to_path(name), "wb") as stream:
            for half in (data[: len(data) // 2], data[len(data) // 2 :]):
                stream.write(half)
                stream.flush()
                time.sleep(0.0005)

    def load(self, name):
        try:
            return pickle.loads(self.key_to_path(name).read_bytes())
        except FileNotFoundError:
            return None


class WritesOnce(DictionaryStash):
    """Refuses to replace a value."""

    def dump(self, name, inst):
        if name in self.data:
            raise TypeError("it is there")
        super().dump(name, inst)


class BulkSlipsPast(DictionaryStash):
    """Its bulk method goes past what a subclass overrides."""

    def __init_subclass__(cls, **kwargs):
        pass

    def dump_many(self, items):
        self.data.update(items)


BROKEN = {
    DropsNone: "test_dump_over",
    TakesNoneForNothing: "test_read_everything",
    Stale: "test_dump_over",
    ExistsLies: "test_missing_key",
    ListsDeleted: "test_delete",
    ListsTwice: "test_read_everything",
    SharesState: "test_two_stashes_share_nothing",
    Escapes: "test_nothing_outside",
    DeleteSaysNothing: "test_delete",
    RacyUpdate: "test_update_loses_nothing",
    WritesInPlace: "test_threads_never_see_a_mixture",
    WritesOnce: "test_threads_never_see_a_mixture",
    BulkSlipsPast: "test_overrides_are_seen",
}


def make(kind, path):
    return kind(path / "data") if kind in (Escapes, WritesInPlace) else kind()


def failures(kind, tmp_path):
    """Run the suite on a kind of stash, and return the names of the tests that failed."""

    class Suite(StashSuite):
        atomic = kind in (RacyUpdate, BulkSlipsPast)

        def make(self, path):
            return make(kind, path)

    failed = []
    for number, name in enumerate(names_of_tests(Suite)):
        path = tmp_path / str(number)
        path.mkdir()
        SharesState.data.clear()
        if name == "test_bad_keys":
            continue
        try:
            getattr(Suite(), name)(path)
        except (Exception, pytest.fail.Exception):
            failed.append(name)
    return failed


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_stash_is_found_out(kind, tmp_path):
    assert BROKEN[kind] in failures(kind, tmp_path)


def test_a_stash_that_is_not_broken_is_not(tmp_path):
    class Suite(StashSuite):
        def make(self, path):
            return DictionaryStash()

    for number, name in enumerate(name for name in names_of_tests(Suite) if name != "test_bad_keys"):
        path = tmp_path / str(number)
        path.mkdir()
        getattr(Suite(), name)(path)


@pytest.mark.parametrize(
    "kind", [DropsNone, Stale, ExistsLies, ListsDeleted, ListsTwice], ids=lambda kind: kind.__name__
)
def test_the_machine_finds_it_out_too(kind):
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis.stateful import run_state_machine_as_test

    how = settings(
        max_examples=100, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    with pytest.raises((AssertionError, ExceptionGroup, TypeError)):
        run_state_machine_as_test(stash_machine(kind, keys=["a", "b"], values=[None, 1, 2], atomic=False), settings=how)
