"""The files of the groups of a composite: each has a place, and beside it one where a new one waits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from attrs import define, field

from zpersist.damage import QUARANTINE, Repair, is_lost
from zpersist.errors import (
    CodecError,
    CorruptValueError,
    DecodeError,
    InvalidArgumentError,
    StorageError,
    ZPersistError,
)
from zpersist.files.atomic import make_directory, storage_error, sync_directory
from zpersist.files.envelope import WrongTagError, read_file
from zpersist.files.layout import HOUSE
from zpersist.files.quarantine import put_away
from zpersist.files.sweep import sweep
from zpersist.keys import MAX_NAME, check_str_key, digest, from_file_name, is_digested, to_file_name
from zpersist.stores.directory import DirectoryStash

__all__ = ["GroupStash", "Groups", "check_groups"]

logger = logging.getLogger(__name__)

Written = tuple[str, dict[str, Any]]

#: What the name of a file that waits starts with; no file of a key has such a name.
_WAITING = ".+"


def check_groups(groups: Iterable[Iterable[str]]) -> tuple[frozenset[str], ...]:
    """Return the groups as sets; raise unless each key is in exactly one."""
    sets = tuple(frozenset([group]) if isinstance(group, str) else frozenset(group) for group in groups)
    names = [name for group in sets for name in group]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgumentError(f"the keys {twice} are in more than one group: each belongs in exactly one")
    if not sets or not all(sets):
        raise InvalidArgumentError(f"groups must be sets of keys, at least one and none empty, not {groups!r}")
    return sets


def _group_name_of(keys: Iterable[str]) -> str:
    """Return the name of the group of these keys, which no other group has."""
    # A key with a dash in it must not make two groups one.
    name = "-".join(to_file_name(check_str_key(key)).replace("-", "%2D") for key in sorted(keys))
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME // 2]}%~{digest(name).hex()}"


def _names_in(folder: str) -> list[str]:
    """Return the names in a directory, none if there is no such directory."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise storage_error(err, "can not list", folder) from err


class GroupFile(NamedTuple):
    """A file of a group."""

    path: str
    #: Where the file of its object lies, below the directory of the objects.
    place: str
    #: The key of its object; ``None`` if that does not lie in the name.
    key: str | None


@define(slots=False, eq=False)
class GroupStash(DirectoryStash[Written]):
    """The values of one group: with each the token of the dump that wrote it.

    To be used with the directory of the objects locked.
    """

    group_name: str = field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        # All groups belong to one composite, by whatever links it is reached.
        self._place = f"{os.path.realpath(os.path.dirname(self._root))}\0group {self.group_name} {self.pattern}"

    def waiting(self, name: str) -> str:
        """Return the file in which a new group lies until its object has been replaced; no key has such a name."""
        folder, file = os.path.split(self._file(name))
        return f"{folder}/{_WAITING}{file}"

    def files(self, *, waiting: bool = False) -> Iterator[GroupFile]:
        """Iterate over the files of all objects; with ``waiting`` only over those that wait."""
        for house in _names_in(self._root) if self.fan_out else [""]:
            for name in _names_in(f"{self._root}/{house}") if house != HOUSE else ():
                file = name.removeprefix(_WAITING)
                if file == name and (waiting or name[0] == "."):
                    continue
                place = f"{house}/{file}".lstrip("/")
                stem = file.removeprefix(self._layout.prefix).removesuffix(self._layout.suffix)
                key = from_file_name(stem)
                path = f"{self._root}/{place}"
                ours = is_digested(stem) if key is None else self._file(key) == path
                if ours and file == self.pattern.format(name=stem):
                    yield GroupFile(f"{os.path.dirname(path)}/{name}", place, key)

    def of_dump(self, name: str, token: str, *, mapped: bool) -> dict[str, Any]:
        """Return the values that a dump wrote, whether they wait or not; damage to other ones is of no account.

        Raises
        ------
        CorruptValueError
            They are not there.
        ZPersistError
            What is there can't be read.
        """
        error: ZPersistError | None = None
        for path in (self._file(name), self.waiting(name)):
            try:
                written = self._written(path, name, mapped)
            except ZPersistError as err:
                error = error or err
            else:
                if written is not None and written[0] == token:
                    return written[1]
        self._layout.settle()
        raise error or CorruptValueError(
            f"group {self.group_name!r} of {name!r} is missing in {self._root}, or was written by a dump that was cut "
            f"short; dump all of {name!r} again"
        )

    def _written(self, path: str, name: str, mapped: bool) -> Written | None:
        try:
            written = read_file(
                path, self.codec.bound(self._place, name), mapped=mapped, tag=self._layout.tag(self._file(name), name)
            )
        except FileNotFoundError:
            return None
        except WrongTagError as err:
            raise self._misplaced(path, name, err) from err
        if not (isinstance(written, tuple) and list(map(type, written)) == [str, dict]):
            raise DecodeError(f"{path} holds no group of a composite; look at it, then delete it")
        return written

    def _is_of(self, path: str, name: str, token: str | None) -> bool:
        try:
            written = self._written(path, name, self.mmap)
        except (CodecError, CorruptValueError) as err:
            logger.warning("it is left out of account: %s", err)
            return False
        return written is not None and written[0] == token

    def settle(self, name: str, token: str | None) -> None:
        """Leave nothing waiting: put it in its place if this dump wrote it, delete it if it is of no account."""
        path, waiting = self._file(name), self.waiting(name)
        if not os.path.lexists(waiting):
            return
        if self._is_of(waiting, name, token):
            try:
                os.replace(waiting, path)
            except OSError as err:
                raise storage_error(err, "can not write (what was there is untouched)", path) from err
            if self.durability == "fsync":
                sync_directory(os.path.dirname(path))
        elif token is None or self._is_of(path, name, token):
            self._discard(waiting)

    def put_in_place(self, name: str) -> None:
        """Put what waits in its place; if that fails it is found where it is."""
        try:
            os.replace(self.waiting(name), self._file(name))
        except OSError as err:
            logger.warning("%s stays there, where it is found as well: %s", self.waiting(name), err)
            return
        if self.durability == "fsync":
            # Else the next one that waits could be on the disk before this one is in its place.
            sync_directory(os.path.dirname(self._file(name)))

    def files_of(self, name: str) -> tuple[GroupFile, GroupFile]:
        """Return the files of an object: the one in its place, and the one that waits."""
        place = os.path.relpath(self._file(name), self._root)
        return GroupFile(self._file(name), place, name), GroupFile(self.waiting(name), place, name)

    def sweep(self) -> None:
        """Delete the temporary files of dead writers."""
        sweep(self._layout.workshop or self._root)

    def delete(self, name: str) -> bool:
        """Delete what there is of an object that is gone; what can't be deleted is in nobody's way."""
        there, waits = (self._discard(file.path) for file in self.files_of(name))
        return there or waits

    def _discard(self, path: str) -> bool:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as err:
            logger.warning("%s can not be deleted; it belongs to no object any more: %s", path, err)
            return False
        return True


class Groups:
    """All groups of a composite: those of its settings, and those that it was written with before.

    Parameters
    ----------
    root :
        The directory of the objects.
    folder :
        That of the groups.
    sets :
        The keys of each group.
    options :
        Of each stash.
    """

    def __init__(self, root: str, folder: str, sets: Iterable[frozenset[str]], options: dict[str, Any]) -> None:
        self._root = root
        self._folder = folder
        self._options = options
        self.by_name: dict[str, GroupStash] = {}
        self.by_key: dict[str, GroupStash] = {}
        for keys in sets:
            name = _group_name_of(keys)
            stash = self.by_name[name] = self._make(name)
            self.by_key.update(dict.fromkeys(keys, stash))

    def _make(self, name: str) -> GroupStash:
        return GroupStash(f"{self._folder}/{name}", group_name=name, **self._options)

    def written(self) -> Iterator[GroupStash]:
        """Iterate over the groups that have a directory."""
        for name in _names_in(self._folder):
            if name[0] != ".":
                stash = self.by_name.get(name)
                yield self._make(name) if stash is None else stash

    def verify(self, name: str, tokens: dict[str, str]) -> None:
        """Read the groups of an object whole, or raise what is wrong with them."""
        errors: list[ZPersistError] = []
        for group, token in tokens.items():
            try:
                self.by_name[group].of_dump(name, token, mapped=False)
            except ZPersistError as err:
                errors.append(err)
        if errors:
            # What somebody can read comes first: then it is not put away.
            first, *others = sorted(errors, key=is_lost)
            for other in others:
                first.add_note(f"and: {other}")
            raise first

    def waits(self, name: str) -> bool:
        """Return whether groups of an object wait."""
        return any(os.path.lexists(stash.waiting(name)) for stash in self.written())

    def files_of(self, name: str) -> list[str]:
        """Return the files of an object that are there."""
        files = (file.path for stash in self.written() for file in stash.files_of(name))
        return [path for path in files if os.path.lexists(path)]

    def settle(self, tokens_of: Callable[[str], dict[str, str]]) -> None:
        """Settle what waits since a dump was cut short; to be used with the directory of the objects locked.

        Parameters
        ----------
        tokens_of :
            Returns the dumps that wrote the groups of an object.
        """
        for stash in self.written():
            if stash.group_name not in self.by_name:
                # The others are swept when they are written.
                stash.sweep()
            # A key that lies in its file is settled by the next dump of it.
            for key in [file.key for file in stash.files(waiting=True) if file.key is not None]:
                try:
                    stash.settle(key, tokens_of(key).get(stash.group_name))
                except (CodecError, CorruptValueError, StorageError) as err:
                    logger.warning("%s stays there: %s", stash.waiting(key), err)

    def put_orphans_away(self, repair: Repair, name: str | None = None) -> None:
        """Put away, file by file, what belongs to no object: of one key, or of all."""
        for stash in self.written():
            for file in tuple(stash.files() if name is None else stash.files_of(name)):
                self._put_orphan_away(stash, file.path, f"{self._root}/{file.place}", repair)

    def _put_orphan_away(self, stash: GroupStash, path: str, inst: str, repair: Repair) -> None:
        def is_orphan(path: str) -> bool:
            return os.path.lexists(path) and not os.path.lexists(inst)

        if is_orphan(path):
            make_directory(self._root, durability=stash.durability)
            folder = f"{stash._root}/{HOUSE}/{QUARANTINE}"
            put_away(path, repair, is_orphan, root=self._root, folder=folder, durability=stash.durability)

    def clear(self) -> None:
        """Delete what belongs to no object, and temporary files of dead writers."""
        self.put_orphans_away("drop")
        for stash in self.written():
            stash.sweep()
