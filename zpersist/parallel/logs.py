"""Log records of workers, for the handlers of the parent."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["LogRecords", "captured", "replay"]

LogRecords = list[logging.LogRecord]

#: The most records a worker keeps before it tells its parent.
_MOST = 10_000


class _Capture(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: LogRecords = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.records) < _MOST:
            record = copy.copy(record)
            # Arguments and exceptions may not travel; their text does.
            record.msg, record.args = record.getMessage(), None
            if record.exc_info:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
                record.exc_info = None
            self.records.append(record)


@contextmanager
def captured(level: int) -> Iterator[LogRecords]:
    """Collect, within a ``with``, what would go to the handlers of the root logger, whose level is given."""
    root, capture = logging.getLogger(), _Capture()
    before, root.handlers = root.handlers, [capture]
    root.setLevel(level)
    try:
        yield capture.records
    finally:
        root.handlers = before


def replay(records: LogRecords) -> None:
    """Give records of a worker to the loggers of this process."""
    for record in records:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
