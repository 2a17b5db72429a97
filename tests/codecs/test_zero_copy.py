"""Large buffers within any object come back as read-only views on the file, and the file may go meanwhile."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
from array import array

import pytest
from attrs import define

from zpersist import DirectoryStash, EncodeError, PersistedWork, PickleCodec, SqliteStash

numpy = pytest.importorskip("numpy")

SIZE = 200_000


@define
class Attrs:
    name: str
    data: object


@dataclasses.dataclass
class Data:
    inner: object


def arrays():
    yield "int", numpy.arange(SIZE)
    yield "float", numpy.linspace(0, 1, SIZE).reshape(2, -1)
    yield "fortran", numpy.asfortranarray(numpy.arange(SIZE, dtype="i2").reshape(100, -1))
    yield "structured", numpy.zeros(SIZE // 8, dtype=[("a", "i4"), ("b", "f8")])


def wrappers():
    yield "plain", (lambda value: value), (lambda kept: kept)
    yield "dict", (lambda value: {"x": [value, 1]}), (lambda kept: kept["x"][0])
    yield "attrs", (lambda value: Attrs("a", {"d": value})), (lambda kept: kept.data["d"])
    yield "dataclass", (lambda value: Data([Data(value)])), (lambda kept: kept.inner[0].inner)


ARRAYS = dict(arrays())
WRAPPERS = {name: (wrap, unwrap) for name, wrap, unwrap in wrappers()}


def is_mapped(address, size=1):
    """Return whether memory belongs to the map of a value's file."""
    with open("/proc/self/maps", encoding="utf-8") as stream:
        lines = [line for line in stream if ".dat" in line]
    maps = [[int(part, 16) for part in line.split()[0].split("-")] for line in lines]
    return any(start <= address and address + size <= end for start, end in maps)


def is_view_on_map(view):
    """Return whether a memoryview or array shows the map of a value's file."""
    return is_mapped(numpy.asarray(view).ctypes.data)


@pytest.fixture(params=["directory", "work"])
def keep(request, tmp_path):
    """Keep a value in a file, and return it as it is read again."""

    def kept(value, **options):
        if request.param == "directory":
            DirectoryStash(tmp_path, **options)["a"] = value
            return DirectoryStash(tmp_path, **options)["a"]
        PersistedWork(tmp_path / "work.dat", None, **options).set(value)
        return PersistedWork(tmp_path / "work.dat", None, **options)()

    return kept


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_arrays_are_views_on_the_map(keep, array, wrapper):
    wrap, unwrap = WRAPPERS[wrapper]
    value = ARRAYS[array]
    kept = unwrap(keep(wrap(value)))
    assert kept.dtype == value.dtype
    assert (kept == value).all()
    assert kept.flags["F_CONTIGUOUS"] == value.flags["F_CONTIGUOUS"]
    assert is_view_on_map(kept)
    assert kept.ctypes.data % 64 == 0
    assert not kept.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        kept[...] = 0
    private = unwrap(keep(wrap(value), mmap=False))
    assert private.flags.writeable
    private[...] = 0
    assert (unwrap(keep(wrap(value))) == value).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: memoryview(os.urandom(SIZE)),
        lambda: memoryview(bytearray(os.urandom(SIZE))),
        lambda: memoryview(array("d", range(SIZE))),
        lambda: memoryview(numpy.arange(SIZE, dtype="f4").reshape(4, -1)),
        lambda: memoryview(b"small"),
        lambda: memoryview(b""),
    ],
)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_views(keep, make, wrapper):
    wrap, unwrap = WRAPPERS[wrapper]
    value = make()
    kept = unwrap(keep(wrap(value)))
    assert type(kept) is memoryview
    assert (kept.format, kept.shape, kept.tobytes()) == (value.format, value.shape, value.tobytes())
    if value.nbytes > 1 << 16:
        assert kept.readonly
        assert is_view_on_map(kept)
        private = unwrap(keep(wrap(value), mmap=False))
        assert private.readonly is value.readonly


def test_views_and_arrays_together(keep):
    value = {"array": numpy.arange(SIZE), "view": memoryview(os.urandom(SIZE)), "again": numpy.arange(SIZE) * 2}
    kept = keep(value)
    assert (kept["array"] == value["array"]).all()
    assert (kept["again"] == value["again"]).all()
    assert kept["view"] == value["view"]


def test_views_elsewhere(tmp_path):
    view = memoryview(os.urandom(SIZE))
    with SqliteStash(tmp_path / "data.db") as stash:
        stash["a"] = [view]
        assert stash["a"][0] == view
    codec = PickleCodec()
    assert codec.loads(codec.dumps(view)) == view
    # As ever a plain pickle, for those who have zpersist.
    assert pickle.loads(codec.dumps([view]))[0] == view


def test_a_view_that_is_not_contiguous_is_refused(tmp_path):
    with pytest.raises(EncodeError, match="can't be pickled"):
        DirectoryStash(tmp_path)["a"] = memoryview(b"abcdef" * 30_000)[::2]
    assert len(DirectoryStash(tmp_path)) == 0


def needed(module):
    """Return a module that is not among what tests need; in CI it has to be there."""
    return importlib.import_module(module) if "CI" in os.environ else pytest.importorskip(module)


@pytest.mark.slow
def test_frames(keep):
    pandas = needed("pandas")
    frame = pandas.DataFrame({"a": numpy.arange(SIZE), "b": numpy.linspace(0, 1, SIZE)})
    kept = keep({"frame": frame})["frame"]
    assert kept.equals(frame)
    assert is_view_on_map(kept["a"].to_numpy())
    with pytest.raises(ValueError, match="read-only"):
        kept["b"].to_numpy()[0] = 5
    private = keep({"frame": frame}, mmap=False)["frame"]
    assert private.equals(frame)


@pytest.mark.slow
def test_arrow(keep):
    pyarrow = needed("pyarrow")
    table = pyarrow.table({"a": numpy.arange(SIZE), "b": [str(n) for n in range(SIZE)]})
    kept = keep([table])[0]
    assert kept.equals(table)
    addresses = [
        (buffer.address, buffer.size)
        for column in kept.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer is not None and buffer.size > 1 << 16
    ]
    assert addresses
    for address, size in addresses:
        assert address % 64 == 0
        assert is_mapped(address, size)


@pytest.mark.parametrize("how", ["delete", "replace", "clear", "unlink", "shorter"])
def test_the_file_may_go_while_a_view_lives(tmp_path, how):
    stash = DirectoryStash(tmp_path)
    stash["a"] = numpy.arange(SIZE)
    kept = stash["a"]
    if how == "delete":
        stash.delete("a")
    elif how == "replace":
        stash["a"] = numpy.zeros(SIZE)
    elif how == "shorter":
        stash["a"] = 1
    elif how == "clear":
        stash.clear()
    else:
        stash.key_to_path("a").unlink()
    assert (kept == numpy.arange(SIZE)).all()
