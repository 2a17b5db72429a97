"""From an input to kept values, whatever happens on the way: the loop between schedule and engine."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from attrs import define, field

from zpersist.errors import (
    DecodeError,
    EncodeError,
    InvalidDelegateError,
    InvalidKeyError,
    ItemTimeoutError,
    WorkerDiedError,
)
from zpersist.failure import Failure
from zpersist.parallel.engine import Engine, Event, SerialEngine
from zpersist.parallel.intake import Intake
from zpersist.parallel.job import IDLE, Job, Report
from zpersist.parallel.logs import replay
from zpersist.parallel.schedule import Schedule, Task
from zpersist.progress import Progress
from zpersist.stash import Stash

__all__ = ["Run", "Summary"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at how far the workers are.
_GLANCE = 0.1

#: Of items that take less, one more chunk waits at each worker; in seconds for a chunk.
_CHEAP = 0.02


@define
class Summary:
    """What a run of filling a stash did.

    Parameters
    ----------
    done :
        How many items were made and kept.
    there :
        How many were there already, or were made by another program meanwhile.
    failures :
        What failed, by key.
    deaths :
        How many times a worker was lost, also those that were ended for a timeout.
    seconds :
        How long it took.
    """

    done: int = 0
    there: int = 0
    failures: dict[str, Failure] = field(factory=dict)
    deaths: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.done} items in {self.seconds:.1f} s"]
        if self.there:
            parts.append(f"{self.there} were there")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        if self.deaths:
            parts.append(f"{self.deaths} deaths of workers")
        return ", ".join(parts)


class _RemoteTraceback(Exception):  # noqa: N818 - shown as a cause
    """What a worker printed."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def raise_again(failure: Failure) -> NoReturn:
    """Raise what a worker raised, with its traceback."""
    error = failure.exception
    if error.__traceback__ is None:
        raise error from _RemoteTraceback(failure.traceback_str)
    raise error


def _unreadable(err: Exception) -> DecodeError:
    error = DecodeError(f"a value has come from a worker, and can't be made again here ({type(err).__name__}: {err})")
    error.__cause__ = err
    return error


class Run:
    """One run: gives tasks to an engine until all items are settled; an iterator over what was done.

    Parameters
    ----------
    job :
        What the workers do.
    engine :
        Where they are; closed by the end of the iteration.
    schedule, intake :
        What is to be done.
    delegate :
        Where the parent keeps what workers send back.
    retries :
        How many times an item is tried that kills its worker.
    progress, summary :
        What is told of all that.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        schedule: Schedule,
        intake: Intake,
        delegate: Stash[Any],
        *,
        retries: int,
        progress: Progress,
        summary: Summary,
    ) -> None:
        self._job = job
        self._engine = engine
        self._schedule = schedule
        self._intake = intake
        self._delegate = delegate
        self._retries = retries
        self._progress = progress
        self._summary = summary
        self._under_way = 0
        self._alone = False
        self._reached = job.delegate is None or isinstance(engine, SerialEngine)
        self._error: Failure | None = None
        self._poison: list[WorkerDiedError] = []
        #: By name: what ends the run.
        self.raised: dict[str, Failure] = {}

    def __iter__(self) -> Iterator[tuple[Task, Report]]:
        """Yield what is settled, with what its worker said: it is done, or as good as given up (then ``done`` is 0)."""
        finished = False
        began = time.monotonic()
        try:
            yield from self._tasks()
            finished = True
        finally:
            self._summary.seconds += time.monotonic() - began
            self._engine.close(now=not finished)
            if self._job.probe is not None and self._reached:
                # Workers that came later have written it again.
                stash, key = self._job.probe
                stash.delete(key)
        if self._error is not None:
            raise_again(self._error)
        if self._poison:
            raise self._poisoned()

    def _poisoned(self) -> WorkerDiedError:
        late = all(isinstance(error, ItemTimeoutError) for error in self._poison)
        kind, advice = (ItemTimeoutError, "a longer timeout=") if late else (WorkerDiedError, "more memory")
        return kind(
            f"{', '.join(map(str, self._poison))}; all others are done.  It may need {advice}; "
            f"on_error='store' or 'skip' goes on without it"
        )

    def _tasks(self) -> Iterator[tuple[Task, Report]]:
        while True:
            yield from self._give_out()
            if not self._under_way:
                self._show()
                return
            for event in self._engine.wait(_GLANCE):
                self._under_way -= 1
                self._alone = False
                if event.report is None:
                    yield from self._lost(event)
                else:
                    yield from self._reported(event.task, event.report)
            self._show()

    def _show(self) -> None:
        summary = self._summary
        failed = len(summary.failures)
        self._progress.show(summary.done + failed + self._engine.under_way(), summary.there, failed)

    def _give_out(self) -> Iterator[tuple[Task, Report]]:
        schedule, engine = self._schedule, self._engine
        while self._error is None and not self._alone:
            cheap = schedule.cost is not None and schedule.expected() < _CHEAP
            if engine.room(cheap) <= 0:
                return
            task = schedule.next(idle=not self._under_way, isolated=engine.isolates)
            if task is None:
                return
            try:
                engine.submit(task, unsure=task.unsure)
            except EncodeError as err:
                yield from self._stuck(task, Failure(err))
                continue
            # Of suspects an engine does not isolate, no other task may share the fate.
            self._alone = task.suspect and not engine.isolates
            self._under_way += 1

    def _look_whether_it_arrives(self, report: Report) -> None:
        stash, key = self._job.probe or (self._delegate, report.first)
        if self._reached or not key or report.fatal is not None:
            return
        self._reached = True
        if not stash.exists(key):
            raise InvalidDelegateError(
                f"what a worker writes to {self._delegate!r} does not arrive here: workers must reach the same place "
                f"(a directory that is mounted there too, a server), or say shared=False"
            )

    def _reported(self, task: Task, report: Report) -> Iterator[tuple[Task, Report]]:
        self._look_whether_it_arrives(report)
        replay(report.records)
        if self._job.delegate is None:
            try:
                pairs = pickle.loads(report.sealed) if report.sealed else report.pairs
            except Exception as err:  # noqa: BLE001 - a class of the user: what it raises is the failure of an item
                yield from self._stuck(task, Failure(_unreadable(err)))
                return
            report = self._keep_here(report._replace(pairs=pairs, sealed=b""))
        self._delegate._outdated()
        self._schedule.learn(report.done, report.seconds)
        if report.fatal is not None:
            self._error = self._error or report.fatal
            return
        if -1 in report.failures:
            yield from self._stuck(task, report.failures[-1])
            return
        for place, failure in report.failures.items():
            if self._job.on_error == "raise":
                self._error = self._error or failure
                self.raised[self._job.work.name_of(task.items[place])] = failure
            else:
                self._failed(task.cut(place, place + 1), failure)
        if report.done:
            there = 0 if task.lost else len(report.there)
            self._summary.done += report.done - there - len(report.failures)
            self._summary.there += there
            settled = {place: failure for place, failure in report.failures.items() if place < report.done}
            yield task.cut(0, report.done), report._replace(failures=settled)
            self._intake.settled(task.places[: report.done])
        if self._error is None:
            self._schedule.again(task.cut(report.done))

    def _stuck(self, task: Task, failure: Failure) -> Iterator[tuple[Task, Report]]:
        """Settle what failed for one of the items, it isn't known which."""
        if self._job.on_error == "raise":
            self._error = self._error or failure
        elif len(task.items) == 1:
            yield from self._give_up(task, failure)
        else:
            # It is found out one by one.
            for i in range(len(task.items)):
                self._schedule.again(task.cut(i, i + 1))

    def _keep_here(self, report: Report) -> Report:
        """Keep what came back; what can't be kept is the failure of its item."""
        delegate, failures = self._delegate, dict(report.failures)

        def worth(key: str, value: Any) -> bool:
            # Another item may have given a value of the same key, which is worth more than a failure.
            return not isinstance(value, Failure) or isinstance(delegate.get(key, value), Failure)

        try:
            delegate.dump_many((key, value) for key, value in report.pairs if not failures or worth(key, value))
        except InvalidKeyError:
            for place, (key, value) in zip(report.places, report.pairs, strict=True):
                try:
                    if worth(key, value):
                        delegate.dump(key, value)
                except InvalidKeyError as err:
                    failures[place] = Failure(err, thrower=f"key {key!r}")
        return report._replace(failures=failures)

    def _failed(self, task: Task, failure: Failure) -> None:
        name = self._job.work.name_of(task.items[0])
        logger.info("%s failed: %r", name, failure)
        self._summary.failures[name] = failure

    def _lost(self, event: Event) -> Iterator[tuple[Task, Report]]:
        task, at, error = event.task, event.at, event.error
        if at == IDLE:
            self._schedule.again(task)
            return
        self._summary.deaths += 1
        if at is not None and self._job.work.divisible:
            # What was done before may have been kept, or not yet.
            self._schedule.again(task.cut(0, at)._replace(unsure=True, lost=True))
            self._schedule.again(task.cut(at + 1))
            task = task.cut(at, at + 1)
        if not event.blames:
            self._schedule.again(task._replace(unsure=True, lost=True))
            return
        # Where workers share a fate, it is known only of one that ran alone.
        blamed = self._engine.isolates or event.task.suspect
        single = len(task.items) == 1
        name = self._job.work.name_of(task.items[0]) + ("" if single else f" or one of {len(task.items) - 1} others")
        logger.warning("a worker was lost at %s: %s", name, error)
        if single and blamed and (isinstance(error, ItemTimeoutError) or task.deaths + 1 >= self._retries):
            yield from self._settle_poison(task, error)
        else:
            self._schedule.suspect(task, blamed=blamed)

    def _settle_poison(self, task: Task, error: BaseException | None) -> Iterator[tuple[Task, Report]]:
        key = self._job.work.name_of(task.items[0])
        poison: WorkerDiedError
        if isinstance(error, ItemTimeoutError):
            poison = ItemTimeoutError(f"{key!r}: {error}")
        else:
            poison = WorkerDiedError(f"{key!r} killed its worker {task.deaths + 1} times (the last time {error})")
        poison.__cause__ = error
        if self._job.on_error == "raise":
            self._poison.append(poison)
            self.raised[key] = Failure(poison, thrower=f"key {key!r}")
            yield task, Report(0, 0.0, {}, None, [])
            self._intake.settled(task.places)
        else:
            yield from self._give_up(task, Failure(poison, thrower=f"key {key!r}"))

    def _give_up(self, task: Task, failure: Failure) -> Iterator[tuple[Task, Report]]:
        """Settle an item that is not tried again."""
        if self._job.on_error == "store":
            key = self._job.work.name_of(task.items[0])
            if isinstance(self._delegate.get(key, failure), Failure):
                self._delegate.dump(key, failure)
            self._delegate._outdated()
        self._failed(task, failure)
        yield task, Report(1, 0.0, {0: failure}, None, [])
        self._intake.settled(task.places)
