"""Directories in which something unexpected lies."""

from __future__ import annotations

import os

import pytest

from zpersist import CorruptValueError, DirectoryStash, PersistedWork, SqliteStash, StorageError, persisted
from zpersist.testing.reading import in_child


def test_what_the_function_of_an_update_raises_is_its_own(tmp_path):
    stash = DirectoryStash(tmp_path / "data")
    stash["a"] = 1
    for error in (FileExistsError(17, "mine"), FileNotFoundError(2, "mine")):

        def fn(value, error=error):
            raise error

        for key in ("a", "b"):
            with pytest.raises(type(error), match="mine"):
                stash.update(key, fn)
    assert dict(stash) == {"a": 1}


def test_a_link_to_nothing_in_the_place_of_a_value(tmp_path):
    stash = DirectoryStash(tmp_path)
    os.symlink("/nowhere/at/all", tmp_path / "b.dat")
    assert "b" not in stash
    for write in (lambda: stash.add("b", 1), lambda: stash.update("b", lambda value: 1)):
        with pytest.raises(StorageError, match=r"symbolic link to nothing; delete it.*b\.dat"):
            write()
    stash["b"] = 2
    assert dict(stash) == {"b": 2}


def test_a_pipe_in_the_place_of_a_value_does_not_block(tmp_path):
    stash = DirectoryStash(tmp_path)
    os.mkfifo(tmp_path / "b.dat")
    assert "b" not in stash
    with pytest.raises(CorruptValueError, match=r"b\.dat"):
        stash.get("b")


def test_another_users_lock_file_spoils_nothing(tmp_path):
    if os.getuid():
        pytest.skip("needs another user")
    os.chmod(tmp_path, 0o1777)
    for parent in tmp_path.parents[:3]:
        os.chmod(parent, 0o755)

    class Owner:
        def __init__(self):
            self._w = PersistedWork(tmp_path / "w.dat", self)

        @persisted("_w")
        def w(self):
            return 1

    owner = Owner()
    owner.w()
    owner._w.clear()
    stash = SqliteStash(tmp_path / "data.db")
    with stash._flight("a"):
        pass

    def as_another():
        os.setgid(1000)
        os.setuid(1000)
        with pytest.raises(StorageError, match=r"can not open the lock file.*\.w\.dat\.lock"):
            Owner().w()
        with pytest.raises(StorageError, match=r"can not open the lock file.*\.data\.db\.lock"), stash._flight("a"):
            pass

    assert in_child(as_another) == 0
    assert not (tmp_path / "w.dat").exists()
    assert Owner().w() == 1
