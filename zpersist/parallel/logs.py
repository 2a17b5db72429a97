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


#: The types of what is given by extra= that travel.
_PLAIN = (str, int, float, bool, type(None))

_USUAL = logging.makeLogRecord({}).__dict__.keys()


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
            # Of extra=, what surely can be made again.
            record.__dict__ = {
                name: value for name, value in record.__dict__.items() if name in _USUAL or type(value) in _PLAIN
            }
            self.records.append(record)


@contextmanager
def captured(level: int) -> Iterator[LogRecords]:
    """Collect, within a ``with``, what would go to any handler; the root logger has the level that is given."""
    root, capture = logging.getLogger(), _Capture()
    named = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = [(logger, logger.handlers, logger.propagate) for logger in (root, *named)]
    for logger in named:
        # Their handlers are the parent's, too, and get the record there.
        logger.handlers, logger.propagate = [], True
    root.handlers = [capture]
    root.setLevel(level)
    try:
        yield capture.records
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def replay(records: LogRecords) -> None:
    """Give records of a worker to the loggers of this process."""
    for record in records:
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
