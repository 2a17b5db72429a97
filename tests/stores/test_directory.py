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


@pytest.mark.parametrize("fan_out", [0, 16])
def test_many_values_share_the_sync_of_their_directory(tmp_path, monkeypatch, fan_out):
    stash = DirectoryStash(tmp_path / "data", durability="fsync", fan_out=fan_out)
    stash["warm"] = 0
    synced = []
    real = os.fsync

    def watched(fd):
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    stash.dump_many((str(n), n) for n in range(40))
    folders = [path for path in synced if os.path.isdir(path) and ".zpersist" not in path]
    holding = {os.path.dirname(stash.key_to_path(str(n))) for n in range(40)}
    # Once each, and that of the sub-directories when they are made.
    assert {folder: folders.count(folder) for folder in holding} == dict.fromkeys(holding, 1)
    # The files have names of their own by now.
    assert len([path for path in synced if path not in folders]) >= 40
    synced.clear()

    def breaks():
        yield "a", 1
        yield "b", 2
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        stash.dump_many(breaks())
    assert {os.path.dirname(stash.key_to_path(key)) for key in "ab"} <= set(synced)
    assert (stash["a"], stash["b"]) == (1, 2)
