"""Many processes that load from a factory what a stash lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from attrs import define, field

from zpersist.errors import InvalidArgumentError
from zpersist.failure import Failure
from zpersist.parallel.multiprocess import MultiProcessStash, _check_workers
from zpersist.parallel.pool import Chunk
from zpersist.stash import MISSING, Stash
from zpersist.stores.noop import NoopStash
from zpersist.wrappers.delegate import check_stash
from zpersist.wrappers.prime import companion_of

__all__ = ["MultiProcessDefaultStash", "MultiProcessFactoryStash", "MultiProcessRobustStash"]

V = TypeVar("V")


@define(slots=False, eq=False)
class MultiProcessDefaultStash(MultiProcessStash[V]):
    """A :class:`~zpersist.MultiProcessStash` that works in this process alone, unless told otherwise.

    Parameters
    ----------
    delegate, chunk_size, start_method, progress :
        As in :class:`~zpersist.MultiProcessStash`.
    workers :
        The number of processes; default: 1, none but this one.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: as :class:`~zpersist.MultiProcessStash`.
    """

    workers: int | float = field(default=1, kw_only=True, validator=_check_workers)


def _check_preemptive(stash: object, attribute: Any, value: object) -> None:
    if value not in (True, False, "always"):
        raise InvalidArgumentError(f"enable_preemptive must be True, False or 'always', not {value!r}")


@define(slots=False, eq=False)
class MultiProcessFactoryStash(MultiProcessDefaultStash[V]):
    """Has many processes load, from a factory, the values that its delegate lacks.

    The keys are the factory's; the next run loads exactly those that are missing.

    Parameters
    ----------
    delegate :
        Where the values are kept.
    factory :
        The stash whose ``load`` makes a value and whose ``keys`` are the keys to fill.
    enable_preemptive :
        ``"always"``: look for missing keys at each access, not only at the first.
    chunk_size, workers, start_method, progress :
        As in :class:`~zpersist.MultiProcessStash`; ``workers`` is 1 by default.

    Raises
    ------
    Exception
        By the first read: what the factory raised; what was finished is kept.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: as :class:`~zpersist.MultiProcessStash`.

    Examples
    --------
    >>> stash = MultiProcessFactoryStash(DictionaryStash(), DictionaryStash({"a": 1, "b": 2}), workers=1)
    >>> len(stash), stash["b"]
    (2, 2)
    """

    factory: Stash[V] = field(validator=check_stash)
    enable_preemptive: bool | str = field(default=False, validator=_check_preemptive)

    def _calculate_has_data(self) -> bool:
        # Whether keys are missing is found out once, by the first access.
        return False

    def _missing(self) -> list[str]:
        present = set(self.delegate.keys())
        return [name for name in self.factory.keys() if name not in present]

    def _create_data(self) -> Iterable[Any]:
        return self._missing()

    def _process(self, chunk: list[Any]) -> Iterator[tuple[str, V]]:
        for name in chunk:
            try:
                value = self._load_from_factory(name)
            except Exception as err:
                err.add_note(f"while {type(self.factory).__name__} made {name!r}")
                raise
            if value is not MISSING:
                yield name, value

    def _load_from_factory(self, name: str) -> Any:
        return self.factory._fetch(name)

    def _fill(self) -> None:
        missing = list(self._create_data())
        if missing:
            for chunk, outcome in self._run(missing, NoopStash()):
                self._finished(chunk, outcome.failed)

    def _finished(self, chunk: Chunk, failed: list[str]) -> None:
        """Take note of a chunk that was finished."""

    def prime(self) -> None:
        """Load what is missing, unless that has been done."""
        if self.enable_preemptive == "always" and not self._working:
            self._reset_has_data()
        super().prime()

    def _cleared(self) -> None:
        super()._cleared()
        self.factory.clear()


@define(slots=False, eq=False)
class MultiProcessRobustStash(MultiProcessFactoryStash[V]):
    """A :class:`MultiProcessFactoryStash` in which an item that fails does not stop the others.

    Parameters
    ----------
    delegate, factory, enable_preemptive, chunk_size, workers, start_method, progress :
        As in :class:`MultiProcessFactoryStash`.
    protect_work :
        Keep a :class:`~zpersist.Failure` as the value of an item that raised; otherwise raise.
    retry_failures :
        Try failed items again in the next run.

    Notes
    -----
    *Concurrency*, *Durability*, *Trust*: as :class:`~zpersist.MultiProcessStash`.

    Examples
    --------
    >>> class Half(ReadOnlyStash):
    ...     def load(self, name):
    ...         return 1 / int(name)
    ...     def keys(self):
    ...         return ("0", "2")
    >>> stash = MultiProcessRobustStash(DictionaryStash(), Half())
    >>> stash["2"], dict(stash.iterfails())
    (0.5, {'0': ZeroDivisionError: division by zero})
    """

    protect_work: bool = field(default=True, kw_only=True)
    retry_failures: bool = field(default=True, kw_only=True)
    _retried: bool = field(init=False, repr=False, default=False)

    def _create_data(self) -> Iterable[Any]:
        missing = self._missing()
        if self._retried or not self.retry_failures:
            return missing
        self._retried = True
        known = set(missing)
        return missing + [name for name in self._failures().keys() if name not in known and self.factory.exists(name)]

    def _failures(self) -> Stash[Any]:
        return companion_of(self.delegate, "failures")

    def _finished(self, chunk: Chunk, failed: list[str]) -> None:
        failures = self._failures()
        failures.dump_many(dict.fromkeys(failed, True))
        if failures:
            failures.delete_many(name for name in chunk.items if name not in set(failed))
        self._retried = True

    def _load_from_factory(self, name: str) -> Any:
        if not self.protect_work:
            return super()._load_from_factory(name)
        try:
            return super()._load_from_factory(name)
        except Exception as err:  # noqa: BLE001 - whatever it is, it is kept as the value
            return Failure(err, thrower=f"key {name!r}")

    def invalidate(self) -> None:
        """Look for missing keys again, and load them."""
        self._reset_has_data()
        self.prime()

    def iterfails(self) -> Iterator[tuple[str, Failure]]:
        """Iterate over the keys of failed items, with their failures."""
        return ((name, value) for name, value in self.items() if isinstance(value, Failure))

    def reprocess_failures(self) -> set[str]:
        """Try all failed items again, and return their keys."""
        failed = {name for name, _ in self.iterfails()}
        self.delegate.delete_many(failed)
        self.invalidate()
        return failed
