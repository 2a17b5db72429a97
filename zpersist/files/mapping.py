"""Mapping a file into memory without keeping a descriptor open for it."""

from __future__ import annotations

import mmap
import sys
import weakref

__all__ = ["map_file"]


def map_file(fd: int, size: int) -> memoryview:
    """Return a read-only view on the first ``size`` bytes of an open file.

    The view stays valid when the file is unlinked or replaced, and when ``fd`` is closed; the mapping goes with
    the last view on it.  No descriptor is held, so that any number of values may be mapped at once.

    Raises
    ------
    OSError
        The file can't be mapped.
    """
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ, trackfd=False))
    return _map_by_libc(fd, size)


def _map_by_libc(fd: int, size: int) -> memoryview:
    # Before Python 3.13 mmap.mmap keeps a duplicate of the descriptor for as long as the mapping lives.
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    block = (ctypes.c_ubyte * size).from_address(address)
    # Memory views keep the block alive, and the block the mapping.
    weakref.finalize(block, libc.munmap, address, size).atexit = False
    return memoryview(block).cast("B").toreadonly()
