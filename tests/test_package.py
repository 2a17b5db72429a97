"""The package as a whole: names, imports, examples, sizes, drawings."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import zpersist
from zpersist import CloseableStash, ReadOnlyStash, Stash, ZPersistError

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "zpersist"
MODULES = sorted(SOURCE.rglob("*.py"))
#: What needs a package that does not come with the others.
EXTRAS = {
    "zpersist.parallel.ray": "ray",
    "zpersist.stores.environment": "lmdb",
    "zpersist.stores.lmdbfile": "lmdb",
    "zpersist.stores.table": "lmdb",
}
NAMES = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]


def test_every_name_is_exported_once_and_sorted():
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    imported = {}
    for block in tree.body:
        for node in block.body if isinstance(block, ast.If) else ():
            imported.setdefault(node.module, set()).update(alias.name for alias in node.names)
    homes = {f"zpersist.{home}": set(names.split()) for home, names in zpersist._HOMES.items()}
    assert imported == homes
    everything = [name for names in homes.values() for name in names]
    assert sorted(everything) == sorted(zpersist.__all__)
    assert len(everything) == len(set(everything))
    assert sorted(zpersist.__all__) == sorted(name for name in dir(zpersist) if name != "__version__")
    for name in zpersist.__all__:
        assert getattr(zpersist, name).__name__ == name or name == "PersistableError"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        zpersist.nothing  # noqa: B018


def test_no_module_hides_a_name():
    assert not {path.stem for path in SOURCE.iterdir()} & set(zpersist.__all__)


def test_star_import_takes_nothing_of_the_callers():
    code = "import time, copy\nfrom zpersist import *\nassert zip([1], [2]) and time.time() and copy.copy([1])"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


HEAVY = ["asyncio", "multiprocessing", "sqlite3", "numpy", "tqdm", "dill", "filelock", "attrs", "concurrent.futures"]


def loaded_by(code):
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.split())


def test_import_is_light():
    loaded = loaded_by("import zpersist")
    assert not loaded.intersection(HEAVY)
    assert len(loaded - loaded_by("pass")) < 60


def test_a_decorated_method_needs_no_heavy_module():
    code = """
from zpersist import persisted, PersistedWork, DirectoryStash
class A:
    @property
    @persisted("_v")
    def v(self): return 1
assert A().v == 1
"""
    assert not loaded_by(code).intersection({*HEAVY} - {"attrs"})


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings(name, elsewhere, monkeypatch):
    extra = EXTRAS.get(name)
    if extra is not None and importlib.util.find_spec(extra) is None:
        # It has no example, and says what it needs.
        with pytest.raises(ImportError, match=f"pip install 'zpersist\\[{extra}\\]'"):
            importlib.import_module(name)
        return
    module = importlib.import_module(name)
    example = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", example)
    exec("from pathlib import Path\nfrom zpersist import *\nfrom zpersist.testing import *", example.__dict__)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS)
    for test in finder.find(module, name):
        test.globs = example.__dict__
        test.globs.update((key, value) for key, value in vars(module).items() if key in getattr(module, "__all__", ()))
        for path in elsewhere.iterdir():
            if path.is_file():
                path.unlink()
        runner.run(test, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0


PUBLIC = [getattr(zpersist, name) for name in zpersist.__all__]
STASHES = [
    kind for kind in PUBLIC if inspect.isclass(kind) and issubclass(kind, Stash) and kind not in (Stash, CloseableStash)
]


@pytest.mark.parametrize("kind", STASHES, ids=lambda kind: kind.__name__)
def test_every_stash_says_what_it_promises(kind):
    text = inspect.getdoc(kind)
    if kind.__name__ in ("PrimeableStash", "PrimablePreemptiveStash"):
        return
    notes = ["Concurrency"] if kind is ReadOnlyStash else ["Concurrency", "Durability", "Trust"]
    for note in notes:
        assert f"*{note}*" in text


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_every_public_name_is_described(thing):
    assert inspect.getdoc(thing), thing
    if inspect.isclass(thing) and not issubclass(thing, BaseException):
        for name, method in vars(thing).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                assert inspect.getdoc(getattr(thing, name)), f"{thing.__name__}.{name}"


def test_errors_are_one_tree_and_builtins_too():
    from zpersist import errors

    drawn = errors.__doc__
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, ZPersistError)
        assert name in drawn
        if kind is not ZPersistError and not kind.__subclasses__() and name not in ("MissingDataKeysError",):
            assert len(kind.__mro__) > 4, f"{name} is also a builtin exception"


def lines_of(node):
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_grows_too_large(path):
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 450
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in (
            "persisted",
            "stash_machine",
        ):
            assert lines_of(node) <= 45, f"{node.name} has {lines_of(node)} lines"


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_the_example_of_the_readme(elsewhere):
    (code,) = blocks(ROOT / "README.md", "python")
    (expected,) = blocks(ROOT / "README.md", "text")
    Path("example.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "example.py"], capture_output=True, text=True, env=env)
    assert done.stdout == expected, done.stderr


def test_the_example_of_the_page_of_zensols(elsewhere, capsys):
    from zpersist import PersistableContainer, PersistedWork, persisted

    class SomeClass(PersistableContainer):
        def __init__(self, n):
            self.n = n
            self._counter = PersistedWork(Path("counter.dat"), self, mkdir=True)

        @property
        @persisted("_counter")
        def count(self):
            print("returning count value")
            return self.n * 2

        @property
        @persisted("_notsaved")
        def notsaved(self):
            print("returning unsaved value")
            return self.n * 3

    inst = SomeClass(5)
    assert [inst.count, inst.count, inst.notsaved, inst.notsaved] == [10, 10, 15, 15]
    assert capsys.readouterr().out == "returning count value\nreturning unsaved value\n"
    inst = SomeClass(10)
    assert [inst.count, inst.notsaved] == [10, 30]
    assert capsys.readouterr().out == "returning unsaved value\n"


def corpus(*options):
    command = [sys.executable, str(ROOT / "example/corpus/main.py"), "--cache", "cache", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_the_corpus_is_indexed_once_and_goes_on_after_an_interrupt(elsewhere):
    import signal
    import threading

    first = corpus("--limit", "160", "--workers", "2")
    while len(list(Path("cache/first-160/stdlib").glob("*.dat"))) < 5:
        assert first.poll() is None, first.communicate()
        threading.Event().wait(0.01)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate()
    assert first.returncode == 130
    assert "it goes on from here" in err
    before = {path.name: path.stat().st_ino for path in Path("cache/first-160/stdlib").glob("*.dat")}
    finished = len(list(Path("cache/first-160/stdlib/.zpersist/journal").iterdir())) - 1
    second = corpus("--limit", "160", "--workers", "2")
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert "imported by" in out
    after = {path.name: path.stat().st_ino for path in Path("cache/first-160/stdlib").glob("*.dat")}
    assert len(after) == 160
    assert sum(after[name] == inode for name, inode in before.items()) >= 16 * max(0, finished - 1)
    third = corpus("--limit", "160", "--workers", "2")
    out, err = third.communicate()
    assert "item/s" not in err
    assert "times as long" in out
