"""Pickles that claim to be larger than they are: what is damaged or forged is told from what takes too much memory."""

from __future__ import annotations

import pickletools

from zpersist.errors import DecodeError

__all__ = ["check_claims"]


def check_claims(data: bytes | bytearray | memoryview) -> None:
    """Raise if a pickle, of which a ``MemoryError`` came, claims what it can't have; nothing of it is run.

    Room is made for as many bytes as an object says it has, before they are read, and for as many memos as the
    number of one says there are.

    Parameters
    ----------
    data :
        The pickle.

    Raises
    ------
    DecodeError
        It is cut, has bytes that mean nothing, or a number of a memo that no pickle of its length has.
    """
    whole = bytes(data)
    try:
        for opcode, value, _ in pickletools.genops(whole):
            if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(value, int) and value > len(whole):
                raise DecodeError(f"the pickle claims to have {value} objects in its {len(whole)} bytes")
    except DecodeError:
        raise
    except (ValueError, IndexError, OverflowError) as err:
        raise DecodeError(f"the pickle claims to be longer than its {len(whole)} bytes, or is none") from err
