"""Keys and files: every key has one name, no key leaves its place, and nobody else reads or redirects what is kept."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from zpersist import (
    DictionaryStash,
    DirectoryCompositeStash,
    DirectoryStash,
    FailureFilterStash,
    IncrementKeyDirectoryStash,
    InvalidKeyError,
    PersistedWork,
    ShelveStash,
    SqliteStash,
    StorageError,
    ZPersistError,
)
from zpersist.files.locks import KeyLocks
from zpersist.keys import MAX_KEY_BYTES, SURELY_PLAIN, check_str_key, from_file_name, is_digested, to_file_name
from zpersist.testing.suite import HOSTILE_KEYS

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

DEVICES = ["con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(10))]
TRAVERSALS = [
    "../../etc/passwd", "/etc/passwd", "..", ".", "...", "../", "..\\..\\x", "a/../../b", "./a", "a/.", "~root", "//",
    "\\\\host\\share", "C:\\x", "C:x", "file:///x", "a\0.dat", "..%2F..", "%2e%2e%2f", "%252e", "a%00b", ".git",
    ".zpersist", ".lock", ".data.lock", ".zpersist-1-0-aaaaaaaa.tmp", "data", "-rf", "--", "a\n", "\n", "$(id)", "`id`",
    "a.dat", "a.dat.dat", ".dat", "{name}", "{0}", "%s", "a ", " a", "a.", "a..", "CON", "con.txt", "Con.", "LPT1.x.y",
    "\u2025", "\u2024\u2024/", "\uff0e\uff0e\uff0f", "a\u0301", "\u00e1", "\u212a", "K", "k", "\u0130",
    "i\u0307", "ß", "SS", "ss",
]  # fmt: skip


def valid(name):
    return 0 < len(name.encode()) <= MAX_KEY_BYTES


any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
# What stands for something in names: escapes, ends, cases, digests.
tricky_text = st.text("aAzZ0F%2~. /\\-_\u00e9", min_size=1, max_size=14)
long_text = st.builds(
    lambda start, middle, end, times: start + middle * times + end,
    any_text,
    tricky_text,
    tricky_text,
    st.integers(1, 80),
)
devices = st.builds(
    lambda name, upper, end: (name.upper() if upper else name) + end,
    st.sampled_from(DEVICES),
    st.booleans(),
    st.sampled_from(["", ".", ".txt", " ", "x", ".a.b"]),
)
listed = st.sampled_from([*HOSTILE_KEYS, *TRAVERSALS])
keys = st.one_of(any_text, tricky_text, long_text.filter(valid), devices, listed)
folds = st.booleans()


# names


@SETTINGS
@given(keys, folds)
def test_names_are_safe(key, folds_case):
    name = to_file_name(key, folds_case=folds_case)
    assert 0 < len(name) <= 200
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set('/\\<>:"|?*')
    assert name[0] not in ". "
    assert name[-1] not in ". "
    assert name.split(".")[0].casefold() not in DEVICES
    if folds_case:
        assert not re.search("[A-Z]", re.sub("%[0-9A-F]{2}", "", name))


def test_no_name_is_that_of_a_device():
    # As os.path.isreserved() of Python 3.13 has it: also with an extension, and with blanks before that.
    for device in (*DEVICES, "conin$", "conout$"):
        for key in (
            device,
            device.upper(),
            f"{device}.txt",
            f"{device}.",
            f"{device} ",
            f"{device} .txt",
            f"{device}.a.b",
        ):
            for folds_case in (False, True):
                name = to_file_name(key, folds_case=folds_case)
                assert name.partition(".")[0].rstrip(" ").casefold() not in (*DEVICES, "conin$", "conout$"), key
                assert from_file_name(name, folds_case=folds_case) == key


@SETTINGS
@given(keys, folds)
def test_names_give_back_their_keys(key, folds_case):
    name = to_file_name(key, folds_case=folds_case)
    found = from_file_name(name, folds_case=folds_case)
    if is_digested(name):
        assert found is None
        assert len(key.encode()) > 50, "only a long key loses its name"
    else:
        assert found == key
        assert type(found) is str


@SETTINGS
@given(st.lists(keys, max_size=60, unique=True), folds)
def test_no_two_keys_have_one_name(some, folds_case):
    names = [to_file_name(key, folds_case=folds_case) for key in some]
    assert len(set(names)) == len(some)
    if folds_case:
        assert len({name.casefold() for name in names}) == len(some)
        assert len({name.lower() for name in names}) == len({name.upper() for name in names}) == len(some)


@SETTINGS
@given(keys)
def test_twins_have_names_that_differ(key):
    twins = {key, key.upper(), key.lower(), key.swapcase(), key.casefold(), key + " ", key + ".", f".{key}", f" {key}"}
    twins |= {key.replace("/", "%2F"), key.replace("%", "%25"), key[:-1], key + "\0", key.title(), f"{key}%~{'0' * 40}"}
    twins = {twin for twin in twins if valid(twin)}
    for folds_case in (False, True):
        names = {
            to_file_name(twin, folds_case=folds_case).casefold() if folds_case else to_file_name(twin) for twin in twins
        }
        assert len(names) == len(twins)


def test_long_keys_that_differ_only_at_the_end():
    for folds_case in (False, True):
        for stem in ("x" * 1000, "X" * 1000, "é" * 500, "/" * 1000, "." * 1000, " " * 1000, "\U0001f600" * 250):
            some = [stem + end for end in ("", "a", "b", "A", ".", " ")]
            names = {to_file_name(key, folds_case=folds_case).casefold() for key in some}
            assert len(names) == len(some)
            assert all(is_digested(to_file_name(key, folds_case=folds_case)) for key in some)


def test_the_longest_names():
    for folds_case in (False, True):
        assert to_file_name("x" * 200, folds_case=folds_case) == "x" * 200
        assert is_digested(to_file_name("x" * 201, folds_case=folds_case))
        assert to_file_name("/" * 66 + "ab", folds_case=folds_case) == "%2F" * 66 + "ab"
        assert is_digested(to_file_name("/" * 67, folds_case=folds_case))


FOREIGN = [
    "", ".", "..", ".a", "a.", " a", "a ", "a/b", "/", "a\\b", "a\0", "a\n", "é", "\ud800", "con", "CON", "nul.txt",
    "Lpt1.x", "%", "%4", "a%", "%61", "%2f", "%2", "%zz", "%%", "%~", "a%~", f"%~{'0' * 40}", "%C3", "%C3%28",
    "%ED%A0%80", "%F4%90%80%80", "%C0%AF", "%2E%2E%2F%41", "%61%2F", "x" * 201, "%2F" * 67, "*", "?", "a:b",
    '"', "<", "a b ",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_names(name):
    assert from_file_name(name, folds_case=False) is None
    assert from_file_name(name, folds_case=True) is None


def test_names_that_look_foreign_and_are_not():
    assert from_file_name("README", folds_case=False) == "README"
    assert from_file_name("README", folds_case=True) is None
    assert from_file_name("%41", folds_case=False) is None
    assert from_file_name("%41", folds_case=True) == "A"
    assert from_file_name("%20a%20") == " a "
    assert from_file_name("%2Ea%2E") == ".a."
    assert from_file_name("%2F" * 66) == "/" * 66


@SETTINGS
@example("%~" + "0" * 40, False)
@given(st.one_of(st.text(max_size=30), tricky_text, st.sampled_from(FOREIGN), keys.map(to_file_name)), folds)
def test_a_name_has_a_key_only_if_it_is_the_name_of_that_key(name, folds_case):
    key = from_file_name(name, folds_case=folds_case)
    if key is not None:
        assert to_file_name(check_str_key(key), folds_case=folds_case) == name
        assert not is_digested(name)


@SETTINGS
@given(st.one_of(st.from_regex(SURELY_PLAIN, fullmatch=True), keys))
def test_what_is_surely_plain_is_its_own_key(name):
    if re.fullmatch(SURELY_PLAIN, name):
        assert from_file_name(name) == to_file_name(name) == name
        assert not is_digested(name)


@SETTINGS
@given(st.text(max_size=700))
def test_what_is_a_key(text):
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = 0
    if 0 < size <= MAX_KEY_BYTES:
        assert check_str_key(text) == text
    else:
        with pytest.raises(InvalidKeyError):
            check_str_key(text)


@pytest.mark.parametrize("size", [1024, 1025])
@pytest.mark.parametrize("char", ["x", "é", "€", "\U0001f600"])
def test_the_longest_key(char, size):
    width = len(char.encode())
    key = char * (size // width) + "x" * (size % width)
    if size == 1024:
        assert check_str_key(key) == key
    else:
        with pytest.raises(InvalidKeyError, match="1025 bytes, the most is 1024"):
            check_str_key(key)


# places


def inode(path):
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def tree(path):
    """Return all that lies below a directory, with the inode of the directory it lies in."""
    return {
        (inode(Path(at)), inode(Path(at) / name), name) for at, dirs, files in os.walk(path) for name in dirs + files
    }


def check_place(folder, some):
    """Put keys into a stash, and see that each makes one file, right in the directory of the stash."""
    root = folder / "root"
    stash = DirectoryStash(root)
    stash.dump("first", 0)
    victim = folder / "victim.dat"
    victim.write_bytes(b"mine")
    outside = tree(folder) - tree(root)
    count = len(list(root.iterdir()))
    for number, key in enumerate(some):
        new = not stash.exists(key)
        stash.dump(key, number)
        count += new
        path = stash.key_to_path(key)
        assert inode(path.parent) == inode(root)
        assert (inode(root), inode(path), path.name) in tree(folder)
        assert len(list(root.iterdir())) == count, "a key is one file"
        assert stash[key] == number
    assert set(stash.keys()) == {"first", *some}
    assert tree(folder) - tree(root) == outside
    assert all(stat.S_ISREG(os.lstat(path).st_mode) for path in root.iterdir())
    assert stash.delete_many(set(some) | {"first"}) == len(set(some) | {"first"})
    assert list(root.iterdir()) == []
    assert tree(folder) - tree(root) == outside
    assert victim.read_bytes() == b"mine"


def test_no_listed_key_leaves_its_directory(tmp_path):
    (tmp_path / "a").mkdir()
    check_place(tmp_path / "a", [*HOSTILE_KEYS, *TRAVERSALS, str(tmp_path / "x"), str(tmp_path / "a" / "victim")])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@settings(SETTINGS, max_examples=50)
@given(some=st.lists(keys, min_size=1, max_size=5))
def test_no_key_leaves_its_directory(some, tmp_path):
    folder = tmp_path / "example"
    folder.mkdir()
    try:
        check_place(folder, some)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "pattern", ["{name}", "{name}.dat", "x-{name}", "%{name}", "{name}%", "a%{name}%b", "-{name}~.x"]
)
def test_patterns_lead_keys_nowhere_else(pattern, tmp_path):
    root = tmp_path / "root"
    stash = DirectoryStash(root, pattern)
    some = sorted({*HOSTILE_KEYS, *TRAVERSALS})
    for key in some:
        stash.dump(key, key)
    assert set(stash.keys()) == set(some)
    assert all(stash[key] == key for key in some)
    assert len(list(root.iterdir())) == len(some)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_broken_stash_is_found_to_leave_its_directory(tmp_path, monkeypatch):
    # The check can fail.
    monkeypatch.setattr("zpersist.files.layout.to_file_name", lambda name: name)
    for number, key in enumerate(("../victim", "sub/x", "..")):
        folder = tmp_path / str(number)
        (folder / "root" / "sub").mkdir(parents=True)
        with pytest.raises((AssertionError, ZPersistError)):
            check_place(folder, [key])


# modes


def use_directory(path):
    stash = DirectoryStash(path / "new" / "data", durability="fsync")
    stash.dump_many({"a": 1, "a/b": 2, "long" * 100: 3})
    stash.update("a", lambda old: 2)
    stash.add("b", bytes(100_000))
    with stash._flight("a"):
        pass
    stash._companion("journal").dump("x", 1)


def use_sqlite(path):
    with SqliteStash(path / "new" / "data.db") as stash:
        stash.dump("a", 1)
        with stash._flight("a"):
            pass
        stash._companion("journal").dump("x", 1)
        check_modes(path)


def use_shelf(path):
    with ShelveStash(path / "new" / "shelf") as stash:
        stash.dump("a", 1)


def use_composite(path):
    stash = DirectoryCompositeStash(path / "new", ({"a"}, {"b"}), "data")
    stash.dump("x", SimpleNamespace(data={"a": 1, "b": 2}))


def use_increment(path):
    IncrementKeyDirectoryStash(path / "new" / "runs").dump("value")


def use_work(path):
    work = PersistedWork(path / "new" / "newer" / "work.dat", None, mkdir=True)
    work.worker = lambda: 1
    assert work() == 1


def use_failures(path):
    stash = FailureFilterStash(DictionaryStash({"a": 1}), path / "new" / "keys")
    assert list(stash.keys()) == ["a"]


def use_locks(path):
    for ranges in (True, False):
        with KeyLocks(str(path / f"locks {ranges}" / "lock"), ranges=ranges).hold("a"):
            pass


USES = [use_directory, use_sqlite, use_shelf, use_composite, use_increment, use_work, use_failures, use_locks]


def check_modes(path):
    """See that what lies below a directory is for its owner alone."""
    found = [
        (stat.S_ISDIR(mode), stat.S_IMODE(mode), name) for name in path.rglob("*") for mode in [name.lstat().st_mode]
    ]
    assert found
    assert [(oct(mode), name) for is_dir, mode, name in found if mode != (0o700 if is_dir else 0o600)] == []


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("umask", [0, 0o022, 0o077], ids=oct)
def test_what_is_made_is_private(umask, use, tmp_path):
    before = os.umask(umask)
    try:
        use(tmp_path)
    finally:
        assert os.umask(before) == umask, "nobody changes the umask: it is that of all threads"
    check_modes(tmp_path)


def test_what_is_there_keeps_its_mode(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    DirectoryStash(folder).dump("a", 1)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "a.dat").stat().st_mode) == 0o600


# links that somebody planted


@pytest.fixture
def victim(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "victim"
    path.write_bytes(b"mine")
    yield path
    assert path.read_bytes() == b"mine"
    assert [name.name for name in folder.iterdir()] == ["victim"]


WRITERS = {
    "dump": lambda path: DirectoryStash(path / "data").dump("a", "new"),
    "add": lambda path: DirectoryStash(path / "data").add("b", "new"),
    "update": lambda path: DirectoryStash(path / "data").update("a", lambda old: "new"),
    "large": lambda path: DirectoryStash(path / "data").dump("a", bytes(300_000)),
    "work": lambda path: PersistedWork(path / "data" / "work.dat", None).set("new"),
}


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("write", WRITERS)
def test_a_link_with_the_name_of_the_temporary_file(write, hard, dangling, tmp_path, victim, monkeypatch):
    if hard and dangling:
        return
    DirectoryStash(tmp_path / "data").dump("a", "old")
    target = victim.parent / "not there" if dangling else victim
    planted = []
    real = os.open

    def foresee(path, flags, *args, **options):
        # Somebody who knows the name is there first.
        if flags & os.O_CREAT and not planted:
            planted.append(path)
            os.link(target, path) if hard else os.symlink(target, path)
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", foresee)
    with pytest.raises(StorageError) as caught:
        WRITERS[write](tmp_path)
    monkeypatch.undo()
    assert str(tmp_path / "data") in str(caught.value)
    assert victim.read_bytes() == b"mine"
    assert planted
    assert os.path.lexists(planted[0]), "what others put there is not deleted either"
    assert DirectoryStash(tmp_path / "data")["a"] == "old"
    os.unlink(planted[0])
    WRITERS[write](tmp_path)


def put_file(path):
    path.write_bytes(b"mine")


def put_directory(path):
    path.mkdir()
    (path / "inside").write_bytes(b"mine")


@pytest.mark.parametrize("put", [put_file, put_directory, os.mkfifo, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("write", WRITERS)
def test_things_with_names_like_those_of_temporary_files(write, put, tmp_path, monkeypatch):
    # They are looked at when leftovers are swept.
    seen = []
    real = os.open

    def watch(path, flags, *args, **options):
        if flags & os.O_EXCL:
            seen.append(os.path.basename(path))
        return real(path, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", watch)
        DirectoryStash(tmp_path / "first").dump("a", 1)
    start, *parts = seen[0].removesuffix(".tmp").split("-")
    names = {f"{start}.tmp", f"{start}-.tmp", f"{start}----.tmp", f"{start}-", seen[0], f"{seen[0]}x"}
    for number in range(len(parts)):
        for odd in ("", "zz", "0", "1", "-1", "7fffffff", "f" * 40, "é", "1_0", " 1", "+1", "0x1"):
            names.add("-".join([start, *parts[:number], odd, *parts[number + 1 :]]) + ".tmp")
    for number, name in enumerate(sorted(names)):
        folder = tmp_path / str(number)
        (folder / "data").mkdir(parents=True)
        put(folder / "data" / name)
        if write == "update":
            WRITERS["dump"](folder)
        WRITERS[write](folder)
        stash = DirectoryStash(folder / "data")
        assert list(stash.keys()) in (["a"], ["b"], ["work"])
        assert all(value in ("new", bytes(300_000)) for value in stash.values())
        stash.clear()
        assert list(stash.keys()) == []


def hold_directory(path):
    with DirectoryStash(path / "data")._flight("a"):
        pass


def hold_sqlite(path):
    with SqliteStash(path / "data")._flight("a"):
        pass


def hold_work(path):
    work = PersistedWork(path / "data", None)
    work.worker = lambda: 1
    work()
    work.clear()


def hold_shelf(path):
    with ShelveStash(path / "data") as stash:
        stash.dump("a", 1)


def hold_range(path):
    with KeyLocks(str(path / "x.lock"), ranges=True).hold("a"):
        pass


def hold_file(path):
    with KeyLocks(str(path / "x.lock"), ranges=False).hold("a"):
        pass


HOLDERS = [hold_directory, hold_sqlite, hold_work, hold_shelf, hold_range, hold_file]


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("hold", HOLDERS)
def test_a_link_with_the_name_of_the_lock(hold, dangling, tmp_path, victim):
    hold(tmp_path)
    (lock,) = tmp_path.glob("*.lock*")
    lock.unlink()
    lock.symlink_to(victim.parent / "not there" if dangling else victim)
    with pytest.raises(StorageError) as caught:
        hold(tmp_path)
    assert str(lock) in str(caught.value)
    assert lock.is_symlink()
    lock.unlink()
    hold(tmp_path)


def test_a_link_with_the_name_of_a_value_is_replaced_not_followed(tmp_path, victim):
    stash = DirectoryStash(tmp_path / "data")
    stash.dump("a", "old")
    path = stash.key_to_path("a")
    for write in (lambda: stash.dump("a", "new"), lambda: PersistedWork(path, None).set("new")):
        path.unlink()
        path.symlink_to(victim)
        write()
        assert not path.is_symlink()
        assert stash["a"] == "new"
    path.unlink()
    path.symlink_to(victim)
    assert stash.delete("a")
    assert not path.is_symlink()
    path.symlink_to(victim.parent / "not there")
    with pytest.raises(StorageError, match="symbolic link to nothing"):
        stash.add("a", "x")
    path.unlink()


def test_a_directory_that_is_planted_is_not_emptied(tmp_path, victim):
    stash = DirectoryStash(tmp_path / "data")
    stash._companion("journal").dump("x", 1)
    (house,) = (path for path in (tmp_path / "data").iterdir() if path.is_dir())
    shutil.rmtree(house)
    house.symlink_to(victim.parent)
    stash.clear()
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_links_beside_a_database(end, tmp_path, victim):
    path = tmp_path / "data.db"
    with SqliteStash(path) as stash:
        stash.dump("a", 1)
    Path(f"{path}{end}").symlink_to(victim)
    with SqliteStash(path) as stash:
        try:
            stash.dump("a", 2)
        except StorageError as err:
            assert str(path) in str(err)
    assert victim.read_bytes() == b"mine"
