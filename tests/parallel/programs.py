"""Programs that the tests run as a whole: each fills a stash by an engine that its first argument names."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from zpersist import DirectoryStash, ReadOnlyStash, fill

ENGINES = ("fork", "spawn", "forkserver", "ProcessPoolExecutor", "loky", "dask", "ray", "mpi")


@contextmanager
def engine(name):
    """Yield the options that choose an engine."""
    if name in ("fork", "spawn", "forkserver"):
        yield {"start_method": name}
    elif name == "ProcessPoolExecutor":
        from concurrent.futures import ProcessPoolExecutor

        yield {"executor": partial(ProcessPoolExecutor, 2)}
    elif name == "loky":
        from loky import get_reusable_executor

        yield {"executor": partial(get_reusable_executor, 2)}
    elif name == "dask":
        import dask
        from distributed import Client, LocalCluster

        dask.config.set({"distributed.scheduler.allowed-failures": 0})
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
            Client(cluster) as client,
        ):
            yield {"executor": client.get_executor(pure=False)}
    elif name == "ray":
        os.environ["RAY_AUTH_MODE"] = "disabled"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        import ray

        from zpersist.parallel.ray import RayExecutor

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            yield {"executor": RayExecutor()}
        finally:
            ray.shutdown()
    elif name == "mpi":
        from mpi4py.futures import MPIPoolExecutor

        with MPIPoolExecutor() as executor:
            yield {"executor": executor}


def tell(root, text):
    """Write down, for all processes to see, that something was done."""
    fd = os.open(f"{root}/told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def die(how):
    """End this process."""
    if how == "exit":
        os._exit(3)
    if how == "crash":
        import ctypes
        import faulthandler

        faulthandler.disable()
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


class Unsendable:
    """An item that can't travel."""

    def __reduce__(self):
        raise ValueError("not this one")


class Unreadable:
    """An item that can't be made again where it arrives."""

    def __reduce__(self):
        return int, ("not a number",)


class Squares(ReadOnlyStash):
    """A factory whose class is known to the script alone."""

    def __init__(self, root, trouble, delay=0.0):
        self.root = root
        self.trouble = trouble
        self.delay = delay

    def load(self, name):
        tell(self.root, name)
        if name == "37":
            self.fail()
        time.sleep(self.delay)
        return bytes(9000) if self.trouble == "full" else int(name) ** 2

    def fail(self):
        how, _, once = self.trouble.partition(" ")
        if how in ("kill", "crash", "exit") and not (once and os.path.exists(f"{self.root}/once")):
            open(f"{self.root}/once", "w").close()
            die(how)
        if how == "raise":
            raise ValueError("item 37")
        if how == "late":
            time.sleep(4)
            tell(self.root, "ended")

    def keys(self):
        return map(str, range(120))


def main(name, trouble, root, delay="0"):
    """Fill, and print what became of it."""
    squares = Squares(root, trouble, float(delay))

    def work(key):
        value = squares.load(key)
        return (lambda: value) if key == "37" and trouble == "unpicklable" else value

    odd = {"unsendable": Unsendable, "unreadable": Unreadable}.get(trouble)
    items = [odd() if odd and key == "37" else key for key in squares.keys()]

    def fill_it(stash, options):
        summary = fill(stash, work, items, key=key_of, workers=2, on_error="skip", **options)
        print("summary", summary.done, summary.there, sorted(summary.failures), len(stash), flush=True)
        for failure in summary.failures.values():
            print("failure", type(failure.exception).__name__, failure.message, flush=True)
            print("cause", type(failure.exception.__cause__).__name__, flush=True)

    with engine(name) as options:
        stash = DirectoryStash(f"{root}/data")
        if trouble == "full":
            stash = DirectoryStash(f"{root}/disk/data")
            Path(f"{root}/disk/ballast").write_bytes(bytes(1_700_000))
        elif trouble == "timeout":
            options["timeout"] = 60
        try:
            fill_it(stash, options)
        except Exception as err:
            print("error", type(err).__name__, err, len(stash), flush=True)
        if trouble == "full":
            Path(f"{root}/disk/ballast").unlink()
            fill_it(stash, options)


def key_of(item):
    """Return the key of an item, which may be odd."""
    return item if isinstance(item, str) else "37"


if __name__ == "__main__":
    main(*sys.argv[1:])
