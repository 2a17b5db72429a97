"""The envelope: how a value lies in a file or a database cell, and how damage to it is noticed.

.. code-block:: text

    body                 what the codec wrote (a plain pickle stays readable by pickle.load)
    buffers              each on a 64-byte boundary, so that it can be mapped and used in place
    index                offset and length of each buffer (2 of u64), codec id (ASCII), tag (UTF-8)
    trailer, 48 bytes    u64 length of the body, u64 its xxh3, u64 xxh3 of all buffers,
                         u32 number of buffers, u16 length of the codec id, u16 length of the tag,
                         u16 format version, u64 xxh3 of index and trailer so far, 6 bytes magic

All numbers are little-endian.  The trailer comes last, so that a file that was cut can't look whole.  The *tag*
is whatever the writer wants to read back with the value: a key too long for a file name, the version of a work.
Checksums are XXH3-64 (https://xxhash.com): they tell damage, not malice.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from xxhash import xxh3_64, xxh3_64_intdigest

from zpersist.codecs.base import Codec
from zpersist.damage import is_pickle
from zpersist.errors import (
    CodecMismatchError,
    CorruptValueError,
    DecodeError,
    FormatVersionError,
    MisplacedValueError,
    StorageError,
)
from zpersist.files.atomic import READ_FLAGS, Buffer, close_quietly, storage_error
from zpersist.files.coding import decode, encode
from zpersist.files.mapping import map_file

__all__ = [
    "ALIGNMENT",
    "FORMAT_VERSION",
    "REMEDIES",
    "Frame",
    "WrongTagError",
    "looks_whole",
    "misplaced",
    "open_frame",
    "pack",
    "parse",
    "read_file",
    "read_open",
    "unpack",
]

FORMAT_VERSION = 1
ALIGNMENT = 64

_MAGIC = b"ZPRST\n"
_HEAD = struct.Struct("<QQQIHHH")
_TAIL = struct.Struct("<Q6s")
_SLOT = struct.Struct("<QQ")
_TRAILER_SIZE = _HEAD.size + _TAIL.size
_PADDING = bytes(ALIGNMENT)
_NO_BUFFERS_HASH = xxh3_64_intdigest(b"")

# Up to here a file is read whole; of a larger one the tail comes first, for it may be mapped.
_WHOLE = 1 << 18
_TAIL_READ = 4096


class Frame(NamedTuple):
    """What the trailer says about a value."""

    codec: str
    tag: str
    body_length: int
    body_hash: int
    buffers_hash: int
    slots: tuple[tuple[int, int], ...]


def pack(
    codec: Codec, value: object, where: str, *, tag: str = "", out_of_band: bool = True, place: str = ""
) -> list[Buffer]:
    """Return the parts that, one after the other, are the enveloped value.

    Parameters
    ----------
    codec :
        Writes the body.
    value :
        What to keep.
    where :
        The place it gets, for the error: a file, or a key.
    tag :
        Comes back with the value, at most 64 KiB.
    out_of_band :
        Lay large buffers beside the body, aligned.  Without it they are part of the body.
    place :
        For the error: the database, if ``where`` is a key in it.

    Raises
    ------
    EncodeError
        The codec can't write the value.
    """
    body, buffers = encode(codec, value, where, place=place, out_of_band=out_of_band)
    name = codec.id.encode("ascii")
    label = tag.encode("utf-8")
    if not buffers:
        return [body + _end_of_plain(body, name, label)]
    return _pack_buffers(body, buffers, name, label)


def _end_of_plain(body: Buffer, name: bytes, label: bytes) -> bytes:
    """Return what follows the body of a value without buffers."""
    index = name + label
    index += _HEAD.pack(len(body), xxh3_64_intdigest(body), _NO_BUFFERS_HASH, 0, len(name), len(label), FORMAT_VERSION)
    return index + _TAIL.pack(xxh3_64_intdigest(index), _MAGIC)


def _pack_buffers(body: bytes, buffers: Sequence[memoryview], name: bytes, label: bytes) -> list[Buffer]:
    parts: list[Buffer] = [body]
    slots = []
    position = len(body)
    total = xxh3_64()
    for buffer in buffers:
        gap = -position % ALIGNMENT
        parts += (_PADDING[:gap], buffer)
        slots.append(_SLOT.pack(position + gap, len(buffer)))
        total.update(buffer)
        position += gap + len(buffer)
    index = b"".join((*slots, name, label))
    head = _HEAD.pack(
        len(body),
        xxh3_64_intdigest(body),
        total.intdigest(),
        len(slots),
        len(name),
        len(label),
        FORMAT_VERSION,
    )
    parts.append(index + head + _TAIL.pack(xxh3_64_intdigest(index + head), _MAGIC))
    return parts


def parse(tail: Buffer, size: int, where: str, codec: Codec | None = None) -> Frame | int:
    """Read the trailer.

    Parameters
    ----------
    tail :
        The last bytes of the value, or all of them.
    size :
        The length of the whole value.
    where :
        Names the place in errors.
    codec :
        What is to read it, if that is known.

    Returns
    -------
    Frame | int
        What the trailer says; or how many bytes of tail it takes to tell.

    Raises
    ------
    CorruptValueError
        The value is empty, cut, damaged, or was not written by zpersist.
    """
    if size < _TRAILER_SIZE:
        short = f"it has only {size} byte{'s' * (size > 1)}"
        raise CorruptValueError(_foreign(where, short, tail, codec) if size else _damage(where, "it is empty"))
    frame_hash, magic = _TAIL.unpack_from(tail, len(tail) - _TAIL.size)
    if magic != _MAGIC:
        raise CorruptValueError(_foreign(where, "it does not end as zpersist ends a value", tail, codec))
    body_length, body_hash, buffers_hash, count, name_length, tag_length, version = _HEAD.unpack_from(
        tail, len(tail) - _TRAILER_SIZE
    )
    index_length = count * _SLOT.size + name_length + tag_length
    needed = index_length + _TRAILER_SIZE
    if needed > size:
        raise CorruptValueError(_damage(where, "its index is longer than the value"))
    if needed > len(tail):
        return int(needed)
    start = len(tail) - needed
    if xxh3_64_intdigest(memoryview(tail)[start : len(tail) - _TAIL.size]) != frame_hash:
        raise CorruptValueError(_damage(where, "the checksum of its index is wrong"))
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{where} is in format {version}, this zpersist reads up to {FORMAT_VERSION}: upgrade zpersist to read it"
        )
    names = start + count * _SLOT.size
    slots = tuple(_SLOT.iter_unpack(bytes(tail[start:names]))) if count else ()
    end = sum(slots[-1]) if slots else body_length
    if end + needed != size:
        raise CorruptValueError(_damage(where, f"it has {size} bytes, {end + needed} were written"))
    if body_length > (slots[0][0] if slots else end):
        raise CorruptValueError(_damage(where, "its body is longer than the value"))
    try:
        writer = bytes(tail[names : names + name_length]).decode("ascii")
        tag = bytes(tail[names + name_length : names + name_length + tag_length]).decode("utf-8")
    except UnicodeDecodeError as err:
        raise CorruptValueError(_damage(where, "the names in its index are none")) from err
    return Frame(writer, tag, body_length, body_hash, buffers_hash, slots)


_DAMAGE_REMEDY = "; delete it, or restore it from a copy"
_FOREIGN_REMEDY = "; look at it, then delete it, or restore it from a copy"
_PICKLE_REMEDY = "; if it is a pickle of somebody you trust, PickleCodec(plain=True) reads it"

#: What errors of damage end with, for those who know better what helps.
REMEDIES = (_DAMAGE_REMEDY, _FOREIGN_REMEDY + _PICKLE_REMEDY, _FOREIGN_REMEDY)


def _foreign(where: str, what: str, tail: Buffer, codec: Codec | None) -> str:
    # Nobody who chose a codec that runs nothing is to be led to one that does.
    pickled = codec is not None and codec.id == "pickle" and bytes(tail[-2:]).rstrip(b"\n").endswith(b".")
    return f"{where} is damaged, or is not zpersist's: {what}{_FOREIGN_REMEDY}{_PICKLE_REMEDY * pickled}"


def _foreign_value(codec: Codec, data: bytes, where: str) -> Any:
    try:
        return decode(codec, data, (), where)
    except DecodeError as err:
        if is_pickle(data):
            raise
        raise CorruptValueError(_damage(where, "it is neither a value of zpersist nor a whole pickle")) from err


def _damage(where: str, what: str) -> str:
    return f"{where} is damaged: {what}{_DAMAGE_REMEDY}"


class WrongTagError(Exception):
    """A value has another tag than the one expected; it was not decoded."""


def misplaced(where: str, tag: str) -> MisplacedValueError:
    """Return the error that says whose value lies in a place."""
    whose = repr(tag) if tag else "another key"
    return MisplacedValueError(
        f"{where} is the value of {whose}, and was moved; move it back to its key, delete it, or restore it from a copy"
    )


def _check(frame: Frame, codec: Codec, tag: str | None, where: str) -> None:
    if tag is not None and frame.tag != tag:
        raise WrongTagError(frame.tag)
    if frame.codec != codec.id:
        raise CodecMismatchError(
            f"{where} was written by the codec {frame.codec!r}, {codec.id!r} is configured: "
            f"open it with the codec that wrote it"
        )


def _body(frame: Frame, body: Buffer, where: str) -> Buffer:
    if xxh3_64_intdigest(body) != frame.body_hash:
        raise CorruptValueError(_damage(where, "its checksum is wrong"))
    return body


def _slices(frame: Frame, data: memoryview, where: str) -> list[memoryview]:
    end = frame.body_length
    for offset, length in frame.slots:
        if not 0 <= offset - end < ALIGNMENT or any(data[end:offset]):
            raise CorruptValueError(_damage(where, "there is something between its buffers"))
        end = offset + length
    return [data[offset : offset + length] for offset, length in frame.slots]


def _check_buffers(frame: Frame, buffers: Sequence[memoryview], where: str) -> None:
    total = xxh3_64()
    for buffer in buffers:
        total.update(buffer)
    if total.intdigest() != frame.buffers_hash:
        raise CorruptValueError(_damage(where, "the checksum of its buffers is wrong"))


def unpack(data: bytes, codec: Codec, tag: str, place: str) -> Any:
    """Return the value in an envelope in memory that must have this tag; all of it is checked."""
    if not isinstance(data, bytes):
        where = f"{tag!r} in {place}"
        raise CorruptValueError(_damage(where, f"there is a {type(data).__qualname__} in place of bytes"))
    name, label = codec.id.encode(), tag.encode()
    body = data[: -_TRAILER_SIZE - len(name) - len(label)]
    # An intact value without buffers ends as it would be written now; anything else is looked at closely.
    if data.endswith(_end_of_plain(body, name, label)):
        return decode(codec, body, (), tag, place)
    return _unpack_closely(data, codec, tag, f"{tag!r} in {place}")


def _unpack_closely(data: bytes, codec: Codec, tag: str, where: str) -> Any:
    if codec.plain and data and not data.endswith(_MAGIC):
        return _foreign_value(codec, data, where)
    frame = parse(data, len(data), where, codec)
    if isinstance(frame, int):
        raise CorruptValueError(_damage(where, "its index is cut"))
    try:
        _check(frame, codec, tag, where)
    except WrongTagError as err:
        raise misplaced(where, frame.tag) from err
    view = memoryview(data)
    checked = _body(frame, view[: frame.body_length], where)
    buffers = _slices(frame, view, where)
    _check_buffers(frame, buffers, where)
    return decode(codec, checked, buffers, where)


def _pread(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def open_frame(fd: int, size: int, where: str, codec: Codec | None = None) -> Frame:
    """Return what the trailer of an open file says."""
    needed = min(size, _TAIL_READ)
    while True:
        frame = parse(_pread(fd, needed, size - needed), size, where, codec)
        if isinstance(frame, Frame):
            return frame
        needed = frame


def read_file(path: str, codec: Codec, *, mapped: bool = True, tag: str | None = None) -> Any:
    """Return the value in a file.

    Parameters
    ----------
    path :
        The file.
    codec :
        What wrote it.
    mapped :
        Hand out read-only views on the mapped file in place of copies of large buffers.  Of a mapped value the
        structure and the body are checked, of any other everything.
    tag :
        The tag the value must have.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    WrongTagError
        The value has another tag; it was not decoded.
    CorruptValueError, CodecMismatchError, DecodeError
        The file can't be trusted or read.
    StorageError
        The operating system refused.
    """
    try:
        fd = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise storage_error(err, "can not read", path) from err
    try:
        return read_open(fd, path, codec, mapped=mapped, tag=tag)
    finally:
        close_quietly(fd)


def _is_foreign(fd: int, size: int, codec: Codec, tag: str | None) -> bool:
    # What has a tag is ours.
    return codec.plain and not tag and size > 0 and _pread(fd, len(_MAGIC), max(0, size - len(_MAGIC))) != _MAGIC


def looks_whole(fd: int, path: str, codec: Codec, *, tag: str) -> bool:
    """Return whether an open file seems to hold a value with this tag, which is not decoded for that."""
    size = os.fstat(fd).st_size
    if _is_foreign(fd, size, codec, tag):
        return is_pickle(_pread(fd, size, 0))
    try:
        return open_frame(fd, size, path).tag == tag
    except CorruptValueError:
        return False


def read_open(fd: int, path: str, codec: Codec, *, mapped: bool = True, tag: str | None = None) -> Any:
    """Return the value in an open file as :func:`read_file` does; ``path`` names it in errors."""
    try:
        size = os.fstat(fd).st_size
        if _is_foreign(fd, size, codec, tag):
            return _foreign_value(codec, _pread(fd, size, 0), path)
        if size <= _WHOLE:
            data = os.read(fd, size)
            frame = parse(data, len(data), path, codec)
            if isinstance(frame, Frame) and not frame.slots:
                _check(frame, codec, tag, path)
                return decode(codec, _body(frame, memoryview(data)[: frame.body_length], path), (), path)
        return _read_large(fd, size, path, codec, mapped, tag)
    except OSError as err:
        if isinstance(err, StorageError):
            raise
        raise storage_error(err, "can not read", path) from err


def _read_large(fd: int, size: int, path: str, codec: Codec, mapped: bool, tag: str | None) -> Any:
    frame = open_frame(fd, size, path, codec)
    _check(frame, codec, tag, path)
    body = _body(frame, _pread(fd, frame.body_length, 0), path)
    if not frame.slots:
        return decode(codec, body, (), path)
    if mapped:
        return decode(codec, body, _slices(frame, map_file(fd, size), path), path)
    # Bytearrays make the loaded object private and writable.
    end = frame.slots[-1][0] + frame.slots[-1][1]
    start = frame.body_length
    block = bytearray(end - start)
    view, done = memoryview(block), 0
    while done < len(block):
        got = os.preadv(fd, [view[done:]], start + done)
        if not got:
            raise CorruptValueError(_damage(path, "it was cut while it was read"))
        done += got
    gaps = frame._replace(body_length=0, slots=tuple((offset - start, length) for offset, length in frame.slots))
    buffers = [memoryview(bytearray(part)) for part in _slices(gaps, view, path)]
    _check_buffers(frame, buffers, path)
    return decode(codec, body, buffers, path)
