"""A stash that many processes fill."""

from __future__ import annotations

import logging
import math
import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Executor
from contextlib import closing, contextmanager
from threading import get_ident
from typing import Any, ClassVar, Literal, TypeVar, get_args
from uuid import uuid4

from attrs import define, field

from zpersist.errors import InvalidArgumentError, UnsupportedOperationError
from zpersist.failure import Failure
from zpersist.files.locks import Claims
from zpersist.forklock import ForkLock
from zpersist.parallel.engine import Engine, ExecutorEngine, SerialEngine
from zpersist.parallel.guard import available_cores, in_worker, refuse_in_import
from zpersist.parallel.intake import InputOrder, Intake, Known, stretches
from zpersist.parallel.job import Job, OnError, Report, check_on_error
from zpersist.parallel.known import Journal
from zpersist.parallel.notes import FailureNotes
from zpersist.parallel.options import (
    check_callable,
    check_count,
    check_executor,
    check_memory,
    check_timeout,
    check_workers,
)
from zpersist.parallel.pool import PoolEngine, check_start_method
from zpersist.parallel.run import Run, Summary
from zpersist.parallel.schedule import Schedule, Task
from zpersist.parallel.stashwork import StashWork
from zpersist.parallel.stream import Stream
from zpersist.progress import Progress
from zpersist.stash import MISSING, Stash, native
from zpersist.wrappers.factory import check_keeps
from zpersist.wrappers.prime import Completion, PrimablePreemptiveStash

__all__ = ["MultiProcessStash"]

V = TypeVar("V")

logger = logging.getLogger(__name__)

#: The threads that fill something, once for each filling.
_filling_threads: list[int] = []
_guard = ForkLock()

Order = Literal["stored", "completed", "input"]


@contextmanager
def _interruptible(what: str) -> Iterator[None]:
    """Have an interrupt say how to go on."""
    note = f"{what} that were finished are kept: the next run goes on from there"
    try:
        yield
    except KeyboardInterrupt as err:
        if note not in getattr(err, "__notes__", ()):
            err.add_note(note)
        raise


@define(slots=False, eq=False)
class MultiProcessStash(PrimablePreemptiveStash[V]):
    """Fills its delegate by many processes when it is first read.

    A subclass gives two methods: ``_create_data()``, run in the parent, returns an iterable of items;
    ``_process(chunk)``, run in the workers, takes a list of them and yields ``(key, value)``.  The stash itself
    travels to the workers, which write straight into a shared delegate.

    A run that was cut short (an error, a kill, Ctrl-C) is never taken for complete: the next one does the items that
    were not finished.

    Parameters
    ----------
    delegate :
        Where the values are kept.  Of one that isn't ``shared``, results travel through the parent.
    chunk_size :
        The most items a chunk has; 0: as many chunks as workers, or, of an input whose length is not known, as many
        items as take about 50 ms.
    workers :
        The number of processes: 0 all cores, negative all but so many, a float in (0, 1] that share of them, 1 none
        but this one (unless a timeout or limit asks for a process).
    start_method :
        ``"fork"``, ``"spawn"`` or ``"forkserver"``; ``None``: fork if this process has no threads, else spawn.
    executor :
        Where to work in place of processes of this machine: any :class:`concurrent.futures.Executor`, or a function
        that makes one, which is called again when it breaks.
    progress :
        Show a progress bar.
    on_error :
        What becomes of an item that raises: ``"raise"`` it, and begin no other; ``"skip"`` it, and go on; ``"store"`` a
        :class:`~zpersist.Failure` as its value, and go on.
    retries :
        How many times an item is tried that kills its worker.
    timeout :
        The most seconds for an item (of ``_process``: from one pair to the next); its worker is killed then.
    max_tasks_per_worker :
        Replace a worker by a new one after so many items.
    max_memory :
        The most bytes by which the data of a worker may grow; an item that wants more gets a ``MemoryError``.
    initializer :
        A function that each worker runs before anything else.
    threads :
        How many threads BLAS and OpenMP use in a worker; 0: its share of the cores.  What the environment says
        (``OMP_NUM_THREADS``) comes first.

    Raises
    ------
    WorkerDiedError
        By the first read: an item killed its worker ``retries`` times; all others are finished.
    Exception
        By the first read: what ``_process`` raised; what was finished is kept.

    Notes
    -----
    *Concurrency*: several parents that share the delegate share the work, on Linux; elsewhere, or if the delegate
    can't tell, one does it and the others wait.
    *Durability*: that of the delegate.
    *Trust*: that of the delegate; workers run this process's own code.

    Examples
    --------
    >>> class Lengths(MultiProcessStash):
    ...     def _create_data(self):
    ...         return ["one", "three"]
    ...     def _process(self, chunk):
    ...         for word in chunk:
    ...             yield word, len(word)
    >>> stash = Lengths(DirectoryStash("lengths"), workers=1)
    >>> sorted(stash)
    [('one', 3), ('three', 5)]
    """

    #: Whether ``_process`` gives one pair for each item, in order, and so may be given an iterator.
    _divisible: ClassVar[bool] = False

    delegate: Stash[V] = field(validator=check_keeps)
    chunk_size: int = field(default=0, kw_only=True, validator=check_count(0))
    workers: int | float = field(default=0, kw_only=True, validator=check_workers)
    start_method: str | None = field(default=None, kw_only=True, converter=check_start_method)
    executor: Executor | Callable[[], Executor] | None = field(default=None, kw_only=True, validator=check_executor)
    progress: bool = field(default=False, kw_only=True)
    on_error: OnError = field(default="raise", kw_only=True, validator=check_on_error)
    retries: int = field(default=3, kw_only=True, validator=check_count(1))
    timeout: float | None = field(default=None, kw_only=True, validator=check_timeout)
    max_tasks_per_worker: int | None = field(default=None, kw_only=True, validator=check_count(1, optional=True))
    max_memory: int | None = field(default=None, kw_only=True, validator=check_memory)
    initializer: Callable[[], object] | None = field(default=None, kw_only=True, validator=check_callable)
    threads: int = field(default=0, kw_only=True, validator=check_count(0))
    #: What the last run did.
    summary: Summary = field(init=False, repr=False, factory=Summary)
    # The thread that processes items just now; True: this is a worker's own copy, that none of its threads fills.
    _worker: int | bool | None = field(init=False, repr=False, default=None)
    # The thread that fills it, and may read it meanwhile.
    _filler: int | None = field(init=False, repr=False, default=None)
    # What this thread iterates over while it is filled.
    _stream: Stream | None = field(init=False, repr=False, default=None)
    _fill_lock: tuple[int, threading.Lock] | None = field(init=False, repr=False, default=None)

    @abstractmethod
    def _create_data(self) -> Iterable[Any]:
        """Return the items to process; called in the parent."""

    @abstractmethod
    def _process(self, chunk: list[Any]) -> Iterable[tuple[str, V]]:
        """Yield a key and a value for what is in a chunk; called in a worker."""

    @property
    def _label(self) -> str:
        return type(self).__name__

    def _key_of(self, item: Any) -> str:
        return item if isinstance(item, str) else repr(item)

    def _calculate_has_data(self) -> bool:
        return Completion(self.delegate).finished

    @property
    def _working(self) -> bool:
        return self._worker is True or get_ident() in (self._worker, self._filler)

    def prime(self) -> None:
        """Fill the delegate, unless that has been done."""
        if self._working:
            if self._stream is not None and self._filler == get_ident():
                # An iteration of this thread is open: who reads something else wants all of it.
                self._stream.finish()
            return
        super().prime()
        if not self.has_data:
            with _interruptible("items" if self._divisible else "chunks"):
                for _ in self._filling():
                    pass

    def __getstate__(self) -> dict[str, object]:
        # Its workers need no executor.
        return self.__dict__ | {"executor": None, "_worker": None, "_filler": None, "_stream": None, "_fill_lock": None}

    # filling

    def _filling(
        self, *, wants_keys: bool = False, order: InputOrder | None = None
    ) -> Generator[list[str], None, None]:
        refuse_in_import()
        with self._filling_lock():
            claims = self._claims_of_delegate()
            with closing(claims) if claims is not None else self.delegate._flight("all", "prime"):
                self._reset_has_data()
                if self.has_data:
                    return
                self._filler = thread = get_ident()
                _filling_threads.append(thread)
                try:
                    with _interruptible("items" if self._divisible else "chunks"):
                        yield from self._fill(claims, wants_keys, order)
                finally:
                    self._filler = None
                    _filling_threads.remove(thread)
                self._set_has_data()

    def _filling_lock(self) -> threading.Lock:
        # One that any thread may give back, for an iteration may be ended by another one; a child has its own.
        pid = os.getpid()
        if self._fill_lock is None or self._fill_lock[0] != pid:
            with _guard:
                if self._fill_lock is None or self._fill_lock[0] != pid:
                    self._fill_lock = pid, threading.Lock()
        return self._fill_lock[1]

    def _claims_of_delegate(self) -> Claims | None:
        # Whoever works for another filling would wait for what that one claims.
        if not self.delegate.shared or in_worker() or get_ident() in _filling_threads:
            return None
        return self.delegate._claims()

    def _fill(self, claims: Claims | None, wants_keys: bool, order: InputOrder | None) -> Iterator[list[str]]:
        """Fill the delegate; yield the keys of what was done, if they are wanted."""
        completion = Completion(self.delegate)
        with self.delegate._flight("all", "begin"):
            if claims is None or claims.alone() or not completion.begun:
                completion.begin()
        journal = Journal(completion.journal)
        for task, report in self._run(self._create_data(), journal, claims, wants_keys, order):
            good = [place not in report.failures for place in range(report.done)]
            for start, end, is_good in stretches(good):
                if is_good:
                    journal.note(task.places[start], task.items[start:end])
            yield [key for key, _ in report.pairs]
        if not self.summary.failures:
            completion.finish()

    def _run(
        self,
        data: Iterable[Any],
        known: Known,
        claims: Claims | None,
        wants_keys: bool = False,
        order: InputOrder | None = None,
    ) -> Iterator[tuple[Task, Report]]:
        """Do what is not done, and yield it; errors come when all else that was begun is finished."""
        self.summary = summary = Summary()
        total = len(data) if isinstance(data, Sized) else None
        workers = self._worker_count()
        size = self.chunk_size
        if not size and not self._divisible and total is not None:
            size = max(1, math.ceil(total / workers))

        def passed(place: int, items: list[Any]) -> None:
            summary.there += len(items)
            if order is not None:
                order.add(range(place, place + len(items)), map(self._key_of, items))

        intake = Intake(data, known, claims, passed=passed, limit=order.limit if order is not None else None)
        schedule = Schedule(intake, workers=workers, total=total, size=size)
        shared = self.delegate.shared
        notes = self._notes()
        job = Job(
            StashWork(self),
            self.delegate if shared else None,
            self.on_error,
            failures=notes.stash if shared and notes.stash.shared else None,
            # Where workers may be far away, they write something before they begin.
            probe=(self._beside(), f"probe-{uuid4().hex}") if shared and self.executor is not None else None,
            wants_keys=wants_keys,
            timed=self.timeout is not None,
        )
        failed_before, name_of = notes.names(), job.work.name_of
        with Progress(self.progress, self._label, total) as progress:
            engine = self._engine(job, workers)
            run = Run(
                job, engine, schedule, intake, self.delegate, retries=self.retries, progress=progress, summary=summary
            )
            try:
                for task, report in run:
                    failed = notes.settle(task, report, name_of, notes.names() if intake.in_company else failed_before)
                    summary.failures.update(failed)
                    summary.done -= len(failed)
                    yield task, report
            finally:
                notes.note(run.raised)
        logger.info("%s: %s", self._label, summary)

    def _notes(self) -> FailureNotes:
        return FailureNotes(self.delegate, keyed=self._divisible)

    def _beside(self) -> Stash[Any]:
        try:
            return self.delegate._companion("journal")
        except UnsupportedOperationError:
            return self.delegate

    def _engine(self, job: Job, workers: int) -> Engine:
        level = logging.getLogger().getEffectiveLevel()
        threads = self.threads or max(1, available_cores() // workers)
        limits: dict[str, Any] = {
            "timeout": self.timeout,
            "max_tasks_per_worker": self.max_tasks_per_worker,
            "max_memory": self.max_memory,
        }
        limited = [name for name, limit in limits.items() if limit is not None]
        if self.executor is not None:
            if limited:
                raise InvalidArgumentError(f"{limited[0]} is for processes of this machine: let the executor see to it")
            if self.start_method is not None:
                raise InvalidArgumentError("start_method is for processes of this machine: an executor has its own")
            return ExecutorEngine(job, self.executor, workers=workers, level=level, threads=threads)
        if in_worker():
            if workers > 1:
                logger.info("%s works in one process, for it runs in a worker already", self._label)
            return SerialEngine(job)
        if self.workers == 1 and type(self.workers) is int and not limited:
            return SerialEngine(job)
        return PoolEngine(job, workers=workers, start_method=self.start_method, threads=threads, level=level, **limits)

    def _worker_count(self) -> int:
        workers, cores = self.workers, available_cores()
        if isinstance(workers, float):
            return math.ceil(workers * cores)
        return workers if workers > 0 else max(1, cores + workers)

    # what failed

    def failures(self) -> dict[str, Failure]:
        """Return what failed in the last runs and has not been made since, by key; nothing is tried for that."""
        return self._notes().failures()

    def retry_failures(self) -> set[str]:
        """Try again what failed, and make what else is missing.

        Returns
        -------
        set
            The keys that were tried, whether they failed again or not.
        """
        notes = self._notes()
        failed = notes.names()
        notes.forget(failed)
        self._reset_has_data()
        self.prime()
        return failed

    # reading while it is filled

    @native
    def items(self, *, order: Order = "stored", window: int = 1000) -> Iterable[tuple[str, V]]:
        """Iterate over keys with their values.

        Parameters
        ----------
        order :
            ``"stored"``: fill first, then iterate over the delegate.  ``"completed"``: what is there first, and the
            others as soon as they are made.  ``"input"``: in the order of the items, as soon as the next one is made
            (not by :class:`MultiProcessStash` itself, whose items don't tell their keys).
        window :
            How many items may be given out that come after one which is not done, if the order is that of the input.

        Notes
        -----
        An iteration that is left off, or closed, ends the workers; what was made is kept.
        """
        if order not in get_args(Order):
            raise InvalidArgumentError(f"order must be 'stored', 'completed' or 'input', not {order!r}")
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise InvalidArgumentError(f"window must be a whole number of at least 1, not {window!r}")
        if order == "stored" or self._worker is True or self._worker == get_ident():
            return super().items()
        return self._as_completed() if order == "completed" else self._in_order(window)

    @contextmanager
    def _streamed(self, order: InputOrder | None = None) -> Iterator[Iterable[list[str]]]:
        """Fill, and give the keys of what is made; whatever else this thread reads comes after all of it."""
        with closing(self._filling(wants_keys=True, order=order)) as filling:
            self._stream = stream = Stream(filling)
            try:
                yield stream
            finally:
                if self._stream is stream:
                    self._stream = None

    def _pairs(self, keys: Iterable[str]) -> Iterator[tuple[str, V]]:
        for key in keys:
            value = self.delegate._fetch(key)
            if value is not MISSING:
                yield key, value

    def _as_completed(self) -> Iterator[tuple[str, V]]:
        seen: set[str] = set()

        def new(keys: Iterable[str]) -> Iterator[tuple[str, V]]:
            for pair in self._pairs(key for key in keys if key not in seen):
                seen.add(pair[0])
                yield pair

        if self._filler == get_ident():
            self.prime()
        yield from new(tuple(self.delegate.keys()))
        if not self.has_data:
            with self._streamed() as stream:
                for keys in stream:
                    yield from new(keys)
        # What others have made meanwhile.
        yield from new(tuple(self.delegate.keys()))

    def _in_order(self, window: int) -> Iterator[tuple[str, V]]:
        raise UnsupportedOperationError(
            f"{type(self).__name__} does not know the keys of its items before; use order='completed'"
        )

    def _cleared(self) -> None:
        super()._cleared()
        self.summary = Summary()
