"""What a hit costs: reading a result that is there, by ``@persisted`` and by what it competes with.

Nanoseconds of processor time; in each round the least of three.  The time of the loop around the hit is subtracted,
except in the column that says so.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from time import process_time

from interleave import (
    NOTHING,
    OURS,
    SEED,
    Contestant,
    Figures,
    Measured,
    against,
    arguments,
    default_places,
    installed,
    number,
    print_machine,
    print_table,
    take_turns,
)

STEP = "hit"
CACHED_PROPERTY = "functools.cached_property"
BEHIND_PROPERTY = "a @property that returns an attribute"

# The most a hit should cost, in hits of functools.cached_property.
GOALS = {f"{OURS}: @property @persisted": 5.0, f"{OURS}: persisted_property": 1.3}


class Plain:
    def __init__(self) -> None:
        self.value = self._kept = 7

    @property
    def behind(self) -> int:
        return self._kept

    @cached_property
    def cached(self) -> int:
        return 7


def zpersist_owner(folder: Path) -> object:
    from zpersist import persisted, persisted_property

    class Owner:
        @property
        @persisted("_instance")
        def instance(self) -> int:
            return 7

        @persisted("_method")
        def method(self) -> int:
            return 7

        @property
        @persisted("_shared", cache_global=True)
        def shared(self) -> int:
            return 7

        @property
        @persisted("_filed", path=folder / "zpersist.dat", mkdir=True)
        def filed(self) -> int:
            return 7

        @persisted_property
        def attribute(self) -> int:
            return 7

    return Owner()


def seed_owner(folder: Path) -> object:
    from zensols.persist import persisted

    class Owner:
        @property
        @persisted("_instance")
        def instance(self) -> int:
            return 7

        @persisted("_method")
        def method(self) -> int:
            return 7

        @property
        @persisted("_shared", cache_global=True)
        def shared(self) -> int:
            return 7

        @property
        @persisted("_filed", path=folder / "seed.dat", mkdir=True)
        def filed(self) -> int:
            return 7

    return Owner()


def hit(folder: Path, *, make: Callable[[Path], object], expression: str, times: int) -> Iterator[tuple[str, Measured]]:
    owner = make(folder)
    read = timeit.Timer(f"o.{expression}", setup="o = owner", timer=process_time, globals={"owner": owner})
    loop = timeit.Timer("pass", timer=process_time)
    read.timeit(100)
    with_loop = min(read.repeat(3, times)) / times
    yield STEP, {"cpu": with_loop - min(loop.repeat(3, times)) / times, "with loop": with_loop}


def contestants(times: int) -> dict[str, Contestant]:
    def reading(make: Callable[..., object], expression: str) -> Contestant:
        return partial(hit, make=make, expression=expression, times=times)

    def plain(folder: Path) -> Plain:
        return Plain()

    kinds = {
        "@property @persisted": "instance",
        "@persisted method": "method()",
        "cache_global": "shared",
        "with a file": "filed",
    }
    return {
        "a plain attribute": reading(plain, "value"),
        CACHED_PROPERTY: reading(plain, "cached"),
        BEHIND_PROPERTY: reading(plain, "behind"),
        f"{OURS}: persisted_property": reading(zpersist_owner, "attribute"),
        **{f"{OURS}: {kind}": reading(zpersist_owner, expression) for kind, expression in kinds.items()},
        **{f"{SEED}: {kind}": reading(seed_owner, expression) for kind, expression in kinds.items()},
    }


def print_hits(figures: Figures) -> None:
    rows = []
    for name in figures.contestants:
        values = figures.values(STEP, name, "cpu")
        seed = name.replace(OURS, SEED)
        is_matched = seed != name and seed in figures.contestants
        ratio = figures.ratio(STEP, CACHED_PROPERTY, "cpu", name)
        goal = GOALS.get(name)
        rows.append(
            (
                name,
                f"{number(figures.median(STEP, name, 'cpu') * 1e9)} ({number(min(values) * 1e9)})",
                number(1 / ratio),
                times_with_loop(figures, name),
                against(ratio, None if goal is None else 1 / goal),
                number(figures.ratio(STEP, seed, "cpu", name)) if is_matched else NOTHING,
            )
        )
    print_table(
        ("a hit", "ns, cpu", "times cached_property", "the same with the loop", "cached_property / it", f"{SEED} / it"),
        rows,
    )


def times_with_loop(figures: Figures, name: str) -> str:
    times = 1 / figures.ratio(STEP, CACHED_PROPERTY, "with loop", name)
    goal = GOALS.get(name)
    if goal is None:
        return number(times)
    return f"{number(times)} (goal at most {goal:g}: {'met' if times <= goal else '**missed**'})"


def main() -> None:
    options = arguments(__doc__, rounds=31)
    print_machine("zensols.util")
    runners = contestants(2_000 if options.quick else 300_000)
    runners = installed(runners, {name: SEED for name in runners if name.startswith(SEED)})
    print_hits(take_turns(runners, options.rounds, default_places()[0]))


if __name__ == "__main__":
    main()
