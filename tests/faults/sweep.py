"""A counter moves a fault over every call of an operation; then a fresh process looks at what is there.

The functions run in the server of :mod:`tests.faults.shim`.
"""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.shim import DEADLY, KILL, MODES, NAME, Mode, Report, armed, in_a_fork
from tests.faults.stores import STORES, Blob, Store, contents, names_in
from zpersist import OutcomeUnknownError, ZPersistError

LONG = "7" * 300


class Operation(NamedTuple):
    """What is done, what is there before, and what after."""

    before: dict[str, Any]
    act: Callable[[Any], object]
    after: dict[str, Any]
    #: Whether it happens in one step, so that there is nothing between ``before`` and ``after``.
    one_step: bool = True
    #: Whether writers died before, and left something behind.
    leftovers: bool = False
    #: Whether it can be done again to no more effect.
    again: bool = True


def operations(store: Store) -> dict[str, Operation]:
    """Return everything that writes."""
    value, whole = store.value, store.one_step
    old, new, other = value("old"), value(["new", None]), value("other")
    large_old, large = value(Blob(b"o" * 70_000)), value(Blob(b"n" * 80_000))
    two = {"1": old, "2": other}
    many = {"1": new, "2": new, "3": new}
    found = {
        "dump": Operation(two, lambda s: s.dump("1", new), {"1": new, "2": other}),
        "dump new": Operation({"2": other}, lambda s: s.dump("1", new), {"1": new, "2": other}),
        "dump first": Operation({}, lambda s: s.dump("1", new), {"1": new}),
        "dump large": Operation({"1": large_old, "2": other}, lambda s: s.dump("1", large), {"1": large, "2": other}),
        "dump among leftovers": Operation(two, lambda s: s.dump("1", new), {"1": new, "2": other}, leftovers=True),
        "dump many": Operation(two, lambda s: s.dump_many(many), many, whole),
        "delete": Operation(two, lambda s: s.delete("1"), {"2": other}),
        "clear": Operation(two, lambda s: s.clear(), {}, whole),
        "clear among leftovers": Operation(two, lambda s: s.clear(), {}, whole, leftovers=True),
    }
    if "add" in store.extra:
        found["add"] = Operation({"2": other}, lambda s: s.add("1", new), {"1": new, "2": other})
        found["add refused"] = Operation(two, lambda s: s.add("1", new), two)
        found["dump long key"] = Operation({LONG: old}, lambda s: s.dump(LONG, new), {LONG: new})
    if "update" in store.extra:
        found["update"] = Operation(two, lambda s: s.update("1", lambda v: new), {"1": new, "2": other})
        found["update new"] = Operation({"2": other}, lambda s: s.update("1", lambda v: new), {"1": new, "2": other})
    if "append" in store.extra:
        found["append"] = Operation(two, lambda s: s.dump(new), {**two, "3": new}, again=False)
    if "compute" in store.extra:
        found["compute"] = Operation({"2": other}, lambda s: s.compute("1", new), {"1": new, "2": other})
    return found


def states(operation: Operation, ended: str) -> Iterator[dict[str, Any]]:
    """Yield what may be there: after it was ``done``, ``refused``, or its outcome is ``open``."""
    if ended == "done":
        yield operation.after
        return
    yield operation.before
    if operation.one_step and ended == "refused":
        return
    if operation.one_step:
        yield operation.after
        return
    keys = sorted(operation.before.keys() | operation.after.keys())
    for news in itertools.product((False, True), repeat=len(keys)):
        chosen = [(key, operation.after if new else operation.before) for key, new in zip(keys, news, strict=True)]
        yield {key: source[key] for key, source in chosen if key in source}


class Sweep:
    """One operation of one store under one kind of fault."""

    def __init__(self, kind: str, durability: str, name: str, mode: Mode, folder: Path) -> None:
        store = STORES[kind]
        self.make = lambda path: store.make(path, durability=durability)
        self.value = store.value
        self.operation = operations(store)[name]
        self.mode = mode
        self.folder = folder
        self.report = Report()

    def _forked(self, run: Callable[[], Any]) -> Any:
        code, result = in_a_fork(run)
        assert code == 0, "it failed without any fault"
        return result

    def _read(self, path: Path) -> Any:
        try:
            with self.make(path) as stash:
                return contents(stash)
        except (Exception, AssertionError) as err:
            return f"reading raises {err!r}"

    def _act(self, path: Path) -> None:
        with self.make(path) as stash:
            self.operation.act(stash)

    def prepare(self) -> Path:
        """Make what is there before, once; return where."""
        template = self.folder / "template"
        template.mkdir()

        def make() -> None:
            with self.make(template) as stash:
                stash.dump_many(self.operation.before)

        if self.operation.before:
            self._forked(make)
        if self.operation.leftovers:
            self._leave(template)
        assert self._forked(lambda: self._read(template)) == self.operation.before
        return template

    def _leave(self, template: Path) -> None:
        """Have writers die at each name they make or change, the last one at the last."""

        def write(at: int) -> None:
            with armed(str(template), at, Mode(KILL, kinds=NAME), self.report), self.make(template) as stash:
                stash.dump("1", self.operation.before["1"])

        self.report.clear()
        self._forked(lambda: write(0))
        for at in range(1, self.report.count + 1):
            self.report.clear()
            assert in_a_fork(lambda at=at: write(at))[0] == -signal.SIGKILL

    def usual(self, template: Path) -> set[str]:
        """Return the names of what is there when nothing fails."""
        path = self.folder / "usual"
        shutil.copytree(template, path)
        self._forked(lambda: self._act(path))
        names = names_in(template) | names_in(path)
        self._forked(lambda: self._afterwards(path))
        return {name for name in names | names_in(path) if not name.endswith(".tmp")}

    def _suffer(self, path: Path, at: int) -> tuple[str, str, Any]:
        """Do it under a fault; return how it ended, what was raised, and what is there in the same process."""
        ended, raised = "done", ""
        # Kept until the process is gone: it does not come to closing anything.
        self.kept = stash = self.make(path)
        with armed(str(path), at, self.mode, self.report):
            try:
                self.operation.act(stash)
            except OutcomeUnknownError as err:
                ended, raised = "open", repr(err)
            except ZPersistError as err:
                ended, raised = "refused", repr(err)
            except Exception as err:
                ended, raised = "foreign", repr(err)
        try:
            found = contents(stash)
        except (Exception, AssertionError) as err:
            found = f"reading raises {err!r}"
        return ended, raised, found

    def _afterwards(self, path: Path) -> str:
        """Write and delete something else, and do the same again; return what went wrong."""
        try:
            with self.make(path) as stash:
                stash.dump("9", self.value("9"))
                assert stash["9"] == self.value("9"), "what was dumped is not there"
                assert stash.delete("9"), "what was there was not deleted"
                if self.operation.again:
                    self.operation.act(stash)
                    assert contents(stash) == self.operation.after, "doing it again has no effect"
        except (Exception, AssertionError) as err:
            return f"afterwards it raises {err!r}"
        return ""

    def wrong(self, path: Path, at: int, usual: set[str]) -> Iterator[str]:
        """Yield what is wrong after the ``at``-th call suffered."""
        self.report.clear()
        code, told = in_a_fork(lambda: self._suffer(path, at))
        died = code != 0
        if died and (code != -signal.SIGKILL or self.mode.action not in DEADLY):
            yield f"it ended with {code}"
        ended, raised, found = ("open", "", None) if died else told
        if ended == "foreign":
            yield f"{raised} is not one of our errors"
        allowed = list(states(self.operation, ended))
        if not died and found not in allowed:
            yield f"{ended} ({raised}), and the same process finds {found!r}"
        found, after = self._forked(lambda: (self._read(path), self._afterwards(path)))
        if found not in allowed:
            yield f"{'it died' if died else f'{ended} ({raised})'}, and a fresh process finds {found!r}"
        if after:
            yield after
        if left := names_in(path) - usual:
            yield f"left behind: {sorted(left)}"

    def run(self) -> tuple[list[str], int]:
        """Return what is wrong, and how many calls there were."""
        template = self.prepare()
        usual = self.usual(template)
        wrong = []
        for at in itertools.count(1):
            path = self.folder / str(at)
            shutil.copytree(template, path)
            found = list(self.wrong(path, at, usual))
            shutil.rmtree(path)
            wrong += [f"call {at} ({self.report.first}): {what}" for what in found]
            if not self.report.first:
                return wrong, at - 1
        raise AssertionError


def sweep(kind: str, durability: str, name: str, mode: str, folder: str) -> tuple[list[str], int]:
    """Return what is wrong after the first, the second, … call suffered, and how many there are."""
    return Sweep(kind, durability, name, MODES[mode], Path(folder)).run()
