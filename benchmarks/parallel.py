"""Filling a stash with two workers, start-up included, beside what one would use in its place.

Five jobs: 20,000 trivial items, kept in a directory and in SQLite (a peer stores what comes back, or its function
does, which is called *direct*); 1,000,000 lazy keys of which nothing is kept; 400 items of 5 ms; 400 items of which
eight take 50 times as long, at the end or at the beginning; 200 arrays of 4 MB, kept in a directory.  Seconds a job.

*two forks* is no peer but the floor: two bare ``os.fork()`` that share the items, each its half.  *without resilience*
is zpersist's way of working with nothing but its loop: chunks of a good size, no marks, no looking at the clock.  *the
optimum* of the skewed jobs is calculated: half the time that all items take together.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from interleave import OURS, Contestant, Goals, Measured, arguments, installed, print_machine, print_versus, take_turns

from zpersist import DirectoryStash, NoopStash, SqliteStash, Stash, fill

WORKERS = 2
OPTIMUM, FORKS, POOL, EXECUTOR, JOBLIB, MPIRE, DATASETS, DASK, SEED, LEAN = (
    "the optimum",
    "two forks",
    "multiprocessing.Pool",
    "ProcessPoolExecutor",
    "joblib",
    "mpire",
    "datasets.map",
    "dask.bag",
    "zensols.multi",
    "without resilience",
)
TRIVIAL, TRIVIAL_DIRECT, SQLITE, SQLITE_DIRECT, MANY, CPU, LATE, EARLY, ARRAYS = (
    "20,000 trivial, directory",
    "20,000 trivial, directory, direct",
    "20,000 trivial, SQLite",
    "20,000 trivial, SQLite, direct",
    "1,000,000 lazy keys",
    "400 of 5 ms",
    "skewed, long ones last",
    "skewed, long ones first",
    "200 arrays of 4 MB",
)
Job = tuple[Iterable[Any], Callable[[Any], Any], Stash[Any] | None, bool]


class Sink(NoopStash[Any]):
    """Takes everything, from all processes, and keeps nothing."""

    shared = True
    _batches = True

    def exists(self, name: str) -> bool:
        return True

    def dump_many(self, pairs: Iterable[tuple[str, Any]]) -> None:
        return


def small(item: int) -> dict[str, int]:
    return {"item": item, "square": item * item}


def spin(item: int) -> int:
    end = time.thread_time() + 0.005
    while time.thread_time() < end:
        pass
    return item


def long_last(item: int) -> int:
    time.sleep(0.1 if item >= 392 else 0.002)
    return item


def long_first(item: int) -> int:
    time.sleep(0.1 if item < 8 else 0.002)
    return item


def array(item: int) -> Any:
    import numpy

    return numpy.full(500_000, float(item))


def jobs(quick: bool) -> dict[str, Callable[[], Job]]:
    """Return the jobs: items, function, where values are kept, and whether the function of a peer keeps them itself."""
    trivial = range(500 if quick else 20_000)
    keys = 10_000 if quick else 1_000_000
    return {
        TRIVIAL: lambda: (trivial, small, DirectoryStash("data"), False),
        TRIVIAL_DIRECT: lambda: (trivial, small, DirectoryStash("data"), True),
        SQLITE: lambda: (trivial, small, SqliteStash("data.db"), False),
        SQLITE_DIRECT: lambda: (trivial, small, SqliteStash("data.db"), True),
        MANY: lambda: ((f"key-{n:07}" for n in range(keys)), len, None, False),
        CPU: lambda: (range(20 if quick else 400), spin, None, False),
        LATE: lambda: (range(400 if not quick else 20), long_last, None, False),
        EARLY: lambda: (range(400 if not quick else 20), long_first, None, False),
        ARRAYS: lambda: (range(4 if quick else 200), array, DirectoryStash("data"), False),
    }


def keeping(function: Callable[[Any], Any], stash: Stash[Any], item: Any) -> None:
    stash.dump(str(item), function(item))


# the contestants: each does a job, and returns nothing


def ours(job: Job) -> None:
    items, function, stash, _ = job
    fill(Sink() if stash is None else stash, function, items, workers=WORKERS)


def lean(job: Job) -> None:
    items, function, stash, _ = job
    kept, source, context = Sink() if stash is None else stash, iter(items), multiprocessing.get_context("fork")

    def work(pipe: Any) -> None:
        while chunk := pipe.recv():
            kept.dump_many([(str(item), function(item)) for item in chunk])
            pipe.send(len(chunk))

    size = 1 if function in (spin, long_last, long_first, array) else 1024
    pipes = {}
    for chunk in islice(iter(lambda: list(islice(source, size)), []), WORKERS):
        mine, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs,))
        process.start()
        pipes[mine] = process
        mine.send(chunk)
    while pipes:
        for pipe in multiprocessing.connection.wait(list(pipes)):
            pipe.recv()
            chunk = list(islice(source, size))
            pipe.send(chunk)
            if not chunk:
                pipes.pop(pipe).join()


def two_forks(job: Job) -> None:
    items, function, stash, _ = job

    def half(number: int) -> None:
        for item in list(items)[number::WORKERS]:
            value = function(item)
            if stash is not None:
                stash.dump(str(item), value)

    children = []
    for number in range(WORKERS):
        pid = os.fork()
        if not pid:
            half(number)
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def by_map(job: Job, map_: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]) -> None:
    """Do a job by something like ``map``: either its function keeps the values, or they come back to be kept."""
    items, function, stash, direct = job
    if stash is not None and direct:
        for _ in map_(partial(keeping, function, stash), items):
            pass
    elif stash is not None:
        items = list(items)
        stash.dump_many(zip(map(str, items), map_(function, items), strict=True))
    else:
        for _ in map_(function, items):
            pass


def pool(job: Job) -> None:
    with multiprocessing.get_context("fork").Pool(WORKERS) as workers:
        by_map(job, workers.map)


def executor(job: Job) -> None:
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("fork")) as workers:
        by_map(job, partial(workers.map, chunksize=16))


def joblib(job: Job) -> None:
    from joblib import Parallel, delayed

    def map_(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        return Parallel(WORKERS, return_as="generator")(delayed(function)(item) for item in items)  # type: ignore[no-any-return]

    by_map(job, map_)


def mpire(job: Job) -> None:
    from mpire import WorkerPool

    with WorkerPool(WORKERS) as workers:
        by_map(job, lambda function, items: workers.imap(function, [(item,) for item in items]))


def datasets(job: Job) -> None:
    import datasets as hf

    hf.disable_progress_bars()
    items, function, stash, direct = job
    items = list(items)
    work = partial(keeping, function, stash) if stash is not None and direct else function
    data = hf.Dataset.from_dict({"item": items})
    made = data.map(
        lambda row: {"value": pickle.dumps(work(row["item"]))},
        num_proc=WORKERS,
        keep_in_memory=False,
        load_from_cache_file=False,
    )
    if stash is not None and not direct:
        stash.dump_many((str(item), pickle.loads(value)) for item, value in zip(items, made["value"], strict=True))


def dask(job: Job) -> None:
    import dask.bag
    from dask.multiprocessing import get

    by_map(
        job,
        lambda function, items: (
            dask.bag.from_sequence(items, npartitions=64).map(function).compute(scheduler=get, num_workers=WORKERS)
        ),
    )


def seed(job: Job) -> None:
    items, function, stash, _ = job
    from zensols.persist import DirectoryStash as SeedDirectory

    if not isinstance(stash, DirectoryStash):
        return
    path = Path("seed")
    kept = SeedDirectory(path)

    def process(chunk: list[Any]) -> int:
        for item in chunk:
            kept.dump(str(item), function(item))
        return len(chunk)

    # As its MultiProcessStash does it, without the configuration that it needs.
    items = list(items)
    size = -(-len(items) // WORKERS)
    global _process
    _process = process
    with multiprocessing.get_context("fork").Pool(WORKERS) as workers:
        workers.map(_call, [items[at : at + size] for at in range(0, len(items), size)])


_process: Callable[[list[Any]], int]


def _call(chunk: list[Any]) -> int:
    return _process(chunk)


RUNNERS: dict[str, Callable[[Job], None]] = {
    OURS: ours,
    LEAN: lean,
    FORKS: two_forks,
    POOL: pool,
    EXECUTOR: executor,
    JOBLIB: joblib,
    MPIRE: mpire,
    DATASETS: datasets,
    DASK: dask,
    SEED: seed,
}
#: What takes minutes, or makes no sense: the peer holds a million futures, or keeps nothing anywhere.
LEFT_OUT = {(MANY, JOBLIB), (MANY, MPIRE), (MANY, DATASETS), (MANY, DASK)} | {
    (step, SEED) for step in (SQLITE, SQLITE_DIRECT, MANY, CPU, LATE, EARLY)
}
STEPS = (TRIVIAL, TRIVIAL_DIRECT, SQLITE, SQLITE_DIRECT, MANY, CPU, LATE, EARLY, ARRAYS)
EVERY_PEER = (POOL, EXECUTOR, JOBLIB, MPIRE, DATASETS, DASK, SEED)
GOALS: Goals = {
    **{(step, peer): 1.0 for step in (TRIVIAL, TRIVIAL_DIRECT, SQLITE, SQLITE_DIRECT) for peer in EVERY_PEER},
    (MANY, POOL): 1.0,
    (CPU, FORKS): 0.97,
    **{(step, OPTIMUM): 1 / 1.07 for step in (LATE, EARLY)},
    **{(step, LEAN): 1 / 1.05 for step in STEPS},
    **{(ARRAYS, peer): 4.0 for peer in (POOL, EXECUTOR, JOBLIB, MPIRE, DATASETS, DASK)},
}


def contestant(name: str, quick: bool) -> Contestant:
    def steps(folder: Path) -> Iterator[tuple[str, Measured]]:
        for step, make in jobs(quick).items():
            yield step, {} if (step, name) in LEFT_OUT else {"wall": alone(RUNNERS[name], make, folder / step)}

    return steps


def optimum(quick: bool) -> Contestant:
    """Return what takes the time that the skewed jobs take at best."""

    def steps(folder: Path) -> Iterator[tuple[str, Measured]]:
        for step in STEPS:
            short, long = (12, 8) if quick else (392, 8)
            yield step, {"wall": (0.002 * short + 0.1 * long) / WORKERS} if step in (LATE, EARLY) else {}

    return steps


def alone(run: Callable[[Job], None], make: Callable[[], Job], folder: Path) -> float:
    """Return the seconds a job takes in a process of its own, from its start to its end, imports left out."""
    folder.mkdir(parents=True)
    ours_end, theirs = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        os.setpgrp()
        os.chdir(folder)
        job = make()
        begun = time.perf_counter()
        run(job)
        theirs.send(time.perf_counter() - begun)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    theirs.close()
    if not ours_end.poll(float(os.environ.get("BENCH_MOST", 300))):
        process.kill()
        raise TimeoutError(f"{run.__name__} does not end")
    seconds: float = ours_end.recv()
    # Some leave workers behind.
    os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return seconds


def main() -> None:
    options = arguments(__doc__, rounds=5, quick=1, places=True)
    print_machine("joblib", "mpire", "datasets", "dask", "zensols.util", "numpy")
    needs = {JOBLIB: "joblib", MPIRE: "mpire", DATASETS: "datasets", DASK: "dask", SEED: "zensols.persist"}
    runners = installed({name: contestant(name, options.quick) for name in RUNNERS}, needs)
    runners[OPTIMUM] = optimum(options.quick)
    for place in options.places[:1]:
        figures = take_turns(runners, options.rounds, place)
        print(f"{WORKERS} workers, {options.rounds} rounds:\n")
        print_versus(figures, "wall", "ms", 1e3, GOALS)


if __name__ == "__main__":
    main()
