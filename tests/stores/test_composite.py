"""Objects in parts: deaths in the middle, damage, leftovers, other settings, many at once.

Checks are functions, so that the controls at the end can run them on composites that are broken on purpose.
"""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest

from zpersist import (
    CodecMismatchError,
    CorruptValueError,
    DecodeError,
    DillCodec,
    DirectoryCompositeStash,
    DirectoryStash,
    FormatVersionError,
    InvalidArgumentError,
    MissingDataKeysError,
    SignedCodec,
    StorageError,
)
from zpersist.damage import is_lost
from zpersist.files import envelope
from zpersist.stores import composite as composite_module
from zpersist.stores.group import Groups, GroupStash

fork = multiprocessing.get_context("fork")

LEFT_RIGHT = ({"left"}, {"right"})
LONG = "7" * 300
#: Large enough to lie beside the pickle, where only a whole read checks it.
SIZE = 70_000


class Large:
    """Has bytes that are mapped when it is loaded."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        return Large, (pickle.PickleBuffer(self.data),)

    def __eq__(self, other):
        return bytes(self.data) == bytes(other.data)

    __hash__ = None


def whole(value):
    return SimpleNamespace(name=value, parts={"left": [value], "right": Large(str(value)[:1].encode() * SIZE)})


def make(path, groups=LEFT_RIGHT, **options):
    return DirectoryCompositeStash(path / "data", groups, "parts", **options)


def killed(act, at):
    """Have a process killed before its ``at``-th change of a name; return whether it came to that."""

    def work():
        calls = itertools.count(1)

        def deadly(call):
            def change(*args, **kwargs):
                if next(calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return change

        for name in ("replace", "unlink", "link"):
            setattr(os, name, deadly(getattr(os, name)))
        act()

    child = fork.Process(target=work)
    child.start()
    child.join()
    code = child.exitcode
    child.close()
    assert code in (0, -signal.SIGKILL)
    return code != 0


#: A dump of two groups changes five names: both wait, the object, both are put in place.
BEFORE_COMMIT, COMMITTED, ONE_IN_PLACE = 3, 4, 5


def cut_short(path, name, value, at, **options):
    assert killed(lambda: make(path, **options).dump(name, value), at)


def files_in(folder):
    """Return the names of all files below a folder."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# what is missing


def check_missing(path):
    stash = make(path)
    stash["1"] = whole("old")
    stash["2"] = whole("other")
    assert list(stash.verify()) == []
    (path / "data/comp/left/1.dat").unlink()
    (damage,) = stash.verify()
    assert (damage.key, damage.repaired, type(damage.error)) == ("1", False, CorruptValueError)
    assert "group 'left' of '1' is missing" in str(damage.error)
    with pytest.raises(CorruptValueError, match="'left' of '1' is missing"):
        stash["1"]
    assert make(path, load_keys={"right"})["1"].parts == {"right": Large(b"o" * SIZE)}


def test_a_missing_group_is_damage(tmp_path):
    check_missing(tmp_path)


def test_a_group_of_another_dump_is_damage(tmp_path):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    shutil.copy(tmp_path / "data/comp/left/1.dat", tmp_path / "old")
    stash["1"] = whole("new")
    shutil.move(tmp_path / "old", tmp_path / "data/comp/left/1.dat")
    assert [damage.key for damage in stash.verify()] == ["1"]
    with pytest.raises(CorruptValueError, match="cut short"):
        stash["1"]


def test_all_damage_of_an_object_is_told(tmp_path):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    (tmp_path / "data/comp/left/1.dat").unlink()
    flip(tmp_path / "data/comp/right/1.dat")
    (damage,) = stash.verify()
    (note,) = damage.error.__notes__
    assert {"left", "right"} == {name for name in ("left", "right") if name in f"{damage.error} {note}"}


# what waits


def check_damage_to_what_waits(path):
    make(path)["1"] = whole("old")
    cut_short(path, "1", whole("new"), COMMITTED)
    stash = make(path)
    assert stash["1"] == whole("new")
    assert list(stash.verify()) == []
    flip(path / "data/comp/right/.+1.dat")
    (damage,) = stash.verify()
    assert damage.key == "1"
    assert ".+1.dat" in str(damage.error)


def test_damage_to_what_waits_is_found(tmp_path):
    check_damage_to_what_waits(tmp_path)


@pytest.mark.parametrize("how", [flip, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
@pytest.mark.parametrize("at", [1, 2, BEFORE_COMMIT])
def test_damage_to_what_was_never_committed_is_none(tmp_path, at, how):
    make(tmp_path)["1"] = whole("old")
    cut_short(tmp_path, "1", whole("new"), at)
    for file in (tmp_path / "data/comp").rglob(".*1.dat"):
        how(file)
    assert make(tmp_path)["1"] == whole("old")
    assert list(make(tmp_path).verify()) == []
    make(tmp_path)["1"] = whole("newest")
    assert make(tmp_path)["1"] == whole("newest")
    assert [name for name in files_in(tmp_path / "data") if "/." in name] == []


def check_sweep(path, act, key="9"):
    stash = make(path)
    stash["1"] = whole("old")
    usual = files_in(path)
    cut_short(path, key, whole("new"), BEFORE_COMMIT)
    assert len([name for name in files_in(path) if ".+" in name]) == 2
    act(make(path))
    # The temporary files of the dead are swept by the first write.
    assert [name for name in files_in(path) if "/.zpersist-" not in name] == usual
    assert make(path)["1"] == whole("old")


def dump_another(stash):
    stash["2"] = whole("other")
    stash.delete("2")


SWEEPS = {
    "dump": dump_another,
    "drop": lambda stash: list(stash.verify(repair="drop")),
}


@pytest.mark.parametrize("act", SWEEPS)
@pytest.mark.parametrize("key", ["1", "9"])
def test_what_was_never_committed_is_swept(tmp_path, act, key):
    check_sweep(tmp_path, SWEEPS[act], key)


@pytest.mark.parametrize("act", SWEEPS)
@pytest.mark.parametrize("at", [COMMITTED, ONE_IN_PLACE])
def test_what_was_committed_is_not_swept(tmp_path, act, at):
    make(tmp_path)["1"] = whole("old")
    cut_short(tmp_path, "1", whole("new"), at)
    SWEEPS[act](make(tmp_path))
    assert make(tmp_path)["1"] == whole("new")
    assert [name for name in files_in(tmp_path) if ".+" in name] == []


def test_what_waits_for_an_object_that_can_not_be_read_is_not_swept(tmp_path):
    make(tmp_path)["1"] = whole("old")
    cut_short(tmp_path, "1", whole("new"), COMMITTED)
    dump_another(make(tmp_path, codec=DillCodec()))
    assert make(tmp_path)["1"] == whole("new")


def test_what_waits_and_is_somebody_elses_is_damage(tmp_path):
    make(tmp_path)[LONG] = whole("old")
    cut_short(tmp_path, LONG, whole("new"), COMMITTED)
    (waiting,) = (tmp_path / "data/comp/left").glob(".+*")
    other = make(tmp_path / "other")
    other[LONG + "0"] = whole("other")
    shutil.copy(next((tmp_path / "other/data/comp/left").iterdir()), waiting)
    with pytest.raises(CorruptValueError, match="is the value of '7777"):
        make(tmp_path)[LONG]


# damage to what is of no account


def in_another_codec(path):
    stash = DirectoryStash(path.parent, codec=DillCodec())
    stash["1"] = ("token", {})


def of_a_newer_version(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "FORMAT_VERSION", 7)
        DirectoryStash(path.parent)["1"] = ("token", {})


DAMAGES = {
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "another codec": in_another_codec,
    "newer": of_a_newer_version,
    "no group": lambda path: DirectoryStash(path.parent).dump("1", "text"),
}


def check_old_damage(path, how):
    make(path)["1"] = whole("old")
    cut_short(path, "1", whole("new"), COMMITTED)
    for group in ("left", "right"):
        how(path / "data/comp" / group / "1.dat")
    assert make(path)["1"] == whole("new")
    assert list(make(path).verify()) == []
    part = make(path, load_keys={"left"})
    part["1"] = SimpleNamespace(name="part", parts={"left": ["part"]})
    assert make(path)["1"] == SimpleNamespace(name="part", parts={"left": ["part"], "right": Large(b"n" * SIZE)})


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_to_an_old_group_hides_no_new_one(tmp_path, how):
    check_old_damage(tmp_path, DAMAGES[how])


@pytest.mark.parametrize("how", DAMAGES)
def test_a_whole_object_replaces_what_can_not_be_read(tmp_path, how):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    DAMAGES[how](tmp_path / "data/inst/1.dat")
    part = SimpleNamespace(name="part", parts={"left": [1]})
    expected = MissingDataKeysError if how == "missing" else (CorruptValueError, CodecMismatchError, DecodeError)
    with pytest.raises(expected):
        stash["1"] = part
    stash["1"] = whole("new")
    assert stash["1"] == whole("new")


def test_what_is_no_object_of_a_composite(tmp_path):
    DirectoryStash(tmp_path / "data/inst")["1"] = "text"
    stash = make(tmp_path)
    with pytest.raises(DecodeError, match="holds no object of a composite"):
        stash["1"]
    (damage,) = stash.verify(repair="drop")
    assert not damage.repaired
    assert DirectoryStash(tmp_path / "data/inst")["1"] == "text"


def limited(act):
    """Have a process run something while no file may have more than a few bytes; return what it raises."""
    told = fork.SimpleQueue()

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            act()
        except Exception as err:
            told.put(type(err))
        else:
            told.put(None)

    child = fork.Process(target=work)
    child.start()
    kind = told.get()
    child.join()
    child.close()
    return kind


def check_what_waits_for_others(path):
    make(path)["1"] = whole("old")
    cut_short(path, "1", whole("new"), COMMITTED)
    other = make(path, codec=DillCodec())
    assert limited(lambda: other.dump("1", whole("other"))) in (CodecMismatchError, StorageError)
    assert make(path)["1"] == whole("new")
    with pytest.raises(CodecMismatchError) as caught:
        other["1"] = whole("other")
    assert "or delete it" in caught.value.__notes__[0]
    assert make(path)["1"] == whole("new")


def test_what_waits_for_an_object_that_others_can_read_is_not_written_over(tmp_path):
    check_what_waits_for_others(tmp_path)
    other = make(tmp_path, codec=DillCodec())
    make(tmp_path)["2"] = whole("two")
    other["1"] = whole("other")
    assert other["1"] == whole("other")


def test_what_waits_for_an_object_that_nobody_can_read_is_written_over(tmp_path):
    make(tmp_path)["1"] = whole("old")
    cut_short(tmp_path, "1", whole("new"), COMMITTED)
    flip(tmp_path / "data/inst/1.dat")
    make(tmp_path)["1"] = whole("newest")
    assert make(tmp_path)["1"] == whole("newest")
    assert [name for name in files_in(tmp_path / "data") if ".+" in name] == []


SHAPES = {
    "five": (1, 2, 3, 4, 5),
    "no names": (None, "parts", False, [1], {}),
    "no tokens": (None, "parts", False, [], {"left": 1, "right": 2}),
    "four": (1, 2, 3, 4),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tuple_that_is_no_object(tmp_path, shape):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    DirectoryStash(tmp_path / "data/inst")["1"] = SHAPES[shape]
    with pytest.raises(DecodeError, match="holds no object of a composite"):
        stash["1"]
    assert [(type(damage.error), damage.repaired) for damage in stash.verify(repair="drop")] == [(DecodeError, False)]
    stash["1"] = whole("new")
    assert stash["1"] == whole("new")


@pytest.mark.parametrize("part", [7, None, [1]])
def test_a_tuple_that_is_no_group(tmp_path, part):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    token = DirectoryStash(tmp_path / "data/comp/left")["1"][0]
    DirectoryStash(tmp_path / "data/comp/left")["1"] = (token, part)
    with pytest.raises(DecodeError, match="holds no group of a composite"):
        stash["1"]
    assert [type(damage.error) for damage in stash.verify()] == [DecodeError]


class Closed:
    """Has an attribute that can't be set."""

    __slots__ = ()

    @property
    def parts(self):
        return {"left": 1, "right": 2}


class Unique:
    """Can't be copied."""

    def __init__(self):
        self.parts = {"left": 1, "right": 2}

    def __copy__(self):
        raise RuntimeError("there is only one")


ODD = {
    "no attribute": (object(), "the attribute 'parts' of the object is not there; set it to a dict"),
    "nothing": (SimpleNamespace(parts=None), "the attribute 'parts' of the SimpleNamespace is a NoneType; set it"),
    "a list": (SimpleNamespace(parts=[1]), "is a list"),
    "closed": (Closed(), "can't be set .*; make it a plain attribute of Closed"),
    "unique": (Unique(), "copy.copy.* of the Unique.* has failed .RuntimeError: there is only one.; give it"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_can_not_be_taken_apart(tmp_path, odd):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    inst, text = ODD[odd]
    with pytest.raises(InvalidArgumentError, match=text) as caught:
        stash["1"] = inst
    assert "'1'" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert stash["1"] == whole("old")


class Opened:
    def __init__(self):
        self.parts = {"left": 1, "right": 2}


def test_an_attribute_that_can_not_be_set_any_more(tmp_path, monkeypatch):
    stash = make(tmp_path)
    stash["1"] = Opened()
    monkeypatch.setattr(Opened, "parts", property(lambda self: {}), raising=False)
    with pytest.raises(DecodeError, match="the attribute 'parts' of '1' in .* can't be set"):
        stash["1"]


# paths


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    stash = DirectoryCompositeStash("data", LEFT_RIGHT, "parts")
    stash["1"] = whole("old")
    monkeypatch.chdir(tmp_path / "two")
    for twin in (pickle.loads(pickle.dumps(stash)), copy.copy(stash), copy.deepcopy(stash)):
        assert dict(twin) == {"1": whole("old")}
        twin["1"] = whole("old")
    assert list(tmp_path.joinpath("two").iterdir()) == []


def test_what_is_sealed_is_read_by_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    codec = SignedCodec(None, bytes(32))
    make(tmp_path / "real", codec=codec)["1"] = whole("old")
    assert make(tmp_path / "link", codec=codec)["1"] == whole("old")
    make(tmp_path / "link", codec=codec)["1"] = whole("new")
    assert make(tmp_path / "real", codec=codec)["1"] == whole("new")


# repairs


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
@pytest.mark.parametrize("what", [os.mkfifo, lambda path: os.symlink("nothing", path)], ids=["pipe", "link"])
def test_what_is_no_file_in_the_place_of_a_group(tmp_path, what, repair):
    stash = make(tmp_path)
    stash.dump_many({"1": whole("old"), "2": whole("other")})
    path = tmp_path / "data/comp/right/1.dat"
    path.unlink()
    what(path)
    assert [(damage.key, damage.repaired) for damage in stash.verify(repair=repair)] == [("1", True)]
    assert dict(stash) == {"2": whole("other")}
    assert not os.path.lexists(path)


def file_of(path, folder):
    """Return the file of the object ``1``, wherever it is."""
    (file,) = (path / "data" / folder).rglob("1.dat")
    return file


def damage_group(path):
    flip(file_of(path, "comp/right"))


def lose_group(path):
    file_of(path, "comp/right").unlink()


def damage_object(path):
    file_of(path, "inst").write_bytes(b"")


@pytest.mark.parametrize("how", [damage_group, lose_group, damage_object])
@pytest.mark.parametrize("repair", ["drop", "quarantine"])
@pytest.mark.parametrize("fan_out", [0, 16])
def test_an_object_is_repaired_as_a_whole(tmp_path, how, repair, fan_out):
    stash = make(tmp_path, fan_out=fan_out)
    stash["1"] = whole("old")
    stash["2"] = whole("other")
    how(tmp_path)
    (damage,) = stash.verify(repair=repair)
    assert (damage.key, damage.repaired) == ("1", True)
    assert list(stash.keys()) == ["2"]
    assert stash["2"] == whole("other")
    assert list(stash.verify()) == []
    aside = [name for name in files_in(tmp_path / "data") if "1.dat" in name]
    there = {"inst", "left", "right"} - ({"right"} if how is lose_group else set())
    folders = {name.split("/.zpersist/quarantine/")[0].rpartition("/")[2] for name in aside}
    assert folders == (there if repair == "quarantine" else set())
    stash["1"] = whole("new")
    stash.clear()
    assert [name for name in files_in(tmp_path / "data") if "1.dat" in name] == aside


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_what_somebody_can_read_is_not_put_away(tmp_path, repair):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    of_a_newer_version(tmp_path / "data/comp/left/1.dat")
    flip(tmp_path / "data/comp/right/1.dat")
    before = files_in(tmp_path)
    (damage,) = stash.verify(repair=repair)
    assert (type(damage.error), damage.repaired) == (FormatVersionError, False)
    assert files_in(tmp_path) == before


def check_orphans(tmp_path, repair):
    stash = make(tmp_path)
    for key in ("1", LONG):
        stash[key] = whole("old")
    stash["2"] = whole("other")
    for file in (tmp_path / "data/inst").glob("[17]*.dat"):
        file.unlink()
    before = files_in(tmp_path)
    assert list(stash.verify()) == []
    assert files_in(tmp_path) == before
    assert list(stash.verify(repair=repair)) == []
    expected = ["comp/left/2.dat", "comp/right/2.dat", "inst/2.dat"]
    assert [name for name in files_in(tmp_path / "data") if ".zpersist" not in name] == expected
    laid_aside = [name for name in files_in(tmp_path / "data") if "/quarantine/" in name]
    assert len(laid_aside) == (4 if repair == "quarantine" else 0)


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_groups_of_no_object_are_put_away(tmp_path, repair):
    check_orphans(tmp_path, repair)


@pytest.mark.parametrize("repair", ["drop", "quarantine"])
def test_repairs_that_are_killed(tmp_path, repair):
    for at in itertools.count(1):
        path = tmp_path / str(at)
        make(path)["1"] = whole("old")
        make(path)["2"] = whole("other")
        damage_group(path)
        died = killed(lambda path=path: list(make(path).verify(repair=repair)), at)
        stash = make(path)
        assert [damage.key for damage in stash.verify(repair=repair)] in ([], ["1"])
        assert dict(stash) == {"2": whole("other")}
        assert [name for name in files_in(path) if "1.dat" in name and "quarantine" not in name] == []
        assert {"comp/right", "inst"} <= {
            name.partition("/.zpersist")[0] for name in files_in(path / "data") if "1.dat" in name
        } or repair == "drop"
        if not died:
            break
    assert at > 3


# clearing


def check_clear(path, fan_out):
    options = {"fan_out": fan_out}
    for at in range(1, 6):
        cut_short(path, f"new {at}", whole("new"), at, **options)
        make(path, **options)[f"old {at}"] = whole("old")
        cut_short(path, f"old {at}", whole("new"), at, **options)
    cut_short(path, LONG, whole("new"), BEFORE_COMMIT, **options)
    make(path, **options)[LONG + "0"] = whole("old")
    make(path, ({"left", "right"},), **options)["other groups"] = whole("old")
    killed(lambda: make(path, **options).delete("old 5"), 2)
    if not fan_out:
        (path / "data/inst/gone.dat").mkdir()
        shutil.copytree(path / "data/comp/left", path / "data/comp/older")
    foreign = path / "data/comp/left/notes.txt"
    foreign.write_text("mine")
    make(path, **options).clear()
    found = [name for name in files_in(path / "data/comp") if not name.endswith(".zpersist/fan_out")]
    assert found == ["left/notes.txt"]
    assert list(make(path, **options)) == []
    make(path, **options)["1"] = whole("new")
    assert make(path, **options)["1"] == whole("new")


@pytest.mark.parametrize("fan_out", [0, 16])
def test_clear_leaves_nothing(tmp_path, fan_out):
    check_clear(tmp_path, fan_out)


def test_clear_leaves_the_objects_of_others(tmp_path):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    other = DirectoryCompositeStash(tmp_path / "data", LEFT_RIGHT, "parts", pattern="{name}.two")
    other["1"] = whole("other")

    class Interrupted(DirectoryCompositeStash):
        def _cleared(self):
            # Between the deletion of all and the removal of what is left somebody dumps.
            make(tmp_path)["late"] = whole("late")
            super()._cleared()

    Interrupted(tmp_path / "data", LEFT_RIGHT, "parts").clear()
    assert dict(make(tmp_path)) == {"late": whole("late")}
    assert other["1"] == whole("other")


def test_clear_where_nothing_is(tmp_path):
    make(tmp_path).clear()
    assert list(tmp_path.iterdir()) == []
    make(tmp_path)["1"] = whole("old")
    shutil.rmtree(tmp_path / "data/inst")
    make(tmp_path).clear()
    assert files_in(tmp_path) == []


# other settings


TOGETHER = ({"left", "right"},)


def check_other_groups(path):
    first, second = make(path), make(path, TOGETHER)
    first["1"] = whole("first")
    for use in (lambda: second["1"], lambda: second.load("1"), lambda: dict(second)):
        with pytest.raises(InvalidArgumentError, match=r"groups \['left', 'right'\], not 'parts' and \['left-right'\]"):
            use()
    (damage,) = second.verify(repair="drop")
    assert (type(damage.error), damage.repaired) == (InvalidArgumentError, False)
    assert first["1"] == whole("first")
    second["1"] = whole("second")
    assert second["1"] == whole("second")
    with pytest.raises(InvalidArgumentError, match=r"groups \['left-right'\]"):
        first["1"]
    with pytest.raises(InvalidArgumentError, match=r"groups \['left-right'\]"):
        first["1"] = SimpleNamespace(name="part", parts={"left": [1]})
    assert second["1"] == whole("second")
    assert files_in(path / "data") == ["comp/left-right/1.dat", "inst/1.dat"]
    first["1"] = whole("third")
    assert first["1"] == whole("third")
    assert files_in(path / "data") == ["comp/left/1.dat", "comp/right/1.dat", "inst/1.dat"]
    assert second.delete("1")
    assert files_in(path / "data") == []


def test_other_groups_give_no_mix(tmp_path):
    check_other_groups(tmp_path)


def test_more_and_fewer_groups_give_no_mix(tmp_path):
    more = make(tmp_path, ({"left"}, {"right"}, {"extra"}))
    inst = whole("first")
    inst.parts["extra"] = 1
    more["1"] = inst
    fewer = make(tmp_path)
    with pytest.raises(InvalidArgumentError, match="was written with"):
        fewer["1"]
    fewer["1"] = whole("second")
    assert fewer["1"] == whole("second")
    with pytest.raises(InvalidArgumentError, match="was written with"):
        more["1"]
    with pytest.raises(InvalidArgumentError, match="was written with"):
        more["1"] = SimpleNamespace(name="part", parts={"extra": 2})
    assert fewer["1"] == whole("second")


def check_other_attribute(path):
    make(path)["1"] = whole("first")
    other = DirectoryCompositeStash(path / "data", LEFT_RIGHT, "others")
    with pytest.raises(InvalidArgumentError, match="with the attribute 'parts'"):
        other["1"]


def test_another_attribute_is_told(tmp_path):
    check_other_attribute(tmp_path)


def test_groups_in_another_order_are_the_same(tmp_path):
    make(tmp_path)["1"] = whole("first")
    assert make(tmp_path, tuple(reversed(LEFT_RIGHT)))["1"] == whole("first")


def test_dumps_with_other_groups_that_are_killed(tmp_path):
    for at in itertools.count(1):
        path = tmp_path / str(at)
        make(path)["1"] = whole("old")
        cut_short(path, "1", whole("older"), COMMITTED)
        died = killed(lambda path=path: make(path, TOGETHER).dump("1", whole("new")), at)
        found = []
        for groups in (LEFT_RIGHT, TOGETHER):
            with suppress(InvalidArgumentError):
                found.append(make(path, groups)["1"])
        assert found in ([whole("older")], [whole("new")])
        make(path)["1"] = whole("newest")
        assert files_in(path / "data") == ["comp/left/1.dat", "comp/right/1.dat", "inst/1.dat"]
        if not died:
            break
    assert found == [whole("new")]
    assert at > 3


def test_a_group_of_many_keys(tmp_path):
    keys = [f"feature number {number}" for number in range(100)]
    groups = (set(keys[:60]), set(keys[60:]))
    stash = make(tmp_path, groups)
    stash["1"] = SimpleNamespace(parts=dict.fromkeys(keys, 1))
    stash["1"] = SimpleNamespace(parts=dict.fromkeys(keys[:60], 2))
    assert stash["1"].parts == dict.fromkeys(keys[:60], 2) | dict.fromkeys(keys[60:], 1)


# the system says no


def test_groups_that_can_not_be_listed_leave_the_object(tmp_path, monkeypatch):
    stash = make(tmp_path)
    stash["1"] = whole("old")
    listdir = os.listdir

    def failing(path):
        if str(path).endswith("/comp"):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", failing)
    for act in (lambda: stash.dump("1", whole("new")), lambda: stash.delete("1")):
        with pytest.raises(StorageError, match="can not list"):
            act()
    monkeypatch.undo()
    assert stash["1"] == whole("old")


# many at once


def storm(path, rounds):
    """Let processes dump, delete, verify and repair one object, and read it; return what was seen that nobody wrote."""
    make(path)["1"] = whole("0")
    over = fork.Event()

    def dump(number):
        stash = make(path)
        for turn in range(rounds):
            if number == 0 and turn % 5 == 0:
                stash.delete("1")
            stash["1"] = whole(f"{number}{turn}")

    def repair():
        stash = make(path)
        while not over.is_set():
            assert list(stash.verify(repair="drop")) == []

    children = [fork.Process(target=dump, args=(number,)) for number in range(2)]
    repairer = fork.Process(target=repair)
    wrong = []
    for child in (*children, repairer):
        child.start()
    stash = make(path)
    while any(child.is_alive() for child in children):
        try:
            inst = stash.load("1")
        except CorruptValueError as err:
            wrong.append(repr(err))
            continue
        if inst is not None and inst != whole(inst.name):
            wrong.append(inst)
    over.set()
    for child in (*children, repairer):
        child.join()
        if child.exitcode:
            wrong.append(f"a process ended with {child.exitcode}")
        child.close()
    return wrong


def test_processes_give_no_mix(tmp_path):
    assert storm(tmp_path, 60) == []
    assert make(tmp_path)["1"].name in ("059", "159")
    assert files_in(tmp_path / "data") == ["comp/left/1.dat", "comp/right/1.dat", "inst/1.dat"]


# it can fail: composites that are broken on purpose


def first_that_can_be_read(group, name, token, *, mapped):
    """Look at what waits only if the old one is whole."""
    for path in (group._file(name), group.waiting(name)):
        written = group._written(path, name, mapped)
        if written is not None and written[0] == token:
            return written[1]
    raise CorruptValueError("missing")


def mapped_of_dump(group, name, token, *, mapped):
    return OF_DUMP(group, name, token, mapped=True)


OF_DUMP = GroupStash.of_dump

#: Where it is broken, and how; the check that finds it.
BROKEN = {
    "groups unread": (Groups, "verify", lambda groups, name, tokens: None, check_missing),
    "buffers unread": (GroupStash, "of_dump", mapped_of_dump, check_damage_to_what_waits),
    "unsettled": (Groups, "settle", lambda groups, tokens_of: None, lambda path: check_sweep(path, dump_another)),
    "unrepaired": (
        Groups,
        "put_orphans_away",
        lambda groups, repair, name=None: None,
        lambda path: check_orphans(path, "drop"),
    ),
    "old first": (GroupStash, "of_dump", first_that_can_be_read, lambda path: check_old_damage(path, flip)),
    "discarded": (Groups, "waits", lambda groups, name: False, check_what_waits_for_others),
    "uncleared": (Groups, "clear", lambda groups: None, lambda path: check_clear(path, 0)),
    "stale groups": (Groups, "written", lambda groups: iter(groups.by_name.values()), check_other_groups),
    "any groups": (DirectoryCompositeStash, "_check_settings", lambda *args: None, check_other_attribute),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_composite_is_found_out(name, tmp_path, monkeypatch):
    where, attribute, instead, check = BROKEN[name]
    monkeypatch.setattr(where, attribute, instead)
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyError, ValueError)) as caught:
        check(tmp_path)
    assert not isinstance(caught.value, InvalidArgumentError)


def test_processes_without_locks_are_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(composite_module, "directory_lock", lambda path, shared: nullcontext())
    assert any(storm(tmp_path / str(turn), 60) for turn in range(50))


def test_what_is_told_of_other_groups_is_not_lost():
    assert not is_lost(InvalidArgumentError(""))
