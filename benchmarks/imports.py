"""What an import costs: fresh interpreters, started in turn; milliseconds from start to end."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from interleave import (
    OURS,
    SEED,
    Contestant,
    Figures,
    Measured,
    arguments,
    default_places,
    installed,
    number,
    print_machine,
    print_table,
    take_turns,
)

STEP = "start"
BARE, ATTRS = "the interpreter alone", "import attrs"
PERSISTED, STASH = "from zpersist import persisted", "from zpersist import DirectoryStash"
CODE = {
    BARE: "pass",
    ATTRS: "import attrs",
    f"import {OURS}": f"import {OURS}",
    PERSISTED: PERSISTED,
    STASH: STASH,
    f"import {SEED}": f"import {SEED}",
}
#: The most milliseconds that the import may take beyond that of attrs.
GOAL = 15.0


def fresh(code: str) -> Iterator[tuple[str, Measured]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield STEP, {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def contestants() -> dict[str, Contestant]:
    def starting(code: str) -> Contestant:
        def run(folder: Path) -> Iterator[tuple[str, Measured]]:
            return fresh(code)

        return run

    return {name: starting(code) for name, code in CODE.items()}


def print_starts(figures: Figures) -> None:
    rows = []
    for name in figures.contestants:
        row = [name]
        for quantity in ("wall", "cpu"):
            median = figures.median(STEP, name, quantity) * 1e3
            least = min(figures.values(STEP, name, quantity)) * 1e3
            row.append(f"{number(median)} ({number(least)})")
        beyond = (figures.median(STEP, name, "wall") - figures.median(STEP, ATTRS, "wall")) * 1e3
        goal = f" (goal at most +{GOAL:g}: {'met' if beyond <= GOAL else '**missed**'})"
        row.append(f"{beyond:+.1f}{goal if name == f'import {OURS}' else ''}")
        row.append(number(figures.ratio(STEP, name, "wall", f"import {OURS}")))
        rows.append(row)
    print_table(("a fresh interpreter", "ms, wall", "ms, cpu", "beyond import attrs", f"it / import {OURS}"), rows)


def main() -> None:
    options = arguments(__doc__, rounds=61, quick=3)
    print_machine("attrs", "zensols.util")
    runners = installed(contestants(), {f"import {SEED}": SEED})
    print_starts(take_turns(runners, options.rounds, default_places()[0]))


if __name__ == "__main__":
    main()
