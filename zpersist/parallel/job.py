"""What a worker is told to do, and how it does it: alike in a process of ours, on a cluster, and in this process."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import AbstractContextManager, suppress
from time import monotonic as now
from typing import Any, Literal, NamedTuple, Protocol, get_args

from attrs import define, field

from zpersist.codecs import PickleCodec
from zpersist.errors import DecodeError, EncodeError, InvalidArgumentError, InvalidKeyError
from zpersist.failure import Failure
from zpersist.stash import Stash

__all__ = ["IDLE", "READING", "WRITING", "Job", "NoKeyError", "OnError", "Report", "Work", "check_on_error"]

#: What to do about an item that raises: stop and raise, leave it out, or keep a Failure as its value.
OnError = Literal["raise", "skip", "store"]

#: Where that costs less, so many pairs are written at once, or what there is so many seconds after the last time.
_BATCH, _PAUSE = 1000, 0.005

#: If fewer seconds than these have passed between two looks at the clock, so many items pass until the next.
_INSTANT, _UNWATCHED = 1e-4, 8

#: What a worker marks while no item is under way: it waits, reads the items it was sent, or keeps or sends values.
IDLE, READING, WRITING = -1, -2, -3


def check_on_error(stash: object, attribute: object, value: object) -> None:
    """Raise unless ``value`` is one of :data:`OnError` (a validator for attrs)."""
    if value not in get_args(OnError):
        raise InvalidArgumentError(f"on_error must be 'raise', 'skip' or 'store', not {value!r}")


class Work(AbstractContextManager[None], Protocol):
    """Turns items into pairs; entered while it does."""

    #: What it is called in errors.
    label: str
    #: Whether each item gives its own pair, so that one may stop after any item.
    divisible: bool

    def begin(self, *, away: bool) -> None:
        """Begin in a worker; ``away``: not where the parent is."""

    def process(self, items: Iterable[Any]) -> Iterable[tuple[str, Any]] | None:
        """Yield keys and values; what is divisible gets an iterator, and takes an item when it needs it."""

    def key_of(self, item: Any) -> str:
        """Return the key of an item, as far as it is known."""

    def name_of(self, item: Any) -> str:
        """Return the key of an item, or what else names it."""


class Report(NamedTuple):
    """What is to be said about items that a worker was given."""

    #: How many are done; the others are to be given out again.
    done: int
    seconds: float
    #: By the place among the items: what raised; -1: one of them, it isn't known which.
    failures: dict[int, Failure]
    #: What raised and is no fault of an item: nothing more can be done.
    fatal: Failure | None
    #: What the parent has to keep; of what is kept already just the keys, if they are wanted.
    pairs: list[tuple[str, Any]]
    #: The place among the items that each pair comes from.
    places: list[int] = []  # noqa: RUF012 - never changed
    records: list[logging.LogRecord] = []  # noqa: RUF012
    #: The places of the items that were done already.
    there: list[int] = []  # noqa: RUF012
    #: The first key that was kept.
    first: str = ""
    #: The pairs as bytes, on their way to the parent.
    sealed: bytes = b""


@define
class Job:
    """All that a worker needs to know; travels once to each.

    Parameters
    ----------
    work :
        Turns items into pairs.
    delegate :
        Where a worker keeps the pairs; ``None``: it sends them to the parent.
    on_error :
        What to do about an item that raises.
    failures :
        Where a worker keeps what failed; ``None``: it tells the parent alone.
    probe :
        A stash at the delegate's place and a key: a worker writes there first, so that the parent sees that it arrives.
    wants_keys :
        Whether the parent wants the keys of what was kept.
    timed :
        Whether somebody watches how long each item takes.
    budget :
        The seconds after which a worker reports, if the work is divisible.
    """

    work: Work
    delegate: Stash[Any] | None
    on_error: OnError
    failures: Stash[Any] | None = None
    probe: tuple[Stash[Any], str] | None = None
    wants_keys: bool = False
    timed: bool = False
    budget: float = 0.05
    #: Where a worker says which item is under way, and since when.
    mark: MutableSequence[float] | memoryview[float] = field(factory=lambda: [IDLE, 0.0, 0.0], repr=False)

    def begin(self) -> None:
        """Begin in a worker that is not where the parent is."""
        self.work.begin(away=True)
        if self.probe is not None:
            stash, key = self.probe
            stash.dump(key, key)

    def do(self, items: list[Any], unsure: bool) -> Report:
        """Do as many of the items as the budget allows, at least one.

        Parameters
        ----------
        items :
            The items.
        unsure :
            Whether some may have been done by others, and are to be left out then.
        """
        with self.work:
            return _Doing(self, items, unsure).report()

    def do_sent(self, data: bytes | memoryview, unsure: bool) -> Report:
        """Do items that came as bytes, and return a report that can travel."""
        try:
            items = pickle.loads(data)
        except Exception as err:  # noqa: BLE001 - a class of the user: what it raises is the failure of an item
            return self.unreadable(err)
        self.mark[1] = now()
        self.mark[0] = 0
        report = self.do(items, unsure)
        self.mark[1] = now()
        self.mark[0] = WRITING
        return self.seal(report)

    def unreadable(self, err: Exception) -> Report:
        """Return the report of items that could not be read."""
        error = DecodeError(f"an item can't be made again in a worker ({type(err).__name__}: {err}); give its name")
        error.__cause__ = err
        return Report(0, 0.0, {-1: Failure(error)}, None, [])

    def seal(self, report: Report) -> Report:
        """Return a report that can travel: a value that can't be pickled is the failure of its item."""
        if self.delegate is not None:
            return report
        codec = PickleCodec()
        with suppress(EncodeError, MemoryError):
            return report._replace(pairs=[], sealed=codec.dumps(report.pairs))
        failures, good, places = dict(report.failures), [], []
        for place, (key, value) in zip(report.places, report.pairs, strict=True):
            try:
                codec.dumps((key, value))
            except (EncodeError, MemoryError) as err:
                err.add_note(f"while {self.work.label} sent {key!r}")
                failure = Failure(err, thrower=f"key {key!r}")
                if self.on_error == "raise":
                    return report._replace(done=0, fatal=failure, pairs=[], places=[])
                failures[place] = failure
                value = failure
                if self.on_error == "skip":
                    continue
            good.append((key, value))
            places.append(place)
        return report._replace(failures=failures, pairs=[], places=places, sealed=codec.dumps(good))


class _Doing:
    """One list of items, on its way from items to kept pairs."""

    def __init__(self, job: Job, items: list[Any], unsure: bool) -> None:
        self.job = job
        self.items = items
        self.unsure = unsure and job.delegate is not None
        #: The item under way; of many that are processed together, none.
        self.place = -1
        self.began = now()
        self.end = self.began + job.budget
        #: When what was made is to be kept.
        self.keep_at = self.began + _PAUSE
        self.is_due = False
        #: How many pairs are kept at once.
        self.most = _BATCH if job.delegate is None or job.delegate._batches else 1
        self.batch: list[tuple[str, Any]] = []
        self.batch_places: list[int] = []
        self.failures: dict[int, Failure] = {}
        self.pairs: list[tuple[str, Any]] = []
        self.pair_places: list[int] = []
        self.there: list[int] = []
        self.first = ""

    def report(self) -> Report:
        fatal = None
        try:
            done = self._divisible() if self.job.work.divisible else self._whole()
            self._keep()
        except _Fatal as err:
            done, fatal = 0, Failure(err.__cause__)
        except BaseException:
            # An interrupt: what was made is kept.
            self._keep()
            raise
        return Report(
            done,
            now() - self.began,
            self.failures,
            fatal,
            self.pairs,
            self.pair_places,
            there=self.there,
            first=self.first,
        )

    def _divisible(self) -> int:
        job, count = self.job, len(self.items)
        while True:
            try:
                self._collect(job.work.process(self._feed()))
            except _Fatal:
                raise
            except Exception as err:
                if self.place < 0 or isinstance(err, NoKeyError):
                    raise _Fatal from err
                self._failed(self.place, err)
                if job.on_error == "raise":
                    return self.place
                if now() < self.end:
                    continue
            return min(self.place + 1, count)

    def _feed(self) -> Iterator[Any]:
        items, mark, unsure, end = self.items, self.job.mark, self.unsure, self.end
        most, look, before = 1 if self.job.timed else _UNWATCHED, self.place + 1, 0.0
        for place in range(look, len(items)):
            if place >= look:
                time = now()
                if time >= self.keep_at:
                    self.is_due = True
                    if time >= end and place:
                        return
                mark[1] = time
                look = place + (most if time - before < _INSTANT else 1)
                before = time
            mark[0] = self.place = place
            if unsure and self._is_there(items[place]):
                self.there.append(place)
            else:
                yield items[place]

    def _is_there(self, item: Any) -> bool:
        delegate = self.job.delegate
        try:
            return delegate is not None and delegate.exists(self.job.work.key_of(item))
        except Exception as err:
            raise _Fatal from err

    def _whole(self) -> int:
        single = len(self.items) == 1
        self.place = 0 if single else -1
        self.job.mark[1] = now()
        try:
            self._collect(self._marked(self.job.work.process(self.items)))
        except _Fatal:
            raise
        except Exception as err:  # noqa: BLE001 - whatever it is, on_error says what becomes of it
            self._failed(0 if single else -1, err)
            return int(single and self.job.on_error != "raise")
        return len(self.items)

    def _marked(self, pairs: Iterable[tuple[str, Any]] | None) -> Iterable[tuple[str, Any]] | None:
        if not isinstance(pairs, Iterable):
            return pairs
        return self._marking(pairs)

    def _marking(self, pairs: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        mark, last = self.job.mark, len(self.items) - 1
        for number, pair in enumerate(pairs, 1):
            time = now()
            self.is_due = time >= self.keep_at
            mark[1] = time
            mark[0] = min(number, last)
            yield pair
            del pair

    def _failed(self, place: int, err: BaseException) -> None:
        key = self.job.work.name_of(self.items[max(place, 0)])
        many = "" if place >= 0 else f" or one of {len(self.items) - 1} others"
        self.failures[place] = failure = Failure(err, thrower=f"key {key!r}{many}")
        # A frozen one takes no note.
        with suppress(AttributeError, TypeError):
            err.add_note(f"while {self.job.work.label} made {key!r}{many}")
        if place < 0:
            return
        delegate, on_error = self.job.delegate, self.job.on_error
        if on_error == "raise":
            return
        try:
            if self.job.failures is not None:
                # First: a run that is cut short knows what has failed.
                self.job.failures.dump(key, failure)
            if on_error == "store" and delegate is not None:
                self._keep()
                self._store(delegate, key, failure)
                if self.job.wants_keys:
                    self.pairs.append((key, None))
        except _Fatal:
            raise
        except Exception as trouble:
            raise _Fatal from trouble
        if on_error == "store" and delegate is None:
            self._collect([(key, failure)])

    def _collect(self, pairs: Iterable[tuple[str, Any]] | None) -> None:
        label = self.job.work.label
        if not isinstance(pairs, Iterable):
            raise InvalidArgumentError(f"{label}._process must yield (key, value) pairs, it returned {pairs!r}")
        batch, places, most = self.batch, self.batch_places, self.most
        for pair in pairs:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InvalidArgumentError(f"{label}._process must yield (key, value) pairs, not {pair!r}")
            batch.append(pair)
            places.append(self.place)
            # Else it would be held while the next one is made.
            del pair
            if self.is_due or len(batch) >= most:
                self._keep()

    def _keep(self) -> None:
        batch, places, delegate = self.batch, self.batch_places, self.job.delegate
        if delegate is None:
            self.pairs += batch
            self.pair_places += places
        elif batch:
            self._dump(delegate, batch, places)
        batch.clear()
        places.clear()
        self.is_due = False
        self.keep_at = now() + _PAUSE

    def _dump(self, delegate: Stash[Any], batch: list[tuple[str, Any]], places: list[int]) -> None:
        mark, at = self.job.mark, self.job.mark[0]
        together = len(batch) > 1
        if together:
            # What goes wrong now may be the fault of any of them.
            mark[0] = WRITING
        try:
            try:
                delegate.dump_many(batch)
                self.first = self.first or batch[0][0]
            except (EncodeError, InvalidKeyError, MemoryError):
                self._keep_one_by_one(delegate, batch, places)
        except Exception as err:
            raise _Fatal from err
        if together:
            mark[0] = at
        if self.job.wants_keys:
            self.pairs.extend((key, None) for key, _ in batch)

    def _keep_one_by_one(self, delegate: Stash[Any], batch: list[tuple[str, Any]], places: list[int]) -> None:
        for place, (key, value) in zip(places, batch, strict=True):
            try:
                delegate.dump(key, value)
                self.first = self.first or key
            except (EncodeError, InvalidKeyError, MemoryError) as err:
                err.add_note(f"while {self._told(place)} was kept under {key!r}")
                if self.job.on_error == "raise":
                    raise
                self.failures[place] = failure = Failure(err, thrower=f"key {key!r}")
                if self.job.on_error == "store" and place >= 0 and not isinstance(err, InvalidKeyError):
                    self._store(delegate, key, failure)

    def _told(self, place: int) -> str:
        if place >= 0:
            return f"what {self.job.work.label} made of {self.job.work.name_of(self.items[place])!r}"
        return f"what {self.job.work.label} made"

    def _store(self, delegate: Stash[Any], key: str, failure: Failure) -> None:
        # Another item may have given a value of the same key, which is worth more.
        if isinstance(delegate.get(key, failure), Failure):
            delegate.dump(key, failure)


class NoKeyError(InvalidArgumentError):
    """No item of this kind has a key of its own: the call lacks something, not the item."""


class _Fatal(Exception):  # noqa: N818 - a signal, not an error
    """Not the fault of an item; the cause says what it is."""
