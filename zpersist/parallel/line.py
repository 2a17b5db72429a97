"""Messages between a parent and its workers: whole ones only, and the parent never waits for one who may be dead.

A message is its length (u64, little-endian) and its bytes.  The parent's end does not block: what a worker does not
take yet waits in the parent, and of what has come only a part nothing is told.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator

__all__ = ["Line", "receive", "send"]

_HEAD = struct.Struct("<Q")

#: How much of a message that is too large for the memory is thrown away at once, in bytes.
_SIP = 1 << 16


class Line:
    """The parent's end.

    Parameters
    ----------
    fd :
        The descriptor of one end of a pair of sockets.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._unsent: deque[memoryview] = deque()
        self._part = bytearray(_HEAD.size)
        self._got = 0
        self._in_body = False

    @property
    def is_full(self) -> bool:
        """Whether something waits until the other end takes it."""
        return bool(self._unsent)

    def send(self, data: bytes) -> None:
        """Send a message, or have it wait."""
        self._unsent += (memoryview(_HEAD.pack(len(data))), memoryview(data))
        self.flush()

    def flush(self) -> None:
        """Send of what waits as much as the other end takes."""
        try:
            while self._unsent:
                first = self._unsent[0]
                sent = os.write(self._fd, first) if first else 0
                if sent == len(first):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = first[sent:]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            # It has died, as its end will tell.
            self._unsent.clear()

    def messages(self) -> Iterator[bytearray]:
        """Yield the messages that have come; of a part nothing.

        Raises
        ------
        EOFError
            The other end is closed.
        """
        while True:
            try:
                while self._got < len(self._part):
                    more = os.readv(self._fd, [memoryview(self._part)[self._got :]])
                    if not more:
                        raise EOFError
                    self._got += more
            except BlockingIOError:
                return
            except ConnectionResetError as err:
                raise EOFError from err
            part, self._got = self._part, 0
            if self._in_body:
                self._in_body, self._part = False, bytearray(_HEAD.size)
                yield part
            else:
                self._in_body, self._part = True, bytearray(_HEAD.unpack(part)[0])


def send(fd: int, data: bytes) -> None:
    """Send a message from a worker, and wait until it is gone."""
    for part in (_HEAD.pack(len(data)), data):
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def receive(fd: int, begun: Callable[[], None]) -> bytearray:
    """Wait in a worker for a message, and return it.

    Parameters
    ----------
    fd :
        The worker's end.
    begun :
        Called as soon as a message begins.

    Raises
    ------
    EOFError
        The other end is closed.
    MemoryError
        There is no room for it; it is thrown away.
    """
    head = bytearray(_HEAD.size)
    _fill(fd, memoryview(head))
    begun()
    (size,) = _HEAD.unpack(head)
    try:
        data = bytearray(size)
    except MemoryError:
        sip = memoryview(bytearray(_SIP))
        while size:
            _fill(fd, sip[:size])
            size -= min(size, _SIP)
        raise
    _fill(fd, memoryview(data))
    return data


def _fill(fd: int, view: memoryview) -> None:
    while view:
        got = os.readv(fd, [view])
        if not got:
            raise EOFError
        view = view[got:]
