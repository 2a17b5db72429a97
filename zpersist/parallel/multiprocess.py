"""A stash that many processes fill."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from attrs import define, field

from zpersist.chunking import chunks
from zpersist.codecs import PickleCodec
from zpersist.errors import InvalidArgumentError
from zpersist.failure import Failure
from zpersist.parallel.pool import Chunk, available_cores, check_start_method, refuse_in_import, run_chunks
from zpersist.stash import Stash
from zpersist.wrappers.factory import check_keeps
from zpersist.wrappers.prime import Completion, PrimablePreemptiveStash

__all__ = ["MultiProcessStash", "Outcome"]

V = TypeVar("V")

#: Results are written when there are so many of them, or so many seconds after the last time.
_BATCH, _PAUSE = 64, 0.1


def _check_workers(stash: object, attribute: Any, workers: object) -> None:
    if isinstance(workers, bool) or not isinstance(workers, (int, float)):
        raise InvalidArgumentError(f"workers must be a number, not {workers!r}")
    if isinstance(workers, float) and not 0 < workers <= 1:
        raise InvalidArgumentError(
            f"workers={workers!r} is a share of the cores and must be above 0 and at most 1; use an int for a number"
        )
    if isinstance(workers, int) and workers < 0 and available_cores() + workers < 1:
        raise InvalidArgumentError(f"workers={workers!r} leaves none of {available_cores()} cores; use 1 or 0")


def _check_chunk_size(stash: object, attribute: Any, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidArgumentError(f"chunk_size must be a whole number of at least 0, not {size!r}")


class Outcome(NamedTuple):
    """What a worker says about a chunk: the pairs, if the parent has to keep them, and which keys failed."""

    pairs: list[tuple[str, Any]]
    failed: list[str]


class _ChunkWorker:
    """Takes the stash to the processes and runs its chunks there."""

    def __init__(self, stash: MultiProcessStash[Any]) -> None:
        self._stash = stash
        self._tell: Callable[[int], None] = lambda count: None

    def start(self, tell: Callable[[int], None]) -> None:
        self._tell = tell

    def __getstate__(self) -> dict[str, Any]:
        return {"_stash": self._stash}

    def work(self, items: list[Any]) -> Outcome:
        stash = self._stash
        stash._working = True
        outcome = Outcome([], [])
        told = 0
        try:
            for batch in _batches(stash._process(items), type(stash).__name__):
                outcome.failed.extend(key for key, value in batch if isinstance(value, Failure))
                if stash.delegate.shared:
                    stash.delegate.dump_many(batch)
                else:
                    outcome.pairs.extend(batch)
                step = min(len(batch), len(items) - told)
                told += step
                self._tell(step)
        finally:
            stash._working = False
        self._tell(len(items) - told)
        return outcome


def _batches(pairs: Iterable[tuple[str, Any]] | None, label: str) -> Iterator[list[tuple[str, Any]]]:
    if not isinstance(pairs, Iterable):
        raise InvalidArgumentError(f"{label}._process must yield (key, value) pairs, it returned {pairs!r}")
    # What was made before an error, or before the parent said stop, is kept.
    batch: list[tuple[str, Any]] = []
    since = time.monotonic()
    source = iter(pairs)
    while True:
        try:
            pair = next(source)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InvalidArgumentError(f"{label}._process must yield (key, value) pairs, not {pair!r}")
            batch.append(pair)
        except StopIteration:
            break
        except BaseException:
            if batch:
                yield batch
            raise
        if len(batch) >= _BATCH or time.monotonic() - since >= _PAUSE:
            yield batch
            batch, since = [], time.monotonic()
    if batch:
        yield batch


@define(slots=False, eq=False)
class MultiProcessStash(PrimablePreemptiveStash[V]):
    """Fills its delegate by many processes when it is first read.

    A subclass gives two methods: ``_create_data()``, run in the parent, returns an iterable of items;
    ``_process(chunk)``, run in the workers, takes a list of them and yields ``(key, value)``.  The stash itself
    travels to the workers, which write straight into a shared delegate.

    A run that was cut short (an error, a kill, Ctrl-C) is never taken for complete: the next one does the chunks
    that were not finished.  Chunks are known again by their items, so use the same ``chunk_size``.

    Parameters
    ----------
    delegate :
        Where the values are kept.  Of one that isn't ``shared``, results travel through the parent.
    chunk_size :
        The most items a chunk has; 0: as many chunks as workers.
    workers :
        The number of processes: 0 all cores, negative all but so many, a float in (0, 1] that share of them, 1 none
        but this one.
    start_method :
        ``"fork"``, ``"spawn"`` or ``"forkserver"``; ``None``: fork if this process has no threads, else spawn.
    progress :
        Show a progress bar.

    Raises
    ------
    WorkerDiedError
        By the first read: a worker was killed or crashed; what was finished is kept.
    Exception
        By the first read: what ``_process`` raised; what was finished is kept.

    Notes
    -----
    *Concurrency*: of several parents that share the delegate, one fills it and the others wait.
    *Durability*: that of the delegate.
    *Trust*: that of the delegate; workers run this process's own code.

    Examples
    --------
    >>> class Lengths(MultiProcessStash):
    ...     def _create_data(self):
    ...         return ["one", "three"]
    ...     def _process(self, chunk):
    ...         for word in chunk:
    ...             yield word, len(word)
    >>> stash = Lengths(DirectoryStash("lengths"), workers=1)
    >>> sorted(stash)
    [('one', 3), ('three', 5)]
    """

    delegate: Stash[V] = field(validator=check_keeps)
    chunk_size: int = field(default=0, kw_only=True, validator=_check_chunk_size)
    workers: int | float = field(default=0, kw_only=True, validator=_check_workers)
    start_method: str | None = field(default=None, kw_only=True, converter=check_start_method)
    progress: bool = field(default=False, kw_only=True)
    _working: bool = field(init=False, repr=False, default=False)

    @abstractmethod
    def _create_data(self) -> Iterable[Any]:
        """Return the items to process; called in the parent."""

    @abstractmethod
    def _process(self, chunk: list[Any]) -> Iterable[tuple[str, V]]:
        """Yield a key and a value for what is in a chunk; called in a worker."""

    def _calculate_has_data(self) -> bool:
        return Completion(self.delegate).finished

    def prime(self) -> None:
        """Fill the delegate, unless that has been done."""
        if self._working:
            return
        super().prime()
        if self.has_data:
            return
        refuse_in_import()
        with self.delegate._flight("all", "prime"):
            self._reset_has_data()
            if not self.has_data:
                self._fill()
                self._set_has_data()

    def _fill(self) -> None:
        completion = Completion(self.delegate)
        completion.begin()
        for chunk, _ in self._run(self._create_data(), completion.journal):
            completion.journal.dump(chunk.id, len(chunk.items))
        completion.finish()

    def _worker_count(self) -> int:
        workers, cores = self.workers, available_cores()
        if isinstance(workers, float):
            return math.ceil(workers * cores)
        return workers if workers > 0 else max(1, cores + workers)

    def _run(self, data: Iterable[Any], finished: Stash[Any]) -> Iterator[tuple[Chunk, Outcome]]:
        """Run the chunks that are not finished, and yield each once its values are kept."""
        size = self.chunk_size
        if size == 0:
            data = tuple(data)
            size = max(1, math.ceil(len(data) / self._worker_count()))
        with _Bar(self.progress, type(self).__name__, len(data) if isinstance(data, Sized) else None) as told:

            def todo() -> Iterator[Chunk]:
                for items in chunks(data, size):
                    chunk = Chunk(_chunk_id(items), items)
                    if finished.exists(chunk.id):
                        told(len(items))
                    else:
                        yield chunk

            for chunk, outcome in run_chunks(
                _ChunkWorker(self),
                todo(),
                workers=self._worker_count(),
                start_method=self.start_method,
                told=told,
            ):
                self.delegate.dump_many(outcome.pairs)
                self.delegate._outdated()
                yield chunk, outcome


def _chunk_id(items: list[Any]) -> str:
    return f"chunk-{blake2b(PickleCodec().dumps(items), digest_size=20).hexdigest()}"


class _Bar:
    """A progress bar, or none."""

    def __init__(self, shown: bool, label: str, total: int | None) -> None:
        self._shown = shown
        self._label = label
        self._total = total

    def __enter__(self) -> Callable[[int], None]:
        if not self._shown:
            return lambda count: None
        from tqdm.auto import tqdm

        # Its monitor is a thread, and a process with threads can't be forked safely.
        tqdm.monitor_interval = 0
        self._bar = tqdm(desc=self._label, total=self._total, unit="item")

        def told(count: int) -> None:
            self._bar.update(count)

        return told

    def __exit__(self, *error: object) -> None:
        if self._shown:
            self._bar.close()
