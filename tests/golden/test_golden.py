"""Data that an older zpersist wrote is read as it was written, and is not changed by that."""

from __future__ import annotations

import hashlib
import shutil
from types import SimpleNamespace

import pytest

from zpersist import DirectoryStash, FormatVersionError
from zpersist.files import envelope

from .stores import DATA, FOLDER, STORES, VIEWS, composite, increment, work, write

VERSIONS = sorted(FOLDER.glob("format-*"))


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def golden(request, tmp_path):
    """Return a copy of the golden files, for to open a database writes to it."""
    return shutil.copytree(request.param, tmp_path / "golden")


def digests(path):
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*.dat")
        if file.is_file()
    }


@pytest.mark.parametrize("store", STORES)
def test_everything_is_read(golden, store):
    before = digests(golden)
    with STORES[store](golden) as stash:
        expected = DATA | (VIEWS if store == "directory" else {})
        assert dict(stash.items()) == expected
        assert sorted(stash.keys()) == sorted(expected)
        assert list(stash.verify()) == []
    assert digests(golden) == before


@pytest.mark.parametrize("store", STORES)
def test_it_can_be_written_to(golden, store):
    with STORES[store](golden) as stash:
        stash["plain"] = "new"
        stash["another"] = 1
        assert stash.delete("a/b")
    with STORES[store](golden) as stash:
        assert (stash["plain"], stash["another"], stash.get("a/b")) == ("new", 1, None)
        assert stash["large"] == DATA["large"]


def test_others(golden):
    assert composite(golden)["a"] == SimpleNamespace(name="a", parts={"left": [1], "right": {"x": 2}})
    assert dict(increment(golden).items()) == {"1": "first", "2": "second"}
    assert work(golden)() == {"result": 1}


def test_there_is_data_of_the_present_format():
    assert VERSIONS
    assert FOLDER / f"format-{envelope.FORMAT_VERSION}" in VERSIONS


def test_what_is_written_now_is_the_same(tmp_path):
    # A change of the format without a new version would be seen here; what is random is left out.
    write(tmp_path)
    then, now = digests(FOLDER / f"format-{envelope.FORMAT_VERSION}"), digests(tmp_path)
    changing = ("encrypted/", "composite/", "spread/.zpersist")
    # Libraries that compress may do it better one day.
    changing += ("zstd/", "lz4/", "zlib/", "shelf")
    assert {name: digest for name, digest in now.items() if not name.startswith(changing)} == {
        name: digest for name, digest in then.items() if not name.startswith(changing)
    }


def test_a_newer_format_is_refused_by_its_number(golden, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(envelope, "FORMAT_VERSION", 7)
        DirectoryStash(tmp_path / "newer")["a"] = 1
    with pytest.raises(FormatVersionError, match=r"a\.dat is in format 7, this zpersist reads up to 1: up"):
        DirectoryStash(tmp_path / "newer")["a"]


def test_a_reader_that_changes_is_found_out(golden, monkeypatch):
    monkeypatch.setattr(envelope, "_MAGIC", b"ZPRSX\n")
    with pytest.raises(Exception, match="is damaged, or is not zpersist's"):
        dict(STORES["directory"](golden).items())
