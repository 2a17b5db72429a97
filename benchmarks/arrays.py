"""An object graph that holds arrays: 20 of float64, 64 MB in all, each inside an instance, and 1,000 small dicts.

``DirectoryStash`` against ``joblib.dump`` and ``joblib.load``, with and without ``mmap_mode="r"``, and against the
``DirectoryStash`` of zensols.persist.  *os.writev* is the floor of a write: the same bytes to a new file, not replaced,
not checked.  The files are in the page cache when they are loaded.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from directory import small_dict
from interleave import (
    OURS,
    SEED,
    Contestant,
    Goals,
    Measured,
    arguments,
    file_system,
    installed,
    is_installed,
    print_machine,
    print_versus,
    take_turns,
    timed,
)

JOBLIB, MAPPED, FLOOR = "joblib", 'joblib, mmap_mode="r"', "os.writev"
WRITE, OVER, FIRST, SUM = "write, new", "write, over existing", "load and first element", "load and sum of all"
ALIGNED = "aligned"
GOALS: Goals = {
    (WRITE, JOBLIB): 2.0,
    (FIRST, MAPPED): 5.0,
    (FIRST, JOBLIB): 30.0,
    (FIRST, SEED): 30.0,
}
ALIGNMENT = 64
LOADS = 3


class Layer:
    def __init__(self, name: str, weights: Any) -> None:
        self.name = name
        self.weights = weights


class Model:
    """What is kept: ``size`` elements in 20 arrays, and small dicts."""

    def __init__(self, size: int, dicts: int) -> None:
        import numpy as np

        self.layers = [Layer(f"layer {i}", np.arange(size // 20, dtype="float64") + i) for i in range(20)]
        self.words = [small_dict(i) for i in range(dicts)]

    def first(self) -> float:
        return float(self.layers[0].weights[0])

    def sum(self) -> float:
        return float(sum(layer.weights.sum() for layer in self.layers))

    def aligned(self) -> int:
        return sum(layer.weights.ctypes.data % ALIGNMENT == 0 for layer in self.layers)


def load_steps(load: Callable[[], Model]) -> Iterator[tuple[str, Measured]]:
    for _ in range(LOADS):
        yield FIRST, timed(lambda: with_(load(), Model.first))
    for _ in range(LOADS):
        yield SUM, timed(lambda: with_(load(), Model.sum))
    yield ALIGNED, {"arrays": load().aligned()}


def with_(model: Model, use: Callable[[Model], float]) -> tuple[Model, float]:
    # The model comes back too, so that it is given up when the clock no longer runs.
    return model, use(model)


def stash_steps(stash: Any, model: Model) -> Iterator[tuple[str, Measured]]:
    yield WRITE, timed(lambda: stash.dump("model", model))
    yield OVER, timed(lambda: stash.dump("model", model))
    yield from load_steps(lambda: stash.load("model"))


def contestants(model: Model) -> dict[str, Contestant]:
    def ours(folder: Path) -> Iterator[tuple[str, Measured]]:
        from zpersist import DirectoryStash

        return stash_steps(DirectoryStash(folder), model)

    def seed(folder: Path) -> Iterator[tuple[str, Measured]]:
        from zensols.persist import DirectoryStash

        return stash_steps(DirectoryStash(folder), model)

    def plain_joblib(folder: Path) -> Iterator[tuple[str, Measured]]:
        import joblib

        folder.mkdir()
        file = folder / "model"
        yield WRITE, timed(lambda: joblib.dump(model, file))
        yield OVER, timed(lambda: joblib.dump(model, file))
        yield from load_steps(lambda: joblib.load(file))

    def mapped_joblib(folder: Path) -> Iterator[tuple[str, Measured]]:
        import joblib

        folder.mkdir()
        file = folder / "model"
        joblib.dump(model, file)
        yield WRITE, {}
        yield OVER, {}
        yield from load_steps(lambda: joblib.load(file, mmap_mode="r"))

    def floor(folder: Path) -> Iterator[tuple[str, Measured]]:
        folder.mkdir()
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(model, 5, buffer_callback=buffers.append)
        parts = [body, *(buffer.raw() for buffer in buffers)]
        yield WRITE, timed(lambda: write_parts(folder / "model", parts))

    return {OURS: ours, MAPPED: mapped_joblib, JOBLIB: plain_joblib, SEED: seed, FLOOR: floor}


def write_parts(path: Path, parts: list[Any]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    written = os.writev(fd, parts)
    os.close(fd)
    if written != sum(map(len, parts)):
        raise OSError("written in part only")


def main() -> None:
    options = arguments(__doc__, rounds=15, places=True)
    if not is_installed("numpy"):
        print("numpy is not installed: arrays are left out.\n")
        return
    print_machine("numpy", "joblib", "zensols.util")
    size, dicts = (20 * 50_000, 100) if options.quick else (8_000_000, 1_000)
    model = Model(size, dicts)
    runners = installed(contestants(model), {JOBLIB: "joblib", MAPPED: "joblib", SEED: SEED})
    for place in options.places:
        figures = take_turns(runners, options.rounds, place)
        aligned = {name: int(min(figures.values(ALIGNED, name, "arrays"))) for name in runners if name != FLOOR}
        print(f"{size * 8 / 1e6:.0f} MB on {file_system(place)}, {options.rounds} rounds:\n")
        for quantity in ("wall", "cpu"):
            print_versus(figures, quantity, "ms", 1e3, GOALS)
        counts = ", ".join(f"{name} {count}" for name, count in aligned.items())
        verdict = "met" if aligned[OURS] == len(model.layers) else "**missed**"
        print(
            f"Loaded arrays, of {len(model.layers)}, that begin on a {ALIGNMENT}-byte boundary: {counts} "
            f"(goal: all, {verdict}).\n"
        )


if __name__ == "__main__":
    main()
