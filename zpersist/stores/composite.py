"""Objects whose large parts lie in files of their own, so that only some of them need be loaded.

The file of the object names its groups, and the dump that wrote each, by a token.  A dump first writes the new groups
beside the old ones, where they *wait*; then it replaces the object, and with that all has happened; then it puts the
groups in the place of the old ones.  A reader takes of the two the one that the object names.  So what is in no object,
or not of the dump that the object names, is a leftover.
"""

from __future__ import annotations

import copy
import os
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from os.path import isfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

from zpersist.codecs.told import told
from zpersist.damage import Damage, Repair, is_lost, is_pickle
from zpersist.errors import (
    CodecError,
    CorruptValueError,
    DecodeError,
    InvalidArgumentError,
    MissingDataKeysError,
    ZPersistError,
)
from zpersist.files.atomic import Buffer, make_directory, storage_error, sync_directory
from zpersist.files.locks import directory_lock
from zpersist.files.paths import as_path
from zpersist.stash import MISSING, Missing
from zpersist.stores.directory import DirectoryStash
from zpersist.stores.group import Groups, GroupStash, check_groups

__all__ = ["DirectoryCompositeStash"]

V = TypeVar("V")

Group = tuple[str, dict[str, Any]]


class _Context(NamedTuple):
    """What the file of an object holds beside the object itself."""

    rest: Any
    attribute: str
    ordered: bool
    order: list[str]
    #: Of each group, by its name, the dump that wrote it.
    tokens: dict[str, str]


class DirectoryCompositeStash(DirectoryStash[V]):
    """Keeps objects with a ``dict`` attribute, and the attribute's parts in files of their own.

    The object lies in ``<path>/inst``, each group of the attribute's keys in ``<path>/comp/<group>``.  An object
    that was loaded with some groups only can be dumped again: the groups it lacks stay as they are.

    Parameters
    ----------
    path :
        The directory.
    groups :
        Sets of the attribute's keys; each key in exactly one.
    attribute_name :
        The attribute that is split; its value is a ``dict`` or an ``OrderedDict`` whose order is kept.
    load_keys :
        Load only the groups that have one of these keys, and of these only the keys named; default: all.
    options :
        Those of :class:`~zpersist.DirectoryStash`.

    Raises
    ------
    MissingDataKeysError
        By ``dump``: the attribute has keys that no group names, or lacks some.
    InvalidArgumentError
        By ``load``, and by ``dump`` of an object that lacks groups: it was written with other groups, or with another
        attribute.  A ``dump`` of a whole object takes the place of such a one.
        By ``dump``: the attribute is no ``dict``, or the object can't be taken apart.
    CorruptValueError
        By ``load``: a file is damaged, or one of a group is missing.
    CodecMismatchError, SealError, FormatVersionError, DecodeError
        By ``load``, and by ``dump`` of an object that lacks groups, or over one whose last dump was killed in its last
        step: it can only be read by somebody else.

    Notes
    -----
    *Concurrency*: readers and writers of one host wait for each other; ``add`` and ``update`` are not offered.
    *Durability*: as :class:`~zpersist.DirectoryStash`: a dump that is cut short leaves the old object whole, or the new
    one.  What it leaves behind is no part of any object, and goes with the next dumps, or by ``clear``.
    *Trust*: as :class:`~zpersist.DirectoryStash`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> stash = DirectoryCompositeStash("batches", ({"ids"}, {"vectors"}), "data", load_keys={"ids"})
    >>> stash.dump("1", SimpleNamespace(name="a", data={"ids": [1], "vectors": [0.5]}))
    >>> stash.load("1")
    namespace(name='a', data={'ids': [1]})
    """

    _movable = False
    _locked = True
    INSTANCE_DIRECTORY_NAME: ClassVar[str] = "inst"
    COMPOSITE_DIRECTORY_NAME: ClassVar[str] = "comp"

    def __init__(
        self,
        path: str | os.PathLike[str],
        groups: Iterable[Collection[str]],
        attribute_name: str,
        load_keys: Collection[str] | None = None,
        **options: Any,
    ) -> None:
        self._top = as_path(path)
        self._options = options
        DirectoryStash.__init__(self, self._top / self.INSTANCE_DIRECTORY_NAME, **options)
        self.attribute_name = attribute_name
        self.load_keys = None if load_keys is None else frozenset(load_keys)
        self.groups = groups
        unknown = (self.load_keys or frozenset()) - set(self._stash_by_attribute)
        if unknown:
            raise InvalidArgumentError(f"load_keys {sorted(unknown)} are in no group")

    @property
    def groups(self) -> tuple[frozenset[str], ...]:
        """The groups of keys."""
        return self._groups

    @groups.setter
    def groups(self, groups: Iterable[Iterable[str]]) -> None:
        self._groups = check_groups(groups)
        folder = f"{os.path.dirname(self._root)}/{self.COMPOSITE_DIRECTORY_NAME}"
        self._written = Groups(self._root, folder, self._groups, self._options)
        self._stash_by_group = self._written.by_name
        self._stash_by_attribute = self._written.by_key

    def _to_composite(self, data: dict[str, Any]) -> tuple[list[str], list[Group]]:
        unknown = set(data) - set(self._stash_by_attribute)
        split: dict[str, dict[str, Any]] = {}
        for key, value in data.items():
            if key not in unknown:
                split.setdefault(self._stash_by_attribute[key].group_name, {})[key] = value
        halves = {
            key
            for group in self._groups
            if not group.isdisjoint(data) and not group <= set(data)
            for key in group - set(data)
        }
        if unknown or halves:
            raise MissingDataKeysError(unknown | halves)
        return list(data), list(split.items())

    def dump(self, name: str, inst: V) -> None:
        """Keep an object; groups that it lacks altogether stay as they are."""
        data, rest = self._taken_apart(name, inst)
        make_directory(self._root, durability=self.durability)
        with directory_lock(self._root, shared=False):
            if not self._swept:
                self._written.settle(self._tokens)
            whole = self._stash_by_attribute.keys() <= set(data)
            before = self._before(name, whole)
            base = None if whole else before
            if base is not None:
                data = self._completed(name, data, base.tokens)
            order, groups = self._to_composite(data)
            token = uuid.uuid4().hex
            tokens = {group: token for group, _ in groups}
            if base is not None:
                tokens = {**base.tokens, **tokens}
                order += [key for key in base.order if key not in data]
            lacking = [key for key, stash in self._stash_by_attribute.items() if stash.group_name not in tokens]
            if lacking:
                raise MissingDataKeysError(lacking)
            context = _Context(rest, self.attribute_name, isinstance(data, OrderedDict), order, tokens)
            self._write(name, context, token, groups, {} if before is None else before.tokens)

    def _taken_apart(self, name: str, inst: V) -> tuple[dict[str, Any], V]:
        data = getattr(inst, self.attribute_name, MISSING)
        if not isinstance(data, dict):
            there = "is not there" if data is MISSING else f"is a {type(data).__qualname__}"
            raise InvalidArgumentError(
                f"{name!r} can't be kept in {self._top}: the attribute {self.attribute_name!r} of the "
                f"{type(inst).__qualname__} {there}; set it to a dict with the keys that the groups name"
            )
        try:
            rest = copy.copy(inst)
        except Exception as err:
            raise InvalidArgumentError(
                f"{name!r} can't be kept in {self._top}: copy.copy() of the {type(inst).__qualname__}, to set "
                f"{self.attribute_name!r} apart, has failed ({told(err)}); give it a __copy__() that works"
            ) from err
        self._set_data(name, rest, None, InvalidArgumentError)
        return data, rest

    def _set_data(self, name: str, inst: V, data: dict[str, Any] | None, error: type[ZPersistError]) -> None:
        try:
            object.__setattr__(inst, self.attribute_name, data)
        except (AttributeError, TypeError) as err:
            raise error(
                f"the attribute {self.attribute_name!r} of {name!r} in {self._top} can't be set ({told(err)}); make it "
                f"a plain attribute of {type(inst).__qualname__}, or one of its slots"
            ) from err

    def _write(self, name: str, context: _Context, token: str, groups: list[Group], before: dict[str, str]) -> None:
        # All is encoded before anything is written: what can't be encoded leaves the old object whole.
        ready: list[tuple[GroupStash, list[Buffer]]] = []
        for group, part in groups:
            stash = self._stash_by_group[group]
            ready.append((stash, stash._parts(stash._file(name), name, (token, part))))
        path = self._file(name)
        parts = self._parts(path, name, cast(V, tuple(context)))
        # Groups that it has no more, for it was written with others.
        stale = [stash for stash in self._written.written() if stash.group_name not in context.tokens]
        for stash, _ in ready:
            # Of a dump that was cut short after it had replaced the object.
            stash.settle(name, before.get(stash.group_name))
        for stash, group_parts in ready:
            stash._put(stash.waiting(name), group_parts, os.replace)
        self._put(path, parts, os.replace)
        for stash, _ in ready:
            stash.put_in_place(name)
        for stash in stale:
            stash.delete(name)

    def _before(self, name: str, whole: bool) -> _Context | None:
        """Return what the object is that a dump replaces; a whole one can replace what can't be read."""
        try:
            before = self._context(name)
        except (CodecError, CorruptValueError) as err:
            if not whole:
                raise
            # Nobody here can tell whether what waits is of the object; for who can read that it may be all there is.
            if not is_lost(err) and self._written.waits(name):
                err.add_note(
                    f"groups of {name!r} wait beside the old ones, for a dump of it was killed: dump it once by what "
                    f"can read it, or delete it, before it is dumped by this stash"
                )
                raise
            return None
        if before is not None and not whole:
            self._check_settings(name, before)
        return before

    def _completed(self, name: str, data: dict[str, Any], tokens: dict[str, str]) -> dict[str, Any]:
        """Return the data with those keys that ``load_keys`` left out of groups it loaded."""
        left_out = set() if self.load_keys is None else set(self._stash_by_attribute) - self.load_keys
        kept: dict[str, Any] = {}
        for group in self._groups:
            lacking = (group - set(data)) & left_out
            if lacking and not group.isdisjoint(data):
                stash = self._stash_by_attribute[next(iter(group))]
                part = stash.of_dump(name, tokens[stash.group_name], mapped=self.mmap)
                kept.update((key, part[key]) for key in lacking)
        if not kept:
            return data
        pairs = [*data.items(), *kept.items()]
        return OrderedDict(pairs) if isinstance(data, OrderedDict) else dict(pairs)

    def _context(self, name: str) -> _Context | None:
        context: Any = DirectoryStash._fetch(self, name)
        if context is MISSING:
            return None
        if not _is_context(context):
            raise DecodeError(f"{self._file(name)} holds no object of a composite: read it with what wrote it")
        return _Context(*context)

    def _tokens(self, name: str) -> dict[str, str]:
        context = self._context(name)
        return {} if context is None else context.tokens

    def _check_settings(self, name: str, context: _Context) -> None:
        written = context.attribute, sorted(context.tokens)
        if written != (self.attribute_name, sorted(self._stash_by_group)):
            raise InvalidArgumentError(
                f"{name!r} in {self._top} was written with the attribute {written[0]!r} and the groups {written[1]}, "
                f"not {self.attribute_name!r} and {sorted(self._stash_by_group)}: open it with those, or delete it, "
                f"or dump all of it again"
            )

    def _fetch(self, name: str) -> V | Missing:
        try:
            with directory_lock(self._root, shared=True):
                context = self._context(name)
                if context is None:
                    return MISSING
                self._check_settings(name, context)
                data = self._from_composite(name, context.tokens)
        except FileNotFoundError:
            return MISSING
        pairs = [(key, data[key]) for key in context.order if key in data]
        inst: V = context.rest
        self._set_data(name, inst, OrderedDict(pairs) if context.ordered else dict(pairs), DecodeError)
        return inst

    def _from_composite(self, name: str, tokens: dict[str, str]) -> dict[str, Any]:
        wanted = set(self._stash_by_attribute) if self.load_keys is None else self.load_keys
        data: dict[str, Any] = {}
        for group in {self._stash_by_attribute[key].group_name for key in wanted}:
            part = self._stash_by_group[group].of_dump(name, tokens[group], mapped=self.mmap)
            data.update((key, value) for key, value in part.items() if key in wanted)
        return data

    def delete(self, name: str) -> bool:
        """Remove an object with all its groups, and return whether it was there."""
        path = self._file(name)
        try:
            with directory_lock(self._root, shared=False):
                stashes = tuple(self._written.written())
                # The object first: groups without one are not seen, and the next dump writes over them.
                there = _unlink(path)
                if there and self.durability == "fsync":
                    sync_directory(os.path.dirname(path))
                for stash in stashes:
                    stash.delete(name)
        except FileNotFoundError:
            return False
        return there

    def _cleared(self) -> None:
        super()._cleared()
        self._written.clear()

    # damage

    def verify(self, *, progress: bool = False, repair: Repair | None = None) -> Iterator[Damage]:
        """Read every object whole, with all its groups; an object is repaired as a whole.

        What dumps and deletions left behind that were cut short is no damage; with ``repair`` it is put away too.
        """
        yield from super().verify(progress=progress, repair=repair)
        if repair is not None:
            self._written.put_orphans_away(repair)
            if os.path.isdir(self._root):
                with directory_lock(self._root, shared=False):
                    self._written.settle(self._tokens)

    def _verify_one(self, name: str) -> None:
        with directory_lock(self._root, shared=True):
            self._verify_whole(name)

    def _verify_whole(self, name: str) -> None:
        super()._verify_one(name)
        context = self._context(name)
        if context is None:
            return
        self._check_settings(name, context)
        self._written.verify(name, context.tokens)

    def _repair(self, name: str, repair: Repair) -> bool:
        def is_lost_in(path: str) -> bool:
            try:
                self._verify_whole(name)
            except ZPersistError as err:
                files = path, *self._written.files_of(name)
                # A pipe would be waited for; what is no file is nobody's.
                return is_lost(err) and not any(is_pickle(Path(file).read_bytes()) for file in files if isfile(file))
            return False

        if not self._put_away(self._file(name), repair, is_lost_in):
            return False
        self._written.put_orphans_away(repair, name)
        return True

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # Not as it was given: the working directory may be another one by now.
        top = os.path.dirname(self._root)
        return _restore, (type(self), top, self._groups, self.attribute_name, self.load_keys, self._options)


def _is_context(context: object) -> bool:
    if not isinstance(context, tuple) or len(context) != len(_Context._fields):
        return False
    _, attribute, ordered, order, tokens = context
    return (
        isinstance(attribute, str)
        and isinstance(ordered, bool)
        and isinstance(order, list)
        and isinstance(tokens, dict)
        and all(isinstance(text, str) for text in (*order, *tokens, *tokens.values()))
    )


def _unlink(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as err:
        raise storage_error(err, "can not delete", path) from err
    return True


def _restore(
    kind: type[DirectoryCompositeStash[Any]],
    path: str,
    groups: tuple[frozenset[str], ...],
    attribute_name: str,
    load_keys: frozenset[str] | None,
    options: dict[str, Any],
) -> DirectoryCompositeStash[Any]:
    stash = kind.__new__(kind)
    DirectoryCompositeStash.__init__(stash, path, groups, attribute_name, load_keys, **options)
    return stash
