"""A progress bar, in a terminal or a notebook; lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

__all__ = ["Progress"]

#: Seconds between two lines, where there is no terminal.
_PAUSE = 10.0


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
            plain = not sys.stderr.isatty() and "notebook" not in tqdm.__module__
            bar = _Lines if plain else tqdm
            self._bar = bar(desc=label, total=total, unit="item")

    def show(self, done: int, there: int, failed: int) -> None:
        """Show that so many are done, and so many of them failed, beside those that were there."""
        bar = self._bar
        if bar is None:
            return
        if failed:
            bar.set_postfix(failed=failed, refresh=False)
        # Of those that were there, no speed can be told.
        bar.initial = there
        bar.update(done + there - bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """A line now and then, as tqdm writes it, in place of a bar that is drawn again and again."""

    def __init__(self, desc: str, total: int | None, unit: str) -> None:
        self.n = self.initial = 0
        self._options: dict[str, Any] = {"prefix": desc, "total": total, "unit": unit}
        self._began = self._shown = time.monotonic()

    def set_postfix(self, *, refresh: bool, **values: int) -> None:
        self._options["postfix"] = ", ".join(f"{name}={value}" for name, value in values.items())

    def update(self, count: int) -> None:
        self.n += count
        if time.monotonic() - self._shown >= _PAUSE:
            self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        from tqdm import tqdm

        self._shown = time.monotonic()
        line = tqdm.format_meter(n=self.n, elapsed=self._shown - self._began, initial=self.initial, **self._options)
        print(line, file=sys.stderr, flush=True)
