"""Which items are given out next: chunks that take about as long as one wishes, and what was lost once more."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

from zpersist.parallel.intake import Intake

__all__ = ["Schedule", "Task"]

#: The most items of a chunk whose size is found out: the parent holds a few of them in memory.
_MOST = 4096

#: Chunks don't get smaller than what takes so many seconds: to give one out takes a twentieth of it.
_LEAST = 0.002

#: Into how many parts a chunk is cut in which something has killed a worker.
_PARTS = 8


class Task(NamedTuple):
    """Items to be done, that follow each other in the input, and their places in it."""

    items: list[Any]
    places: range
    #: How often one of these items killed its worker, or may have.
    deaths: int = 0
    #: Whether some of them may be done already.
    unsure: bool = False
    #: Whether it was lost before, so that what is there of it was made by this run.
    lost: bool = False
    #: Whether it may kill its worker.
    suspect: bool = False

    def cut(self, start: int, stop: int | None = None) -> Task:
        """Return a part of it."""
        return self._replace(items=self.items[start:stop], places=self.places[start:stop])


class Schedule:
    """Cuts an input into tasks, and takes back what was not done.

    Every item is given out until it was done, or has killed its worker too often.

    Parameters
    ----------
    intake :
        The items, each with its place; taken as they are needed.
    workers :
        How many share them.
    total :
        The number of items, if it is known.
    size :
        The items of a chunk; 0: so many that a chunk takes ``budget``, and fewer towards the end.
    budget :
        Seconds.
    """

    def __init__(
        self,
        intake: Intake,
        *,
        workers: int,
        total: int | None = None,
        size: int = 0,
        budget: float = 0.05,
    ) -> None:
        self._intake = intake
        self._workers = workers
        self._left = total
        self._size = size
        self._budget = budget
        self._again: deque[Task] = deque()
        self._suspects: deque[Task] = deque()
        #: Seconds an item takes, as far as is known.
        self.cost: float | None = None
        self._learned = 0

    def next(self, *, idle: bool, isolated: bool) -> Task | None:
        """Return what is to be done next, or ``None`` if there is nothing (now).

        Parameters
        ----------
        idle :
            Nothing is under way.
        isolated :
            A task that kills its worker takes no other one with it; otherwise a suspect goes out alone.
        """
        wanted = self._wanted()
        if self._again:
            return self._cut_from_again(wanted)
        if self._suspects and self._left is None:
            # The input may have no end, after which they could be tried.
            return self._suspects.popleft() if idle or isolated else None
        place, items = self._intake.take(wanted, wait=False)
        if not items and self._suspects and (idle or isolated):
            return self._suspects.popleft()
        if not items and idle:
            place, items = self._intake.take(wanted, wait=True)
        if not items:
            return None
        if self._left is not None:
            self._left -= len(items)
        return Task(items, range(place, place + len(items)), unsure=self._intake.unsure)

    def _cut_from_again(self, wanted: int) -> Task:
        task = self._again.popleft()
        if self._size or len(task.items) <= wanted:
            return task
        self._again.appendleft(task.cut(wanted))
        return task.cut(0, wanted)

    def _wanted(self) -> int:
        if self._size:
            return self._size
        if self.cost is None:
            return 1
        size = self._fitting(self._budget)
        if self._left is not None:
            waiting = self._left + sum(len(task.items) for task in self._again)
            size = min(size, max(math.ceil(waiting / (2 * self._workers)), self._fitting(_LEAST)))
        return max(1, size)

    def _fitting(self, seconds: float) -> int:
        return min(_MOST, int(seconds / max(self.cost or 0.0, 1e-9)))

    def expected(self) -> float:
        """Return how many seconds the next task will take, as far as is known."""
        return (self.cost or 0.0) * self._wanted()

    def learn(self, done: int, seconds: float) -> None:
        """Take note of how long so many items took."""
        if done:
            # What was learned before counts as much as its last chunk.
            before = (self.cost or 0.0) * self._learned
            self.cost = (before + seconds) / (self._learned + done)
            self._learned = done

    def again(self, task: Task) -> None:
        """Take back what was not begun."""
        if task.items:
            self._again.append(task._replace(suspect=False))

    def suspect(self, task: Task, *, blamed: bool = True) -> None:
        """Take back what may have killed its worker: one item once more, many of them in parts.

        Parameters
        ----------
        task :
            The items.
        blamed :
            Whether nothing else can have killed it.
        """
        if len(task.items) == 1:
            deaths = task.deaths + blamed
            self._suspects.append(task._replace(deaths=deaths, unsure=True, lost=True, suspect=True))
            return
        step = math.ceil(len(task.items) / _PARTS)
        self._suspects.extend(
            task.cut(start, start + step)._replace(unsure=True, lost=True, suspect=True)
            for start in range(0, len(task.items), step)
        )
