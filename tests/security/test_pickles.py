"""Hostile pickles: no data-only codec and no restricted one runs them, and each is one that pickle would run."""

from __future__ import annotations

import ast
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.pickles import MAY_NOT_FIRE, PAYLOADS, Innocent, payloads
from zpersist import (
    Codec,
    CodecMismatchError,
    CompressedCodec,
    CorruptValueError,
    DecodeError,
    DictionaryStash,
    DillCodec,
    DirectoryStash,
    EncryptedCodec,
    JsonCodec,
    MsgpackCodec,
    PickleCodec,
    RestrictedPickleCodec,
    SignedCodec,
    SqliteStash,
    migrate,
)
from zpersist.files.envelope import pack

ROOT = Path(__file__).parents[2]
CODECS = [
    JsonCodec(),
    MsgpackCodec(),
    RestrictedPickleCodec([Innocent]),
    RestrictedPickleCodec([Innocent], numpy=True),
    SignedCodec(PickleCodec(), bytes(32)),
    EncryptedCodec(PickleCodec(), bytes(32)),
]
REFUSALS = (DecodeError, CorruptValueError, CodecMismatchError)

#: Loads each pickle in a fork of its own; a fork that hangs is ended.
LOADER = """
import json, os, signal, sys
from zpersist import PickleCodec
codec = PickleCodec()
for path in json.load(open(sys.argv[1])):
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            codec.loads(open(path, "rb").read())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


def made(folder, name):
    """Return a directory that is empty, and a pickle that makes something there."""
    room = folder / str(PAYLOADS.index(name))
    room.mkdir()
    script = folder / f"{room.name}.py"
    script.write_text(f"open({str(room / 'canary')!r}, 'w').close()")
    return room, payloads(str(room / "canary"), str(script))[name]


@pytest.fixture(scope="module")
def fired(tmp_path_factory):
    """Which of them make something if they are loaded by pickle."""
    folder = tmp_path_factory.mktemp("fired")
    rooms, paths = {}, []
    for name in PAYLOADS:
        room, data = made(folder, name)
        path = folder / f"{room.name}.pickle"
        path.write_bytes(data)
        rooms[name] = room
        paths.append(str(path))
    listed = folder / "paths.json"
    listed.write_text(json.dumps(paths))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    nothing = subprocess.DEVNULL
    command = [sys.executable, "-c", LOADER, str(listed)]
    subprocess.run(command, check=True, env=env, cwd=folder, stdin=nothing, stdout=nothing, stderr=nothing)
    return {name for name, room in rooms.items() if any(room.iterdir())}


def test_there_are_many(fired):
    assert len(fired) >= 80
    assert set(PAYLOADS) - fired <= MAY_NOT_FIRE


class Forged(Codec):
    """Writes given bytes as what another codec has written."""

    def __init__(self, kind):
        self.id = kind

    def dumps(self, value):
        return value

    def loads(self, data):
        raise AssertionError("never used")


def forge(stash, key, data, kind):
    """Put bytes in the place of a value, in an envelope without a fault."""
    if isinstance(stash, DirectoryStash):
        stash.key_to_path(key).write_bytes(b"".join(pack(Forged(kind), data, "here")))
        return
    (envelope,) = pack(Forged(kind), data, "here", tag=key)
    stash.close()
    db = sqlite3.connect(stash.path)
    with db:
        assert db.execute("UPDATE stash SET value=? WHERE key=?", (envelope, key)).rowcount == 1
    db.close()


READS = {
    "load": lambda stash: stash.load("k"),
    "get": lambda stash: stash.get("k"),
    "[]": lambda stash: stash["k"],
    "items": lambda stash: list(stash.items()),
    "values": lambda stash: list(stash.values()),
    "iteration": list,
    "load_many": lambda stash: stash.load_many(["k"]),
    "update": lambda stash: stash.update("k", lambda value: value),
    "mapping": lambda stash: dict(stash.mapping),
    "migrate": lambda stash: migrate(stash, DictionaryStash()),
}


def looked_at(stash):
    """Do all that needs no value."""
    assert list(stash.keys()) == ["k"]
    assert "k" in stash
    assert len(stash) == 1
    assert stash.exists("k")
    assert not stash.add("k", 1)
    assert type(stash).__name__ in repr(stash)


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_hostile_pickle_does_nothing(name, fired, tmp_path):
    if name not in fired:
        pytest.skip("this Python lacks what it calls")
    room, data = made(tmp_path, name)
    before = dict(vars(Innocent))
    for codec in CODECS:
        for bare in (data, bytes(32) + data):
            with pytest.raises(REFUSALS):
                codec.loads(bare)
            with pytest.raises(REFUSALS):
                codec.load_parts(memoryview(bare), [])
        for stash in (DirectoryStash(tmp_path / "data", codec=codec), SqliteStash(tmp_path / "data.db", codec=codec)):
            for kind in (codec.id, "pickle"):
                with stash:
                    stash["k"] = 1
                    forge(stash, "k", data, kind)
                    looked_at(stash)
                    for read in READS.values():
                        with pytest.raises(REFUSALS):
                            read(stash)
                    assert [damage.key for damage in stash.verify()] == ["k"]
                    looked_at(stash)
    assert not any(room.iterdir()), "it ran"
    assert dict(vars(Innocent)) == before


def test_the_same_way_runs_them_with_plain_pickle(tmp_path):
    """The stash and the forging are such that a pickle is run, if the codec is one that runs it."""
    room, data = made(tmp_path, "os.system")
    for stash in (DirectoryStash(tmp_path / "data"), SqliteStash(tmp_path / "data.db")):
        with stash:
            stash["k"] = 1
            forge(stash, "k", data, PickleCodec.id)
            looked_at(stash)
            assert not any(room.iterdir())
            for read in READS.values():
                read(stash)
                (room / "canary").unlink()
                if read is READS["update"]:
                    forge(stash, "k", data, PickleCodec.id)


KEY = bytes(range(32))
SEALS = [lambda codec: SignedCodec(codec, KEY), lambda codec: EncryptedCodec(codec, KEY)]
PRESSES = [lambda codec, method=method: CompressedCodec(codec, method) for method in ("zlib", "lz4", "zstd")]
SAFE = [JsonCodec(), MsgpackCodec(), RestrictedPickleCodec([Innocent])]
ORDERS = [
    *(one(codec) for codec in SAFE for one in (*SEALS, *PRESSES)),
    *(one(other(codec)) for codec in SAFE for one in (*SEALS, *PRESSES) for other in (*SEALS, *PRESSES)),
    *(one(codec) for codec in (PickleCodec(plain=True), DillCodec()) for one in SEALS),
    *(seal(other(codec)) for codec in (PickleCodec(), DillCodec()) for seal in SEALS for other in (*SEALS, *PRESSES)),
    *(press(seal(codec)) for codec in (PickleCodec(), DillCodec()) for seal in SEALS for press in PRESSES),
]


class Raw(Codec):
    """Keeps bytes as they are."""

    id = "raw"

    def dumps(self, value):
        return value

    def loads(self, data):
        return bytes(data)


def shapes(data):
    """Return bytes in the shapes that the layers expect, but for the key."""
    # Nothing random: loaded as a restricted pickle, it might ask for all memory.
    flat = [data, bytes(32) + data, bytes(12) + data + bytes(16)]
    pressed = [press(Raw()).dumps(one) for one in flat for press in PRESSES]
    return [*flat, *pressed, *(press(Raw()).dumps(one) for one, press in zip(pressed, PRESSES, strict=False))]


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_hostile_pickle_does_nothing_in_any_order_of_layers(name, fired, tmp_path):
    if name not in fired:
        pytest.skip("this Python lacks what it calls")
    room, data = made(tmp_path, name)
    for shape in shapes(data):
        for codec in ORDERS:
            with pytest.raises(REFUSALS):
                codec.bound("/a", "k").load_parts(memoryview(shape), [])
    assert not any(room.iterdir()), "it ran"


@pytest.mark.parametrize("press", PRESSES)
def test_a_layer_that_is_no_seal_lets_it_run(tmp_path, press):
    room, data = made(tmp_path, "os.system")
    press(PickleCodec()).loads(press(Raw()).dumps(data))
    assert (room / "canary").exists()


def test_an_allowed_class_is_loaded():
    codec = CODECS[2]
    assert codec.loads(codec.dumps(Innocent(5))).x == 5


# Where this package itself may unpickle.

#: Outside of the codecs: the modules that load pickles, and why they may.
MAY_LOAD = {
    "failure.py": "its own pickle, of an exception; a restricted codec does not let it be named",
    "parallel/engine.py": "a job that the parent has sent through an executor",
    "parallel/job.py": "items that the parent has sent",
    "parallel/pool.py": "reports of its own workers, through a pipe",
    "parallel/run.py": "pairs that its own workers have made",
    "parallel/worker.py": "the job that the parent has sent",
    "testing/reading.py": "a stash that a test has pickled a moment ago",
}
LOADERS = {"load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"}
PICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
RUNNERS = {"eval", "exec", "compile", "__import__"}


def dangers(source):
    """Return what in a source may run code that its data name."""
    found, names = set(), {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).split(".")[0]: alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLERS:
            found |= {
                f"from {node.module} import {alias.name}" for alias in node.names if alias.name in {*LOADERS, "*"}
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id)
            if module in PICKLERS and (node.attr in LOADERS or module in ("shelve", "marshal")):
                found.add(f"{module}.{node.attr}")
        elif isinstance(node, ast.Name) and node.id in RUNNERS:
            found.add(node.id)
    if "dill" in names.values() or "from dill" in source:
        found.add("dill")
    return found


def test_only_codecs_load_pickles():
    folder = ROOT / "zpersist"
    loading = {
        str(path.relative_to(folder)): dangers(path.read_text())
        for path in folder.rglob("*.py")
        if path.parent != folder / "codecs"
    }
    assert {name for name, found in loading.items() if found} == set(MAY_LOAD)
    assert set().union(*loading.values()) == {"pickle.loads"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(x)",
        "import pickle as p\np.Unpickler(x)",
        "def f():\n    from pickle import loads\n    loads(x)",
        "from pickle import *",
        "import _pickle\nclass U(_pickle.Unpickler): pass",
        "import dill",
        "import marshal\nmarshal.loads(x)",
        "import shelve\nshelve.open(x)",
        "eval(x)",
        "f = exec",
        "__import__(x)",
    ],
)
def test_the_search_finds_them(source):
    assert dangers(source)
    assert not dangers("import pickle, json\npickle.dumps(x)\njson.loads(x)\nre.compile(x)")
