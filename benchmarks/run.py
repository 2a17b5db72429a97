"""Run all benchmarks, each in a process of its own, and write their tables as Markdown.

python benchmarks/run.py > figures.md
python benchmarks/run.py --quick
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PROGRAMS = {
    "hits": "Hits",
    "directory": "A directory of small values",
    "arrays": "Arrays in an object graph",
    "sqlite": "SQLite",
    "lmdb_stash": "LMDB",
    "codecs": "Codecs and checks",
    "scale": "A million keys",
    "single_flight": "Single flight",
    "parallel": "Parallel filling",
    "imports": "Imports",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"some of {', '.join(PROGRAMS)} (default: all)")
    parser.add_argument("--rounds", type=int, help="how often each contestant runs (default: each program's own)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, and the figures mean nothing")
    options = parser.parse_args()
    unknown = set(options.programs) - set(PROGRAMS)
    if unknown:
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    passed_on = ["--quick"] if options.quick else []
    if options.rounds is not None:
        passed_on += ["--rounds", str(options.rounds)]
    if options.quick:
        print("A smoke run: small, and the figures mean nothing.\n")
    failed = []
    for program in options.programs or PROGRAMS:
        print(f"## {PROGRAMS[program]}\n", flush=True)
        here = Path(__file__).with_name(f"{program}.py")
        if subprocess.run([sys.executable, str(here), *passed_on], check=False).returncode:
            failed.append(program)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
