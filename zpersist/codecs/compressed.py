"""Values that take less room."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from zpersist.codecs.base import Codec, encoded
from zpersist.codecs.named import as_codec
from zpersist.codecs.pickle import PickleCodec
from zpersist.codecs.told import told
from zpersist.errors import DecodeError, EncodeError, InvalidArgumentError

__all__ = ["CompressedCodec"]

#: Bytes before the compressed ones: how many those are when they are inflated.
_HEAD = 8

#: So many bytes are taken, and made, at a time: what is inflated is held once, and not as pieces and joined.
_BLOCK = 1 << 18

#: The most memory for looking back, in bytes: what level 19 of Zstandard takes.
_WINDOW = 1 << 23


class _Method(NamedTuple):
    default: int
    levels: range
    deflate: Callable[[bytes, int], bytes]
    #: Gets the bytes and the most to return, and returns them, and whether there is nothing before or after their end.
    inflate: Callable[[memoryview, int], tuple[bytearray, bool]]


def _zlib() -> _Method:
    def inflate(data: memoryview, most: int) -> tuple[bytearray, bool]:
        stream, out, at = zlib.decompressobj(), bytearray(), 0
        left: bytes | memoryview = b""
        while len(out) < most and not stream.eof:
            if not left:
                left = data[at : at + _BLOCK]
                at += len(left)
            more = stream.decompress(left, min(_BLOCK, most - len(out)))
            if not more and not left:
                break
            out += more
            left = stream.unconsumed_tail
        return out, stream.eof and not stream.unused_data and at == len(data)

    return _Method(6, range(10), zlib.compress, inflate)


def _lz4() -> _Method:
    try:
        import lz4.frame
    except ImportError as err:
        raise ImportError("CompressedCodec(method='lz4') needs lz4: pip install 'zpersist[lz4]'") from err

    def deflate(data: bytes, level: int) -> bytes:
        return bytes(lz4.frame.compress(data, compression_level=level))

    def inflate(data: memoryview, most: int) -> tuple[bytearray, bool]:
        stream, out, at = lz4.frame.LZ4FrameDecompressor(), bytearray(), 0
        while len(out) < most and not stream.eof:
            block = data[at : at + _BLOCK] if stream.needs_input else b""
            at += len(block)
            more = stream.decompress(block, max_length=min(_BLOCK, most - len(out)))
            # It may have taken what was left of the last block, and give nothing before it gets the next.
            if not more and not block and not (stream.needs_input and at < len(data)):
                break
            out += more
        return out, stream.eof and not stream.unused_data and at == len(data)

    return _Method(0, range(17), deflate, inflate)


def _zstd() -> _Method:
    try:
        import zstandard
    except ImportError as err:
        raise ImportError("CompressedCodec() needs zstandard: pip install 'zpersist[zstd]', or method='zlib'") from err

    def deflate(data: bytes, level: int) -> bytes:
        return zstandard.ZstdCompressor(level=level).compress(data)

    def inflate(data: memoryview, most: int) -> tuple[bytearray, bool]:
        # Not decompress(): it allocates whatever the bytes say.
        stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(data, read_size=len(data))
        out = bytearray()
        while len(out) < most and (more := stream.read(min(_BLOCK, most - len(out)))):
            out += more
        return out, True

    return _Method(3, range(1, 20), deflate, inflate)


_METHODS: dict[str, Callable[[], _Method]] = {"zstd": _zstd, "lz4": _lz4, "zlib": _zlib}


class CompressedCodec(Codec):
    """Compresses what another codec makes.

    Parameters
    ----------
    codec :
        Makes bytes of a value; default: :class:`~zpersist.PickleCodec`.
    method :
        ``"zstd"`` (RFC 8878; the extra ``zstd``), ``"lz4"`` (LZ4 frames; the extra ``lz4``) or ``"zlib"`` (RFC 1950).
    level :
        How hard to try: 1 to 19 (zstd, default 3), 0 to 16 (lz4, 0), 0 to 9 (zlib, 6).  Any level is read.
    max_bytes :
        The most bytes a value may have that is not compressed; default: 256 MiB.  A small file that inflates to
        more is refused before it takes memory, and a larger value is not written.

    Raises
    ------
    EncodeError
        By a write: the value is larger than ``max_bytes``.
    DecodeError
        By a read: it is not what was compressed, or larger than ``max_bytes``.
    ImportError
        The extra is not installed.

    Notes
    -----
    *Trust*: that of the codec.

    Large buffers are compressed with the rest, and not mapped.

    Examples
    --------
    >>> stash = DirectoryStash("small", codec=CompressedCodec(method="zlib"))
    >>> stash["zeros"] = [0] * 100_000
    >>> stash.key_to_path("zeros").stat().st_size < 1000
    True
    """

    def __init__(
        self,
        codec: Codec | str | None = None,
        method: Literal["zstd", "lz4", "zlib"] = "zstd",
        *,
        level: int | None = None,
        max_bytes: int = 1 << 28,
    ) -> None:
        inner = PickleCodec() if codec is None else as_codec(codec)
        if not isinstance(inner, Codec):
            raise InvalidArgumentError(f"codec of CompressedCodec must be a codec, not {codec!r}")
        if method not in _METHODS:
            raise InvalidArgumentError(f"method must be one of {', '.join(map(repr, _METHODS))}, not {method!r}")
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise InvalidArgumentError(f"max_bytes must be a whole number of at least 1, not {max_bytes!r}")
        self._codec = inner
        self._name: Literal["zstd", "lz4", "zlib"] = method
        self._method = _METHODS[method]()
        levels = self._method.levels
        if level is not None and (isinstance(level, bool) or level not in levels):
            raise InvalidArgumentError(f"level of {method} must be {levels[0]} to {levels[-1]}, not {level!r}")
        self._level = self._method.default if level is None else level
        self._most = max_bytes
        self.id = f"{method}:{inner.id}"

    def bound(self, place: str, key: str) -> Codec:
        """Return the codec for one value of one store."""
        inner = self._codec.bound(place, key)
        if inner is self._codec:
            return self
        return CompressedCodec(inner, self._name, level=self._level, max_bytes=self._most)

    def dumps(self, value: object) -> bytes:
        """Return the value, compressed."""
        data = encoded(self._codec, self._codec.dumps(value))
        if len(data) > self._most:
            raise EncodeError(
                f"a {type(value).__qualname__} has {len(data)} bytes, more than max_bytes={self._most} of the "
                f"CompressedCodec: give it, and those who read, a larger one"
            )
        return len(data).to_bytes(_HEAD, "little") + self._method.deflate(data, self._level)

    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the value of compressed bytes."""
        view = memoryview(data)
        size = int.from_bytes(view[:_HEAD], "little")
        if len(view) < _HEAD or size > self._most:
            raise DecodeError(
                f"it says that it inflates to {size} bytes, more than max_bytes={self._most} allows: "
                f"if you trust who wrote it, give a larger one"
            )
        try:
            # One byte more, to see that there is none.
            out, ended = self._method.inflate(view[_HEAD:], size + 1)
        except MemoryError:
            raise
        except Exception as err:
            raise DecodeError(f"it can't be inflated ({told(err)})") from err
        if len(out) != size or not ended:
            raise DecodeError(f"it does not inflate to the {size} bytes it had")
        return self._codec.loads(out)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_method": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._method = _METHODS[self._name]()

    def __repr__(self) -> str:
        return f"CompressedCodec({self._codec!r}, {self._name!r}, level={self._level})"
