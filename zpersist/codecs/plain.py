"""What JSON and msgpack have in common: values as plain trees, and what is more than plain by tags.

Format 1.  A tree is made of ``None``, ``bool``, ``int``, finite ``float``, ``str``, lists, and objects whose keys are
strings; msgpack has ``bytes`` and any ``float`` too.  A plain value is its own tree.  Anything else is an object with
one key that starts with ``$``, its tag:

.. code-block:: text

    {"$str": bytes}               a text with lone surrogates, in UTF-8 as if they were characters
    {"$int": "0x1f"}              an integer below -2**63 or from 2**64 on
    {"$float": "nan"}             JSON: "nan", "inf", "-inf", or another nan by its 8 bytes in hexadecimal
    {"$bytes": "AAE="}            JSON: in Base64
    {"$bytearray": bytes}
    {"$dict": [[key, value], …]}  a dict with a key that is no such text, or that looks like a tag
    {"$tuple": [item, …]}         and $set, $frozenset
    {"$complex": [real, imag]}    two floats
    {"$decimal": "1.50"}
    {"$fraction": [1, 3]}         in lowest terms
    {"$range": [start, stop, step]}
    {"$date": "2024-02-29"}
    {"$time": "12:30:00"}         and $datetime; or [text, fold, zone]
    {"$timedelta": [days, seconds, microseconds]}
    {"$timezone": [timedelta]}    or [timedelta, name]
    {"$zone": "Europe/Berlin"}
    {"$uuid": "…"}                or [text, is_safe]
    {"$path": ["PosixPath", "a/b"]}
    {"$failure": [what, message, traceback, thrower]}
    {"$enum": ["module:Color", "RED"]}            or the value of a combination of flags
    {"$object": ["module:Point", {"x": 1, …}]}    the fields of an attrs class, a data class, a named tuple

A tag that is not here is refused.  A format in which the same bytes meant something else would get another codec id.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, ClassVar

from attrs import define, field

from zpersist.codecs.base import Codec
from zpersist.codecs.hashes import check_hashes
from zpersist.codecs.kinds import KINDS, TEXTUAL, Kind
from zpersist.codecs.records import Record, is_record, record_of
from zpersist.codecs.refused import Refused
from zpersist.codecs.told import told
from zpersist.errors import DecodeError, EncodeError, InvalidArgumentError

__all__ = ["MAX_DEPTH", "PlainCodec"]

#: So many containers may lie in one another.  What is deeper would depend on the stack of the one who loads it.
MAX_DEPTH = 128

_SURROGATE = re.compile("[\ud800-\udfff]").search
_ATOMS = frozenset((type(None), bool))
_KINDS = {kind.type: kind for kind in KINDS}
_KEPT = (*_KINDS, bytes, float, list)
_LEAVES = frozenset(_KEPT) - {list, dict, tuple, set, frozenset}
_STR = _KINDS[str].apart
_INT = _KINDS[int].apart


def _as_types(types: Iterable[type]) -> tuple[type, ...]:
    if isinstance(types, (str, bytes)) or not isinstance(types, Iterable):
        raise InvalidArgumentError(f"types must be a list of classes, such as [Point, Color], not {types!r}")
    return tuple(types)


def _shown(key: object) -> str:
    """Return a key as it is shown in errors: short, and without a call of anybody's code."""
    if isinstance(key, str) and type(key) is str:
        return repr(key) if len(key) <= 40 else f"{key[:40]!r}…"
    if isinstance(key, int) and type(key) is int and key.bit_length() <= 64:
        return repr(key)
    return f"a {type(key).__qualname__}"


@define(slots=False, eq=False)
class PlainCodec(Codec):
    """A data-only codec; a subclass says how trees become bytes.

    Parameters
    ----------
    types :
        Classes whose instances can be kept.
    """

    #: Whether bytes, and numbers that are not finite, are part of a tree.
    _binary: ClassVar[bool]

    types: tuple[type, ...] = field(default=(), kw_only=True, converter=_as_types)

    def __attrs_post_init__(self) -> None:
        records = [record_of(kind) for kind in self.types]
        self._records: dict[str, Record] = {}
        for record in records:
            if self._records.setdefault(record.name, record).kind is not record.kind:
                raise InvalidArgumentError(f"types has two classes of the name {record.name}: rename one")
        kinds = KINDS if self._binary else (*KINDS, *TEXTUAL)
        self._readers: dict[str, Callable[[Any], Any]] = {kind.tag: kind.together for kind in kinds}
        self._readers |= {"$enum": self._read_record, "$object": self._read_record}
        self._writers: dict[type, Callable[[Any, int], Any]] = {kind.type: self._writer(kind) for kind in kinds}
        self._writers |= dict.fromkeys((tuple, set, frozenset), self._write_items)
        self._writers |= {list: self._write_list, dict: self._write_dict}
        self._writers |= {record.kind: self._record_writer(record) for record in records}

    def __getstate__(self) -> dict[str, object]:
        return {"types": self.types}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.types = state["types"]
        self.__attrs_post_init__()

    @abstractmethod
    def _to_bytes(self, tree: Any) -> bytes:
        """Return a tree as bytes."""

    @abstractmethod
    def _from_bytes(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the tree of bytes, each object replaced by what :meth:`_read_object` makes of it."""

    def dumps(self, value: object) -> bytes:
        """Return the value as bytes."""
        try:
            return self._to_bytes(self._write(value, 0))
        except Refused as err:
            raise EncodeError(err.told()) from None
        except MemoryError:
            raise
        except Exception as err:
            raise EncodeError(
                f"a {type(value).__qualname__} can't be written by {type(self).__name__} ({told(err)})"
            ) from err

    def loads(self, data: bytes | bytearray | memoryview) -> Any:
        """Return the value of the bytes; nothing that they name is imported or called."""
        try:
            return self._from_bytes(data)
        except (MemoryError, DecodeError):
            raise
        except Exception as err:
            raise DecodeError(f"these bytes are no {self.id} of a value ({told(err)})") from err

    # Writing: a value becomes a tree.

    def _write(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return value if value.isascii() or not _SURROGATE(value) else {"$str": self._write(_STR(value), depth)}
        if kind is int:
            return value if -(2**63) <= value < 2**64 else {"$int": _INT(value)}
        if kind in _ATOMS or (kind is float and (self._binary or isfinite(value))):
            return value
        if kind is bytes and self._binary:
            return value
        writer = self._writers.get(kind)
        if writer is None:
            raise self._unknown(value)
        if depth >= MAX_DEPTH and kind not in _LEAVES:
            raise Refused(value, f"lies deeper than {MAX_DEPTH} containers: keep its parts under keys of their own")
        return writer(value, depth)

    def _write_list(self, value: list[Any], depth: int) -> list[Any]:
        items = value.copy()
        kinds = set(map(type, items))
        # Most long lists are of one type, and need no look at each item by itself.
        if kinds <= _ATOMS or (kinds == {float} and (self._binary or all(map(isfinite, items)))):
            return items
        if (kinds == {int} and min(items) >= -(2**63) and max(items) < 2**64) or (
            kinds == {str} and all(map(str.isascii, items))
        ):
            return items
        tree: list[Any] = []
        try:
            for item in items:
                tree.append(self._write(item, depth + 1))
        except Refused as err:
            err.inside(value, f"[{len(tree)}]")
            raise
        return tree

    def _write_items(self, value: Any, depth: int) -> dict[str, Any]:
        if type(value) is not tuple:
            self._check_hashes(value)
        tree: list[Any] = []
        try:
            for item in value:
                tree.append(self._write(item, depth + 1))
        except Refused as err:
            err.inside(value, f"[{len(tree)}]" if type(value) is tuple else "{…}")
            raise
        return {f"${type(value).__name__}": tree}

    def _write_dict(self, value: dict[Any, Any], depth: int) -> dict[str, Any]:
        items = list(value.items())
        keys = [key for key, _ in items]
        plain = set(map(type, keys)) <= {str} and (all(map(str.isascii, keys)) or not any(map(_SURROGATE, keys)))
        plain = plain and not (len(keys) == 1 and keys[0][:1] == "$")
        if not plain:
            self._check_hashes(value)
        tree: list[Any] = []
        key: Any = None
        try:
            for key, item in items:
                tree.append((key if plain else self._write_key(key, depth + 1), self._write(item, depth + 1)))
        except Refused as err:
            err.inside(value, f"[{_shown(key)}]")
            raise
        return dict(tree) if plain else {"$dict": [list(pair) for pair in tree]}

    def _write_key(self, key: Any, depth: int) -> Any:
        try:
            return self._write(key, depth)
        except Refused as err:
            err.inside(None, " (the key)")
            raise

    def _check_hashes(self, value: Any) -> None:
        try:
            check_hashes(value)
        except ValueError as err:
            raise self._refused(value, err) from None

    def _writer(self, kind: Kind) -> Callable[[Any, int], Any]:
        def write(value: Any, depth: int) -> dict[str, Any]:
            try:
                # What these are made of lies a few containers deep at most, and is not counted.
                return {kind.tag: self._write(kind.apart(value), 0)}
            except ValueError as err:
                raise self._refused(value, err) from None
            except Refused as err:
                # Of these, only times hold something that may be of any type.
                err.place = [".tzinfo"]
                raise

        return write

    def _record_writer(self, record: Record) -> Callable[[Any, int], Any]:
        def write(value: Any, depth: int) -> dict[str, Any]:
            try:
                parts = record.apart(value)
            except ValueError as err:
                raise self._refused(value, err) from None
            if type(parts) is not dict:
                return {record.tag: [record.name, self._write(parts, 0)]}
            tree, name = {}, ""
            try:
                for name, item in parts.items():
                    tree[name] = self._write(item, depth + 1)
            except Refused as err:
                err.inside(value, f".{name}")
                raise
            return {record.tag: [record.name, tree]}

        return write

    def _refused(self, value: object, why: ValueError) -> Refused:
        return Refused(value, f"is a {type(value).__qualname__} that {type(self).__name__} can't keep: {why}")

    def _unknown(self, value: object) -> Refused:
        kind = type(value)
        if is_record(kind):
            what = f"register its class: {type(self).__name__}(types=[{kind.__qualname__}])"
        else:
            base = next((base for base in kind.__mro__[1:] if base in _KEPT), None)
            convert = "" if base is None else f"make a {base.__name__} of it, "
            what = f"{convert}leave it out, or use a codec that keeps any object, such as PickleCodec()"
        return Refused(value, f"is a {kind.__qualname__}, which {type(self).__name__} does not keep: {what}")

    # Reading: objects are replaced from the inside out, so that what a tag holds has been read already.

    def _read_object(self, pairs: list[tuple[Any, Any]]) -> Any:
        if len(pairs) == 1:
            ((key, payload),) = pairs
            if key[:1] == "$":
                return self._read_tagged(key, payload)
        value = dict(pairs)
        if len(value) != len(pairs):
            raise DecodeError("an object has the same key twice")
        return value

    def _read_tagged(self, tag: str, payload: Any) -> Any:
        reader = self._readers.get(tag)
        if reader is None:
            raise DecodeError(f"the tag {tag[:40]!r} means nothing here: was this written by a newer zpersist?")
        try:
            return reader(payload)
        except (MemoryError, DecodeError):
            raise
        except Exception as err:
            raise DecodeError(f"what follows the tag {tag!r} is wrong ({told(err)})") from err

    def _read_record(self, payload: Any) -> Any:
        if type(payload) is not list or len(payload) != 2 or type(payload[0]) is not str:
            raise ValueError("it is not the name of a class, and what its instance is made of")
        name, parts = payload
        record = self._records.get(name)
        if record is None:
            raise DecodeError(
                f"an instance of {name[:200]!r} needs its class: {type(self).__name__}(types=[…]), "
                f"under the module and name that it had when it was written"
            )
        return record.together(parts)
