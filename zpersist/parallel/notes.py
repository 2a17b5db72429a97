"""What is noted beside the values of a stash about the items that failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from zpersist.failure import Failure
from zpersist.parallel.job import Report
from zpersist.parallel.schedule import Task
from zpersist.stash import Stash
from zpersist.wrappers.prime import companion_of

__all__ = ["FailureNotes"]


class FailureNotes:
    """The failures of items, by name.

    Parameters
    ----------
    delegate :
        Where the values are.
    keyed :
        Whether the name of an item is the key of its value.
    """

    def __init__(self, delegate: Stash[Any], *, keyed: bool) -> None:
        self._delegate = delegate
        self._keyed = keyed
        self.stash = companion_of(delegate, "failures")

    def names(self) -> set[str]:
        """Return the names of items that failed."""
        return set(self.stash.keys())

    def failures(self) -> dict[str, Failure]:
        """Return what failed and was not made since, by name."""
        noted = self.stash.items()
        if not self._keyed:
            return dict(noted)
        # Another program may have made it since.
        return {name: failure for name, failure in noted if isinstance(self._delegate.get(name, failure), Failure)}

    def note(self, failures: Mapping[str, Failure] | Iterable[tuple[str, Failure]]) -> None:
        """Note failures."""
        self.stash.dump_many(failures)

    def forget(self, names: Collection[str]) -> None:
        """Have what failed be made by the next run."""
        # The notes first: what another program notes meanwhile stays.
        self.stash.delete_many(names)
        for name in names:
            if isinstance(self._delegate.get(name), Failure):
                self._delegate.delete(name)

    def settle(
        self, task: Task, report: Report, name_of: Callable[[Any], str], noted: Collection[str]
    ) -> dict[str, Failure]:
        """Note what failed, and forget what was made.

        Parameters
        ----------
        task, report :
            What was to be done, and what became of it.
        name_of :
            Returns the name of an item.
        noted :
            The names of items that had failed before.

        Returns
        -------
        dict
            By name: what failed in a worker that was lost before it told.
        """
        self.note((name_of(task.items[place]), failure) for place, failure in report.failures.items())
        done = task.items[: report.done]
        failed = {}
        if task.lost:
            failed = self._lost(name_of(item) for place, item in enumerate(done) if place not in report.failures)
        if noted:
            unmade = {*report.there, *report.failures}
            made = (name_of(item) for place, item in enumerate(done) if place not in unmade)
            self.forget(set(noted).intersection(made))
        return failed

    def _lost(self, names: Iterable[str]) -> dict[str, Failure]:
        failed = {}
        for name in names:
            failure = self.stash.get(name)
            if failure is not None and isinstance(self._delegate.get(name), Failure):
                failed[name] = failure
            elif failure is not None:
                # It was mended.
                self.stash.delete(name)
        return failed
