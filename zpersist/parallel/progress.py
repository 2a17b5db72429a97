"""A progress bar, in a terminal, a notebook or a log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

__all__ = ["Progress"]


class Progress:
    """Shows how many items are done, how many failed, and how long the rest will take.

    Parameters
    ----------
    shown :
        Whether to show anything.
    label :
        What stands in front.
    total :
        The number of items, if it is known.
    """

    def __init__(self, shown: bool, label: str, total: int | None) -> None:
        self._bar: Any = None
        if shown:
            from tqdm.auto import tqdm

            # Its monitor is a thread, and a process with threads can't be forked safely.
            tqdm.monitor_interval = 0
            # In a log a line now and then is enough.
            pause = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(desc=label, total=total, unit="item", mininterval=pause, maxinterval=pause)

    def show(self, done: int, failed: int) -> None:
        """Show that so many are done, and so many of them failed."""
        if self._bar is None:
            return
        if failed:
            self._bar.set_postfix(failed=failed, refresh=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
