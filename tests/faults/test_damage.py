"""Damage is always noticed: no flipped bit, no cut, no foreign bytes come back as a value, or are even unpickled."""

from __future__ import annotations

import dbm
import dbm.dumb
import errno
import logging
import os
import pickle
import shutil
import signal
import sqlite3
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.test_writes import Blob, forked
from zpersist import (
    CodecMismatchError,
    CorruptValueError,
    DecodeError,
    DillCodec,
    DirectoryStash,
    FormatVersionError,
    MisplacedValueError,
    PersistedWork,
    PickleCodec,
    ShelveStash,
    SqliteStash,
    StorageError,
    ZipStash,
)
from zpersist.files import envelope
from zpersist.files.envelope import FORMAT_VERSION, pack, parse

sung = []


def sing(note):
    sung.append(note)
    return Canary(note)


class Canary:
    """Tells when it is unpickled."""

    def __init__(self, note):
        self.note = note

    def __reduce__(self):
        return sing, (self.note,)

    def __eq__(self, other):
        return isinstance(other, Canary) and self.note == other.note

    __hash__ = None


VALUE = {"a": [1, None], "canary": Canary("tweet")}


def error_of(read):
    """Return what reading raises; it must raise, and must not have unpickled anything before."""
    sung.clear()
    try:
        value = read()
    except Exception as err:
        assert not sung, f"it was unpickled, and then {err!r} was raised"
        return err
    raise AssertionError(f"{value!r} was returned")


def is_damage(read, where):
    """Whether reading raises that the value is damaged, and names the place and what can be done."""
    err = error_of(read)
    assert type(err) is CorruptValueError, repr(err)
    assert str(where) in str(err)
    assert "delete it, or restore it from a copy" in str(err)
    return True


def flipped(data, bit):
    """Return bytes with one bit turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def put(path, data):
    """Write bytes over a file, in place: to cut it off first would have some file systems write to the disk at once."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
    os.close(fd)


def bits_of(data):
    return range(8 * len(data))


@pytest.fixture
def stash(tmp_path):
    return DirectoryStash(tmp_path / "data")


@pytest.fixture
def file(stash):
    """Return the file of the value, which is under the key ``a``."""
    stash.dump("a", VALUE)
    sung.clear()
    assert stash["a"] == VALUE
    assert sung == ["tweet"], "the canary sings when it is unpickled"
    return stash.key_to_path("a")


READS = {
    "load": lambda stash: stash.load("a"),
    "get": lambda stash: stash.get("a"),
    "[]": lambda stash: stash["a"],
    "items": lambda stash: dict(stash.items()),
    "values": lambda stash: list(stash.values()),
    "load_many": lambda stash: stash.load_many(["a"]),
    "update": lambda stash: stash.update("a", lambda old: old),
    "mapping": lambda stash: stash.mapping["a"],
}

# What may become of a file: how its bytes are changed.
DAMAGE = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut by one": lambda data: data[:-1],
    "one byte behind": lambda data: data + b"\0",
    "a line behind": lambda data: data + b"\n",
    "one byte in front": lambda data: b"\0" + data,
    "a block in front": lambda data: bytes(64) + data,
    "its own head in front": lambda data: data[:64] + data,
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "zeros in front": lambda data: bytes(32) + data[32:],
    "zeros behind": lambda data: data[:-32] + bytes(32),
    "a page of zeros": lambda data: bytes(4096),
    "only the end": lambda data: data[-48:],
    "without the start": lambda data: data[1:],
    "turned round": lambda data: data[::-1],
    "ones": lambda data: b"\xff" * len(data),
    "a foreign pickle": lambda data: pickle.dumps(VALUE),
    "a long foreign pickle": lambda data: pickle.dumps([VALUE, "x" * 300_000]),
    "text": lambda data: b"hello, world\n" * 20,
}


# files of a stash


def test_every_bit_of_a_file(stash, file):
    data = file.read_bytes()
    assert 100 < len(data) < 250
    for bit in bits_of(data):
        put(file, flipped(data, bit))
        assert is_damage(lambda: stash.load("a"), file)
    put(file, data)
    assert stash["a"] == VALUE


def test_every_length_of_a_file(stash, file):
    data = file.read_bytes()
    for length in range(len(data)):
        put(file, data[:length])
        assert is_damage(lambda: stash.load("a"), file)
        put(file, data[-length or len(data) :])
        assert is_damage(lambda: stash.load("a"), file)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file(damage, read, stash, file):
    data = DAMAGE[damage](file.read_bytes())
    put(file, data)
    assert is_damage(lambda: READS[read](stash), file)
    assert file.read_bytes() == data, "what is damaged is left for who can repair it"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_can_be_listed_written_over_and_deleted(damage, stash, file):
    data = DAMAGE[damage](file.read_bytes())
    put(file, data)
    assert list(stash.keys()) == ["a"]
    assert (stash.exists("a"), len(stash), stash.add("a", 1)) == (True, 1, False)
    stash.dump("a", 2)
    assert stash["a"] == 2
    put(file, data)
    assert stash.delete("a")
    put(file, data)
    stash.clear()
    assert list(stash.keys()) == []


def test_random_bytes(stash, file):
    import random

    chance = random.Random(1)
    end = file.read_bytes()[-6:]
    for length in range(0, 600, 3):
        for tail in (b"", end):
            put(file, chance.randbytes(length) + tail)
            assert is_damage(lambda: stash.load("a"), file)


CODECS = {"pickle": PickleCodec, "dill": DillCodec}


@pytest.mark.parametrize("wrote, reads", [("pickle", "dill"), ("dill", "pickle")])
def test_a_file_of_another_codec(wrote, reads, tmp_path):
    DirectoryStash(tmp_path, codec=CODECS[wrote]()).dump("a", VALUE)
    stash = DirectoryStash(tmp_path, codec=CODECS[reads]())
    for read in READS.values():
        err = error_of(lambda read=read: read(stash))
        assert type(err) is CodecMismatchError
        for word in (str(tmp_path / "a.dat"), repr(wrote), repr(reads), "open it with the codec that wrote it"):
            assert word in str(err)
    assert DirectoryStash(tmp_path, codec=CODECS[wrote]())["a"] == VALUE


def from_the_future(monkeypatch, value=VALUE):
    """Return what the next version of the format may look like."""
    with monkeypatch.context() as patch:
        patch.setattr(envelope, "FORMAT_VERSION", FORMAT_VERSION + 1)
        return b"".join(pack(PickleCodec(), value, "here"))


def test_a_newer_format(stash, file, monkeypatch):
    put(file, from_the_future(monkeypatch))
    for read in READS.values():
        err = error_of(lambda read=read: read(stash))
        assert type(err) is FormatVersionError
        for word in (str(file), f"format {FORMAT_VERSION + 1}", f"up to {FORMAT_VERSION}", "upgrade zpersist"):
            assert word in str(err)


def test_the_file_of_another_long_key(stash):
    one, other = "long " * 100 + "1", "long " * 100 + "2"
    stash.dump_many({one: VALUE, other: VALUE})
    shutil.copy(stash.key_to_path(one), stash.key_to_path(other))
    update = lambda key: stash.update(key, lambda old: old)  # noqa: E731
    for read in (stash.load, stash.get, stash.__getitem__, update):
        err = error_of(lambda read=read: read(other))
        assert type(err) is MisplacedValueError
        assert str(stash.key_to_path(other)) in str(err)
    assert stash[one] == VALUE


def test_every_bit_of_the_file_of_a_long_key(stash):
    key = "long " * 60
    stash.dump(key, VALUE)
    file = stash.key_to_path(key)
    data = file.read_bytes()
    for bit in range(0, 8 * len(data), 3):
        put(file, flipped(data, bit))
        assert is_damage(lambda: stash.load(key), file)


def test_a_damaged_file_of_a_long_key_can_be_deleted(stash):
    # Its key lies in the file, and is lost.
    key = "long " * 60
    for remove in (lambda: stash.delete(key), lambda: stash.dump(key, 1), stash.clear):
        stash.dump(key, VALUE)
        stash.dump("other", 1)
        put(stash.key_to_path(key), b"")
        remove()
        assert set(stash.keys()) <= {key, "other"}
        stash.delete(key)


def test_a_damaged_file_of_a_long_key_does_not_hide_the_others(stash, caplog):
    key = "long " * 60
    stash.dump_many({key: VALUE, "other": 1})
    put(stash.key_to_path(key), b"")
    assert list(stash.keys()) == ["other"]
    assert str(stash.key_to_path(key)) in caplog.text
    assert is_damage(lambda: stash.load(key), stash.key_to_path(key))


def test_other_things_with_the_names_of_values(stash):
    # None of them is a file: they are none of the stash's business.
    long = stash.key_to_path("long " * 60).name
    stash.dump("other", 1)
    for name in ("a.dat", long):
        (stash.path / name).mkdir()
        assert list(stash.keys()) == ["other"]
        (stash.path / name).rmdir()
        os.symlink(stash.path / "nowhere", stash.path / name)
        assert list(stash.keys()) == ["other"]
        (stash.path / name).unlink()


# large buffers

LARGE = [VALUE, Blob(bytes(range(251)) * 300), Blob(b"second" * 12_000), "end"]


@pytest.fixture
def large(stash):
    """Return the file of a large value, and where its parts lie: body, padding, buffers, end."""
    stash.dump("a", LARGE)
    assert stash["a"] == LARGE
    file = stash.key_to_path("a")
    data = file.read_bytes()
    frame = parse(data, len(data), "here")
    assert len(frame.slots) == 2
    ends = [frame.body_length, *(offset + length for offset, length in frame.slots)]
    padding = [byte for (offset, _), end in zip(frame.slots, ends, strict=False) for byte in range(end, offset)]
    buffers = [byte for offset, length in frame.slots for byte in range(offset, offset + length)]
    assert padding
    return file, range(frame.body_length), padding, buffers, range(ends[-1], len(data))


def every_flip(file, places, stash, bits=range(8)):
    """Yield for each bit of some bytes of a file, while it is turned over."""
    fd = os.open(file, os.O_RDWR)
    try:
        for place in places:
            (byte,) = os.pread(fd, 1, place)
            for bit in bits:
                os.pwrite(fd, bytes([byte ^ 1 << bit]), place)
                yield
            os.pwrite(fd, bytes([byte]), place)
    finally:
        os.close(fd)
    assert stash["a"] == LARGE


@pytest.mark.parametrize("mmap", [True, False])
def test_every_bit_beside_the_buffers(mmap, stash, large):
    file, body, _, _, end = large
    stash = DirectoryStash(stash.path, mmap=mmap)
    for places in (body, end):
        for _ in every_flip(file, places, stash):
            assert is_damage(lambda: stash.load("a"), file)


def test_bits_of_buffers_that_are_not_mapped(stash, large):
    file, _, _, buffers, _ = large
    stash = DirectoryStash(stash.path, mmap=False)
    for places, bits in ((buffers[::499], [3]), (buffers[:2] + buffers[-2:], range(8))):
        for _ in every_flip(file, places, stash, bits):
            assert is_damage(lambda: stash.load("a"), file)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_byte_of_buffers_that_are_not_mapped(stash, large):
    file, _, _, buffers, _ = large
    stash = DirectoryStash(stash.path, mmap=False)
    for place in buffers:
        for _ in every_flip(file, [place], stash, [place % 8]):
            assert is_damage(lambda: stash.load("a"), file)


@pytest.mark.parametrize("mmap", [True, False])
def test_bits_between_the_buffers(mmap, stash, large):
    file, _, padding, _, _ = large
    stash = DirectoryStash(stash.path, mmap=mmap)
    for _ in every_flip(file, padding, stash):
        assert is_damage(lambda: stash.load("a"), file)


@pytest.mark.parametrize("mmap", [True, False])
def test_lengths_of_a_large_file(mmap, stash, large):
    file, body, _, _, end = large
    stash = DirectoryStash(stash.path, mmap=mmap)
    data = file.read_bytes()
    for length in sorted({0, 1, *range(0, len(data), 4999), *body[::9], *end}, reverse=True):
        os.truncate(file, length)
        assert is_damage(lambda: stash.load("a"), file)
    for change in DAMAGE.values():
        put(file, change(data))
        assert is_damage(lambda: stash.load("a"), file)


# works


def work_at(path, **options):
    work = PersistedWork(path / "work.dat", None, **options)
    work.worker = lambda: "computed"
    return work


@pytest.fixture
def work_file(tmp_path):
    """Return the file of a work."""
    work_at(tmp_path).set(VALUE)
    return tmp_path / "work.dat"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_work_is_an_error(damage, work_file, tmp_path):
    data = DAMAGE[damage](work_file.read_bytes())
    put(work_file, data)
    work = work_at(tmp_path)
    for _ in range(2):
        assert is_damage(work, work_file)
    with pytest.raises(CorruptValueError, match="with recover_empty=True it is computed again"):
        work()
    assert work_file.read_bytes() == data
    work.clear()
    assert work() == "computed"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_work_is_computed_again_when_asked_for(damage, work_file, tmp_path, caplog):
    put(work_file, DAMAGE[damage](work_file.read_bytes()))
    sung.clear()
    assert work_at(tmp_path, recover_empty=True)() == "computed"
    assert not sung
    assert "work.dat is damaged" in caplog.text
    assert work_at(tmp_path)() == "computed"


def test_what_is_computed_again_is_logged_once(work_file, tmp_path, caplog):
    put(work_file, b"")
    assert work_at(tmp_path, recover_empty=True)() == "computed"
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(logged) == 1
    assert str(work_file) in logged[0].getMessage()
    assert "computed again" in logged[0].getMessage()


def test_every_bit_of_a_work(work_file, tmp_path):
    data = work_file.read_bytes()
    for bit in bits_of(data):
        put(work_file, flipped(data, bit))
        assert is_damage(work_at(tmp_path), work_file)
    for bit in range(0, 8 * len(data), 37):
        put(work_file, flipped(data, bit))
        sung.clear()
        assert work_at(tmp_path, recover_empty=True)() == "computed"
        assert not sung


def test_a_body_that_fails_leaves_what_is_damaged(work_file, tmp_path):
    put(work_file, b"damaged")
    work = work_at(tmp_path, recover_empty=True)

    def fail():
        raise ZeroDivisionError

    work.worker = fail
    with pytest.raises(ZeroDivisionError):
        work()
    assert work_file.read_bytes() == b"damaged"


@pytest.mark.parametrize("recover", [False, True])
def test_a_work_of_another_codec(recover, work_file, tmp_path):
    data = work_file.read_bytes()
    err = error_of(work_at(tmp_path, codec=DillCodec(), recover_empty=recover))
    assert type(err) is CodecMismatchError
    assert str(work_file) in str(err)
    assert work_file.read_bytes() == data


def test_a_work_of_a_newer_format(work_file, tmp_path, monkeypatch):
    data = from_the_future(monkeypatch)
    put(work_file, data)
    err = error_of(work_at(tmp_path))
    assert type(err) is FormatVersionError
    assert str(work_file) in str(err)
    assert "upgrade zpersist" in str(err)
    assert work_file.read_bytes() == data


def test_a_work_of_another_version_is_not_unpickled(work_file, tmp_path):
    # The class of what was kept may be gone: that is why the version was changed.
    sung.clear()
    work = work_at(tmp_path, version="2")
    assert work() == "computed"
    assert not sung


def test_a_work_of_another_version_whose_class_is_gone(work_file, tmp_path, monkeypatch):
    monkeypatch.delattr("tests.faults.test_damage.sing")
    with pytest.raises(DecodeError, match="has a class been moved or renamed"):
        work_at(tmp_path)()
    assert work_at(tmp_path, version="2")() == "computed"


# cells of a database


@pytest.fixture
def database(tmp_path):
    with SqliteStash(tmp_path / "data.db") as stash:
        stash.dump("a", VALUE)
        sung.clear()
        assert stash["a"] == VALUE
        assert sung
        yield stash


@pytest.fixture
def cell(database):
    """Return a function that puts something in the place of the value, and its bytes."""
    db = sqlite3.connect(database.path, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")

    def put_cell(data):
        db.execute("UPDATE stash SET value=?", (data,))

    ((data,),) = db.execute("SELECT value FROM stash")
    yield put_cell, data
    db.close()


def test_every_bit_of_a_cell(database, cell):
    put_cell, data = cell
    for bit in bits_of(data):
        put_cell(flipped(data, bit))
        assert is_damage(lambda: database.load("a"), database.path)
    put_cell(data)
    assert database["a"] == VALUE


def test_every_length_of_a_cell(database, cell):
    put_cell, data = cell
    for length in range(len(data)):
        put_cell(data[:length])
        assert is_damage(lambda: database.load("a"), database.path)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cell(damage, read, database, cell):
    put_cell, data = cell
    put_cell(DAMAGE[damage](data))
    assert is_damage(lambda: READS[read](database), database.path)
    assert list(database.keys()) == ["a"]
    assert database.exists("a")
    database.dump("a", 1)
    assert database["a"] == 1


@pytest.mark.parametrize("other", ["text", "", 5, 1.5], ids=["text", "empty text", "integer", "real"])
def test_a_cell_of_another_kind(other, database, cell):
    put_cell, _ = cell
    put_cell(other)
    for read in READS.values():
        assert is_damage(lambda read=read: read(database), database.path)


def test_a_cell_whose_bytes_became_text(database):
    # One bit in the head of a row tells bytes from text; they need not even be text.
    with sqlite3.connect(database.path) as db:
        db.execute("UPDATE stash SET value=CAST(value AS TEXT)")
        assert db.execute("SELECT typeof(value) FROM stash").fetchone() == ("text",)
    db.close()
    for read in READS.values():
        try:
            assert read(database) in (VALUE, {"a": VALUE}, [VALUE])
        except CorruptValueError as err:
            assert str(database.path) in str(err)


def test_a_cell_with_nothing_in_it(tmp_path):
    # As a flipped bit leaves it.
    with SqliteStash(tmp_path / "data.db") as stash:
        stash.dump("b", 1)
    with sqlite3.connect(tmp_path / "data.db") as db:
        ((ours,),) = db.execute("SELECT sql FROM sqlite_master WHERE name='stash'").fetchall()
        db.execute("DROP TABLE stash")
        db.execute("CREATE TABLE stash (key TEXT PRIMARY KEY NOT NULL, value BLOB)")
        db.execute("INSERT INTO stash VALUES ('a', NULL)")
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_master SET sql=? WHERE name='stash'", (ours,))
    db.close()
    with SqliteStash(tmp_path / "data.db") as stash:
        for read in READS.values():
            assert is_damage(lambda read=read: read(stash), tmp_path / "data.db")
        assert [damage.repaired for damage in stash.verify(repair="drop")] == [True]
        assert list(stash) == []


def test_a_key_of_another_kind(database):
    with sqlite3.connect(database.path) as db:
        db.execute("INSERT INTO stash SELECT CAST('b' AS BLOB), value FROM stash")
    db.close()
    assert database["a"] == VALUE
    for read in (SqliteStash.keys, SqliteStash.items, SqliteStash.values, SqliteStash.scan):
        try:
            found = list(read(database))
        except CorruptValueError as err:
            assert str(database.path) in str(err)
        else:
            assert found in (["a"], [("a", VALUE)], [VALUE])


def test_a_cell_of_another_key(database):
    database.dump("b", 1)
    with sqlite3.connect(database.path) as db:
        db.execute("UPDATE stash SET value=(SELECT value FROM stash WHERE key='a') WHERE key='b'")
    db.close()
    for read in (database.load, database.get, database.__getitem__, lambda key: database.load_many([key])):
        err = error_of(lambda read=read: read("b"))
        assert type(err) is MisplacedValueError
        for word in (str(database.path), "'a'", "'b'"):
            assert word in str(err)
    assert database["a"] == VALUE


@pytest.mark.parametrize("wrote, reads", [("pickle", "dill"), ("dill", "pickle")])
def test_a_cell_of_another_codec(wrote, reads, tmp_path):
    with SqliteStash(tmp_path / "data.db", codec=CODECS[wrote]()) as stash:
        stash.dump("a", VALUE)
    with SqliteStash(tmp_path / "data.db", codec=CODECS[reads]()) as stash:
        for read in READS.values():
            err = error_of(lambda read=read, stash=stash: read(stash))
            assert type(err) is CodecMismatchError
            for word in (str(tmp_path / "data.db"), repr(wrote), repr(reads)):
                assert word in str(err)


def test_a_cell_of_a_newer_format(database, cell, monkeypatch):
    put_cell, _ = cell
    put_cell(from_the_future(monkeypatch))
    err = error_of(lambda: database.load("a"))
    assert type(err) is FormatVersionError
    assert str(database.path) in str(err)


# files of a database


def is_right(found):
    """Whether values are what was written; keys can be lost or changed, for SQLite has no checksums."""
    if isinstance(found, int) or found in (VALUE, None):
        return True
    if isinstance(found, dict):
        return all(isinstance(key, str) and value == VALUE for key, value in found.items())
    return all(isinstance(key, str) or key == VALUE for key in found)


def use_damaged_database(path):
    """Read all there is in all ways, and yield what is wrong."""
    with SqliteStash(path) as stash:
        for name, read in {**READS, "keys": lambda stash: list(stash.keys()), "len": len}.items():
            sung.clear()
            try:
                found = read(stash)
            except (CorruptValueError, StorageError) as err:
                # Of several values, others may be intact.
                if str(path) not in str(err) or (sung and name in ("load", "get", "[]", "mapping")):
                    yield f"{name}: {err!r}, sung: {sung}"
            except KeyError:
                if name not in ("[]", "mapping"):
                    yield f"{name}: KeyError"
            except Exception as err:
                yield f"{name}: {err!r}"
            else:
                if not is_right(found):
                    yield f"{name}: {found!r}"


def all_damages(data, each):
    """Yield the bytes of a database with flips where something lies, and here and there where nothing does."""
    used = [place for place, byte in enumerate(data) if byte]
    for place in used:
        for bit in each(place):
            yield flipped(data, 8 * place + bit)
    for place in range(0, len(data), 211):
        yield flipped(data, 8 * place)


def flip_database(path, each):
    with SqliteStash(path) as stash:
        stash.dump("a", VALUE)
    data = path.read_bytes()

    def use_all():
        count, wrong = 0, []
        for damaged in all_damages(data, each):
            put(path, damaged)
            wrong += use_damaged_database(path)
            for beside in path.parent.glob(f"{path.name}-*"):
                beside.unlink()
            count += 1
        assert count > 100
        assert not wrong, "\n".join(wrong)

    # In a process of its own: a signal is an answer too, and it must not be given.
    assert forked(use_all) == 0


def test_bits_of_a_database(tmp_path):
    flip_database(tmp_path / "data.db", lambda place: [place % 8])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_bit_of_a_database(tmp_path):
    flip_database(tmp_path / "data.db", lambda place: range(8))


def test_bits_of_an_index_never_give_the_value_of_another_key(tmp_path):
    path = tmp_path / "data.db"
    keys = {f"key {number}": f"value {number}" for number in range(8)}
    with SqliteStash(path) as stash:
        stash.dump_many(keys)
    data = path.read_bytes()
    size = int.from_bytes(data[16:18], "big")
    # The index is the page in which the keys lie and the values don't.
    (index,) = (
        at for at in range(0, len(data), size) if b"key 7" in (page := data[at : at + size]) and b"value" not in page
    )
    wrong = set()
    for place in range(index, index + size):
        if data[place]:
            for bit in range(8):
                put(path, flipped(data, 8 * place + bit))
                with SqliteStash(path) as stash:
                    for key, value in keys.items():
                        try:
                            found = stash.load(key)
                        except (CorruptValueError, StorageError):
                            continue
                        if found not in (None, value):
                            wrong.add(f"byte {place - index}, bit {bit}: {key!r} gives {found!r}")
                for beside in tmp_path.glob("data.db-*"):
                    beside.unlink()
    assert not wrong, sorted(wrong)


def test_lengths_of_a_database(tmp_path):
    path = tmp_path / "data.db"
    with SqliteStash(path) as stash:
        stash.dump("a", VALUE)
        # Leaves pages with nothing on them at the end.
        stash.dump("b", "x" * 20_000)
        stash.delete("b")
    data = path.read_bytes()

    def use_all():
        wrong, told = [], 0
        # SQLite takes a file of at most one byte for a new database.
        for length in sorted({*range(2, 200), *range(2, len(data), 1009), *range(4096, len(data), 4096)}):
            put(path, data[:length])
            with SqliteStash(path) as stash:
                try:
                    if stash["a"] != VALUE:
                        wrong.append(f"{length}: another value")
                except CorruptValueError as err:
                    told += str(path) in str(err)
                except Exception as err:
                    wrong.append(f"{length}: {err!r}")
        assert not wrong, "\n".join(wrong)
        assert told > 200

    assert forked(use_all) == 0


def test_no_database_at_all(tmp_path):
    path = tmp_path / "data.db"
    for junk in (b"hello, world\n" * 50, pickle.dumps(VALUE), bytes(range(256)) * 40):
        put(path, junk)
        for read in (*READS.values(), lambda stash: stash.dump("a", 1), len, SqliteStash.clear, bool):
            with SqliteStash(path) as stash, pytest.raises(CorruptValueError) as caught:
                read(stash)
            for word in (str(path), "no SQLite database", "restore it from a copy"):
                assert word in str(caught.value)
        assert path.read_bytes() == junk


def test_a_foreign_table(tmp_path):
    path = tmp_path / "data.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE stash (x)")
    db.close()
    with SqliteStash(path) as stash:
        for read in (READS["load"], READS["items"], lambda stash: stash.dump("a", 1)):
            with pytest.raises((CorruptValueError, StorageError)) as caught:
                read(stash)
            assert str(path) in str(caught.value)


def test_bits_of_the_log_of_a_database(tmp_path):
    path = tmp_path / "data.db"
    with SqliteStash(path) as stash:
        stash.dump("a", "old")

    def write():
        stash = SqliteStash(path)
        stash.dump("a", VALUE)
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(write) == -signal.SIGKILL
    files = {name: Path(f"{path}{name}").read_bytes() for name in ("", "-wal")}
    log = files["-wal"]
    used = [place for place, byte in enumerate(log) if byte]

    def use_all():
        for place in (*used, *range(0, len(log), 211)):
            put(path, files[""])
            Path(f"{path}-wal").write_bytes(flipped(log, 8 * place + place % 8))
            Path(f"{path}-shm").unlink(missing_ok=True)
            with SqliteStash(path) as stash:
                assert stash["a"] in ("old", VALUE)

    assert forked(use_all) == 0


# archives


PACKED = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def use_damaged_archive(path, expected):
    """Read all there is in an archive, and return whether anything was found to be damaged."""
    damaged = False
    for read in (lambda stash: stash.load("name"), lambda stash: dict(stash.items()), lambda stash: "name" in stash):
        with ZipStash(path) as stash:
            try:
                found = read(stash)
            except CorruptValueError as err:
                assert str(path) in str(err)
                damaged = True
            else:
                # Where the list in the archive ends too early, names are lost.
                assert found in (expected, None, True, False) or set(found.values()) <= {expected}
    return damaged


@pytest.mark.parametrize("packed", PACKED)
def test_every_bit_of_an_archive(packed, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", PACKED[packed]) as archive:
        archive.writestr("name", b"some text, some text, some text")
    data = path.read_bytes()
    damaged = 0
    for bit in bits_of(data):
        put(path, flipped(data, bit))
        damaged += use_damaged_archive(path, b"some text, some text, some text")
    assert damaged > len(data)
    for length in range(len(data)):
        put(path, data[:length])
        assert use_damaged_archive(path, b"")


def test_an_archive_that_can_not_be_read(tmp_path, monkeypatch):
    with pytest.raises(StorageError) as caught:
        ZipStash(tmp_path / "absent.zip").load("a")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "absent.zip"))
    for number in (errno.EACCES, errno.EIO):

        def refuse(*args, number=number):
            raise OSError(number, os.strerror(number))

        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a", b"")
        with monkeypatch.context() as patch:
            patch.setattr(zipfile, "ZipFile", refuse)
            with pytest.raises(StorageError) as caught:
                ZipStash(tmp_path / "a.zip").keys()
            assert caught.value.errno == number
        with monkeypatch.context() as patch, ZipStash(tmp_path / "a.zip") as stash:
            patch.setattr(zipfile.ZipFile, "read", refuse)
            with pytest.raises(StorageError) as caught:
                stash.load("a")
            assert caught.value.errno == number


# shelves


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Return the index of a shelf of dbm.dumb, which every Python has."""
    ShelveStash.get_extension()
    monkeypatch.setattr(dbm, "_defaultmod", dbm.dumb)
    ShelveStash(tmp_path / "shelf").dump_many({"a": VALUE, "b": VALUE})
    return tmp_path / "shelf.dir"


SHELF_READS = {**READS, "keys": lambda stash: list(stash.keys()), "len": len, "in": lambda stash: "a" in stash}
SHELF_WRITES = {
    "dump": lambda stash: stash.dump("a", 1),
    "add": lambda stash: stash.add("a", 1),
    "delete": lambda stash: stash.delete("a"),
}


def use_damaged_shelf(path):
    """Use a shelf in all ways, and return how many of them found damage."""
    damaged = 0
    for use in (*SHELF_READS.values(), *SHELF_WRITES.values()):
        try:
            use(ShelveStash(path))
        except CorruptValueError as err:
            assert str(path) in str(err)
            damaged += 1
        except KeyError:
            pass  # the index has lost the key, or has another one in its place
    return damaged


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
@pytest.mark.parametrize("bit", range(8))
def test_a_bit_of_each_byte_of_the_index_of_a_shelf(bit, index):
    data = index.read_bytes()
    damaged = 0
    for place in range(len(data)):
        put(index, flipped(data, 8 * place + bit))
        damaged += use_damaged_shelf(index.with_suffix(""))
    assert damaged > len(data)


@pytest.mark.parametrize(
    "line",
    [b"'a", b"\0", b"5", b"'a', 5", b"'a', (1,)", b"5, (0, 5)", b"'a', ('x', 5)", b"'a', (0, 'x')", b"'a', (-5, 5)",
     b"'a', (0, -5)", b"'a', (1e9, 5)", b"'a', (%d, 5)" % 10**30, b"'a', (0, %d)" % 10**30, b"[" * 150 + b"]" * 150],
)  # fmt: skip
def test_a_line_of_the_index_of_a_shelf(line, index):
    index.write_bytes(line + b"\n")
    path = index.with_suffix("")
    with pytest.raises(CorruptValueError, match="damaged") as caught:
        ShelveStash(path)["a"]
    assert str(path) in str(caught.value)


def test_a_shelf_that_is_none(tmp_path):
    (tmp_path / "shelf").write_bytes(b"x" * 5000)
    for use in (lambda stash: stash.load("a"), lambda stash: stash.dump("a", 1), lambda stash: stash.clear()):
        with pytest.raises(CorruptValueError, match=str(tmp_path / "shelf")):
            use(ShelveStash(tmp_path / "shelf"))
    assert (tmp_path / "shelf").read_bytes() == b"x" * 5000


def test_every_byte_of_a_shelf(tmp_path):
    path = tmp_path / "shelf"
    ShelveStash(path).dump_many({"a": VALUE, "b": VALUE})
    if dbm.whichdb(str(path)) not in ("dbm.dumb", "dbm.sqlite3"):
        pytest.skip("the libraries of the others crash on damaged files")
    files = {file: file.read_bytes() for file in tmp_path.glob("shelf*") if file.stat().st_size}
    damaged = 0
    for file, data in files.items():
        for place in range(0, len(data), 1 + len(data) // 100):
            for other, whole in files.items():
                put(other, flipped(whole, 8 * place + 3) if other == file else whole)
            with suppress(StorageError):
                damaged += use_damaged_shelf(path)
    assert damaged


def test_a_key_of_a_shelf_that_is_no_text(index):
    index.write_bytes(b"'\xe9', (0, 5)\n")
    with pytest.raises(CorruptValueError, match="damaged"):
        ShelveStash(index.with_suffix("")).keys()


# what the checks are worth


def test_without_a_checksum_the_same_flips_do_harm(stash, monkeypatch):
    text = b"some text" * 10
    monkeypatch.setattr(envelope, "xxh3_64_intdigest", lambda data: 0)
    stash.dump("a", text)
    file = stash.key_to_path("a")
    data = file.read_bytes()
    begin = 8 * data.index(text)
    for bit in range(begin, begin + 8 * len(text)):
        put(file, flipped(data, bit))
        with pytest.raises(AssertionError, match="was returned"):
            is_damage(lambda: stash.load("a"), file)


def test_a_canary_that_sings_is_heard(stash, file):
    put(file, pickle.dumps(VALUE))
    with pytest.raises(AssertionError, match="it was unpickled"):

        def read():
            pickle.loads(file.read_bytes())
            stash.load("a")

        error_of(read)
