"""A progress bar, in a terminal or a notebook; lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

__all__ = ["Progress"]

#: Seconds between two lines, where there is no terminal.
_PAUSE = 10.0


class Progress:
    """Shows how many items are done, how many failed, and how long the rest will take.

    Where it can't be shown (there is no standard error, or no room where it goes) it is not, and the work goes on.

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
        if shown and sys.stderr is not None:
            from tqdm.auto import tqdm

            # Its monitor is a thread, and a process with threads can't be forked safely.
            tqdm.monitor_interval = 0
            options: dict[str, Any] = {"desc": label, "total": total, "unit": "item"}
            stream = _Stream(sys.stderr)
            if "notebook" in tqdm.__module__:
                self._bar = tqdm(**options)
            elif stream.isatty():
                self._bar = tqdm(file=stream, **options)
            else:
                self._bar = _Lines(stream, **options)

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


class _Stream:
    """A stream as long as it can be written to, and then nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fails = stream.closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return not self._fails and self._stream.isatty()

    def write(self, text: str) -> None:
        self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, use: Callable[[], object]) -> None:
        if self._fails:
            return
        try:
            use()
        except (OSError, ValueError):
            # ValueError: it has been closed.
            self._fails = True


class _Lines:
    """A line now and then, as tqdm writes it, in place of a bar that is drawn again and again."""

    def __init__(self, stream: _Stream, desc: str, total: int | None, unit: str) -> None:
        self._stream = stream
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
        self._stream.write(f"{line}\n")
        self._stream.flush()
