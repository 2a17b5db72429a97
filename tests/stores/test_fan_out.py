"""A directory whose files are spread over sub-directories."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from zpersist import (
    CorruptValueError,
    DirectoryCompositeStash,
    DirectoryStash,
    InvalidArgumentError,
    PickleCodec,
    SignedCodec,
    StorageError,
    fill,
)
from zpersist.files import layout
from zpersist.stores import directory
from zpersist.testing import StashSuite

fork = multiprocessing.get_context("fork")


class TestFannedOut(StashSuite):
    encodes = True

    def make(self, path):
        return DirectoryStash(path / "data", fan_out=16)

    reopen = make


class TestFannedOutWithFsync(StashSuite):
    encodes = True

    def make(self, path):
        return DirectoryStash(path / "data", "x-{name}", fan_out=4096, durability="fsync")

    reopen = make


def files_in(path):
    return sorted(str(file.relative_to(path)) for file in Path(path).rglob("*.dat"))


@pytest.mark.parametrize("fan_out", [16, 256, 4096])
def test_keys_are_spread(tmp_path, fan_out):
    stash = DirectoryStash(tmp_path / "data", fan_out=fan_out)
    stash.dump_many((f"key-{n}", n) for n in range(500))
    houses = {path.parent.name for path in stash.path.rglob("*.dat")}
    assert {len(house) for house in houses} == {{16: 1, 256: 2, 4096: 3}[fan_out]}
    assert len(houses) > min(fan_out, 500) * 0.6
    again = DirectoryStash(tmp_path / "data", fan_out=fan_out)
    assert dict(again) == {f"key-{n}": n for n in range(500)}
    assert len(again) == 500
    again.clear()
    assert len(again) == 0
    again["x"] = 1
    assert DirectoryStash(tmp_path / "data", fan_out=fan_out)["x"] == 1
    assert not list(stash.path.rglob("*.tmp"))


def test_files_that_are_not_ours_are_left_alone(tmp_path):
    stash = DirectoryStash(tmp_path, fan_out=16)
    stash["a"] = 1
    for name in ("notes.txt", "README", "zz"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.dat").write_text("mine")
    (tmp_path / "f").mkdir(exist_ok=True)
    assert list(stash.keys()) == ["a"]
    stash.clear()
    assert (tmp_path / "other" / "b.dat").read_text() == "mine"


def uses(stash):
    yield lambda: stash.load("absent")
    yield lambda: stash.exists("absent")
    yield lambda: stash.delete("absent")
    yield lambda: list(stash.keys())
    yield lambda: len(stash)
    yield lambda: stash.dump("new", 1)
    yield lambda: stash.add("new", 1)
    yield lambda: stash.update("new", lambda old: 1)


@pytest.mark.parametrize("use", range(8))
@pytest.mark.parametrize(("there", "wanted"), [(256, 0), (256, 16), (0, 256)])
def test_a_directory_that_is_spread_in_another_way_is_not_taken_for_an_empty_one(tmp_path, there, wanted, use):
    DirectoryStash(tmp_path, fan_out=there)["a"] = 1
    before = files_in(tmp_path)
    stash = DirectoryStash(tmp_path, fan_out=wanted)
    with pytest.raises(InvalidArgumentError) as caught:
        list(uses(stash))[use]()
    text = str(caught.value)
    assert str(tmp_path) in text
    assert ("spread over 256 sub-directories: open it with fan_out=256" in text) is (there == 256)
    assert ("take_over" in text) is (there == 0)
    assert files_in(tmp_path) == before
    assert DirectoryStash(tmp_path, fan_out=there)["a"] == 1


@pytest.mark.parametrize("fan_out", [1, 15, 255, -16, True, "256", 16.0, None])
def test_what_is_no_fan_out(tmp_path, fan_out):
    if fan_out == 16.0:
        return
    with pytest.raises(InvalidArgumentError, match="fan_out must be one of 0, 16, 256, 4096, not"):
        DirectoryStash(tmp_path, fan_out=fan_out)


def test_a_mark_that_is_damaged(tmp_path):
    DirectoryStash(tmp_path, fan_out=16)["a"] = 1
    (tmp_path / ".zpersist" / "fan_out").write_text("many")
    with pytest.raises(CorruptValueError, match="fan_out is damaged; write the number"):
        list(DirectoryStash(tmp_path, fan_out=16).keys())


def begin(path, number):
    DirectoryStash(path, fan_out=16)[f"{number}"] = number
    os._exit(0)


def test_several_begin_at_once(tmp_path):
    for attempt in range(20):
        path = tmp_path / str(attempt)
        children = [fork.Process(target=begin, args=(path, number)) for number in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
            assert child.exitcode == 0
            child.close()
        assert dict(DirectoryStash(path, fan_out=16)) == {str(number): number for number in range(4)}


def test_many_fill_it(tmp_path):
    stash = DirectoryStash(tmp_path / "data", fan_out=256)
    assert fill(stash, lambda n: n, range(300), workers=2).done == 300
    assert dict(stash) == {str(n): n for n in range(300)}


# taking over


def flat_and_spread(tmp_path, **options):
    flat = DirectoryStash(tmp_path / "flat", **options)
    flat.dump_many({"a": 1, "a/b": 2, "long" * 100: 3, "ключ": [4]})
    return flat, DirectoryStash(tmp_path / "spread", fan_out=256, **options)


@pytest.mark.parametrize("options", [{}, {"durability": "fsync"}, {"codec": "dill"}])
def test_a_flat_directory_is_taken_over(tmp_path, options):
    flat, spread = flat_and_spread(tmp_path, **options)
    expected = dict(flat)
    assert spread.take_over(flat) == 4
    assert dict(DirectoryStash(tmp_path / "spread", fan_out=256, **options)) == expected
    assert dict(flat) == {}
    assert spread.take_over(flat) == 0
    # And back.
    assert flat.take_over(spread) == 4
    assert dict(flat) == expected


def test_what_is_there_already_stays(tmp_path):
    flat, spread = flat_and_spread(tmp_path)
    spread["a"] = "mine"
    with pytest.raises(InvalidArgumentError, match="3 values were moved from .*, but of 1 keys .* such as 'a'"):
        spread.take_over(flat)
    assert spread["a"] == "mine"
    assert dict(flat) == {"a": 1}
    assert len(spread) == 4


@pytest.mark.parametrize("call", ["link", "unlink"])
def test_a_move_that_is_cut_short_is_done_again(tmp_path, monkeypatch, call):
    flat, spread = flat_and_spread(tmp_path)
    expected = dict(flat)
    real, left = getattr(os, call), [3]

    def failing(*args):
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(StorageError, match="can not move"):
            spread.take_over(flat)
    assert {**dict(spread), **dict(flat)} == expected
    spread.take_over(flat)
    assert dict(spread) == expected
    assert dict(flat) == {}


@pytest.mark.parametrize("other", [lambda path: DirectoryStash(path / "x", codec="dill"), lambda path: {"a": 1}])
def test_what_can_not_be_taken_over(tmp_path, other):
    stash = DirectoryStash(tmp_path / "data")
    for what in (other(tmp_path), stash):
        with pytest.raises(InvalidArgumentError, match="must be another DirectoryStash of the same codec"):
            stash.take_over(what)


def test_a_flat_stash_sees_that_another_one_has_spread_the_directory(tmp_path):
    flat = DirectoryStash(tmp_path / "data")
    flat["a"] = 1
    del flat["a"]
    spread = DirectoryStash(tmp_path / "data", fan_out=16)
    spread["a"] = 2
    for write in (lambda: flat.dump("a", 3), lambda: flat.add("b", 3), lambda: flat.update("b", lambda old: 3)):
        with pytest.raises(InvalidArgumentError, match="fan_out=16"):
            write()
    assert list(spread) == [("a", 2)]
    assert not list((tmp_path / "data").glob("*.dat"))


FLAT_WRITES = {
    "dump": lambda stash: stash.dump("a", 1),
    "add": lambda stash: stash.add("a", 1),
    "update": lambda stash: stash.update("a", lambda old: 1),
    "fsync": lambda stash: DirectoryStash(stash.path, durability="fsync").dump_many({"a": 1}),
}


def taken_over(stash):
    source = DirectoryStash(stash.path.parent / "source")
    source["a"] = 1
    stash.take_over(source)


@pytest.mark.parametrize("write", FLAT_WRITES)
@pytest.mark.parametrize("looks", [True, False], ids=["looks", "does not look"])
def test_a_directory_that_is_spread_while_a_flat_value_is_written(tmp_path, monkeypatch, write, looks):
    flat, spread = DirectoryStash(tmp_path / "data"), DirectoryStash(tmp_path / "data", fan_out=16)
    real = directory.write_file

    def slow(*args, **options):
        monkeypatch.setattr(directory, "write_file", real)
        spread["b"] = 2
        return real(*args, **options)

    monkeypatch.setattr(directory, "write_file", slow)
    if not looks:
        monkeypatch.setattr(layout.Layout, "look_again", lambda layout: None)
    with nullcontext() if not looks else pytest.raises(InvalidArgumentError, match="open it with fan_out=16"):
        FLAT_WRITES[write](flat)
    monkeypatch.undo()
    # What was acknowledged, or was not.
    assert (tmp_path / "data" / "a.dat").exists() is not looks
    assert dict(DirectoryStash(tmp_path / "data", fan_out=16)) == {"b": 2}
    assert not list((tmp_path / "data").glob("*.tmp"))


@pytest.mark.parametrize("write", [*FLAT_WRITES.values(), taken_over], ids=[*FLAT_WRITES, "take_over"])
def test_a_flat_value_that_is_written_while_the_directory_is_spread(tmp_path, monkeypatch, write):
    flat, spread = DirectoryStash(tmp_path / "data"), DirectoryStash(tmp_path / "data", fan_out=16)
    real = layout.make_directory

    def slow(path, **options):
        monkeypatch.setattr(layout, "make_directory", real)
        # It has looked, and has not told yet.
        write(flat)
        real(path, **options)

    monkeypatch.setattr(layout, "make_directory", slow)
    with pytest.raises(InvalidArgumentError, match="holds files that are not spread"):
        spread["b"] = 2
    assert dict(DirectoryStash(tmp_path / "data")) == {"a": 1}


def test_while_one_spreads_a_directory_nobody_puts_a_flat_value_there(tmp_path, monkeypatch):
    flat, spread = DirectoryStash(tmp_path / "data"), DirectoryStash(tmp_path / "data", fan_out=16)
    source = DirectoryStash(tmp_path / "source")
    source["d"] = 4
    real, refused = layout.write_file, []

    def run(write):
        try:
            write()
        except InvalidArgumentError as err:
            refused.append(err)

    writes = [lambda: flat.dump("a", 1), lambda: flat.add("c", 3), lambda: flat.take_over(source)]
    threads = [threading.Thread(target=run, args=(write,)) for write in writes]

    def slow(*args, **options):
        for thread in threads:
            thread.start()
        for thread in threads:
            # It has to wait, so there is nothing to be waited for.
            thread.join(0.2)
        real(*args, **options)

    monkeypatch.setattr(layout, "write_file", slow)
    spread["b"] = 2
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert files_in(tmp_path / "data") == ["f/b.dat"] or len(files_in(tmp_path / "data")) == 1
    assert dict(source) == {"d": 4}


def test_composites_spread_a_directory_that_they_have_locked(tmp_path):
    stash = DirectoryCompositeStash(tmp_path / "data", ({"x"},), "data", fan_out=16)
    stash["a"] = SimpleNamespace(data={"x": 1})
    shutil.rmtree(tmp_path / "data" / "inst" / ".zpersist")
    stash["a"] = SimpleNamespace(data={"x": 2})
    assert stash["a"].data == {"x": 2}


def test_a_removed_directory_is_spread_again(tmp_path):
    stash = DirectoryStash(tmp_path / "data", fan_out=16)
    stash["a"] = 1
    shutil.rmtree(tmp_path / "data")
    stash["b"] = 2
    with pytest.raises(InvalidArgumentError, match="fan_out=16"):
        list(DirectoryStash(tmp_path / "data"))
    assert list(DirectoryStash(tmp_path / "data", fan_out=16)) == [("b", 2)]


@pytest.mark.parametrize("options", [{}, {"codec": SignedCodec(PickleCodec(), b"k" * 32)}])
def test_two_paths_to_one_directory_are_one_place(tmp_path, options):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    one = DirectoryStash(tmp_path / "real" / "data", **options)
    other = DirectoryStash(tmp_path / "link" / "data", **options)
    one["a"] = 1
    assert other["a"] == 1
    (tmp_path / "again").symlink_to(tmp_path / "real" / "data")
    third = DirectoryStash(tmp_path / "again", **options)
    assert third["a"] == 1
    lock = one._locks.acquire("key a")
    try:
        for stash in (other, third):
            with pytest.raises(TimeoutError):
                stash._locks.acquire("key a", timeout=0)
    finally:
        lock.release()
