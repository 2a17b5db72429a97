"""Index the source code of this Python's standard library and of its site-packages.

Run it twice: the second run finds everything in its stashes.  Stop it with Ctrl-C, and run it again: it goes on.

    python example/corpus/main.py
"""

from __future__ import annotations

import argparse
import ast
import io
import math
import shutil
import sys
import sysconfig
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from zpersist import (
    CacheStash,
    DirectoryStash,
    FactoryStash,
    LRUCacheStash,
    MultiProcessStash,
    PersistableContainer,
    PersistedWork,
    ReadOnlyStash,
    SortedStash,
    SqliteStash,
    Stash,
    UnionStash,
    persisted,
)


class Module(TypedDict):
    """What is found in one source file."""

    tokens: int
    comments: int
    identifiers: dict[str, int]
    docstring: str
    imports: list[str]
    functions: int
    documented: int
    branches: int


# Stage 1: many processes parse every module into a directory.


def module_name(root: Path, path: Path) -> str:
    """Return the dotted name of a module, by its file."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports_of(tree: ast.AST, name: str) -> set[str]:
    """Return the names of the modules that a module imports."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: -node.level] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found - {"", name}


def parse(name: str, source: str) -> Module | None:
    """Return what is found in a source text, ``None`` if it is not this version's Python."""
    try:
        with warnings.catch_warnings():
            # What a module's author should mend is no matter here.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        kinds = Counter(token.type for token in tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return None
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    identifiers = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    identifiers.update(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {
        "tokens": sum(kinds.values()),
        "comments": kinds[tokenize.COMMENT],
        "identifiers": dict(identifiers),
        "docstring": ast.get_docstring(tree) or "",
        "imports": sorted(imports_of(tree, name)),
        "functions": len(functions),
        "documented": sum(ast.get_docstring(node) is not None for node in functions),
        "branches": sum(isinstance(node, (ast.If, ast.For, ast.While, ast.Try)) for node in ast.walk(tree)),
    }


class SourceStash(MultiProcessStash[Module | None]):
    """The modules below a folder, by name; parsed by many processes when they are first read."""

    def __init__(
        self, delegate: Stash[Module | None], root: Path, skip: str, limit: int | None, **options: Any
    ) -> None:
        super().__init__(delegate, chunk_size=16, progress=True, **options)
        self.root = root
        self.skip = skip
        self.limit = limit

    def _create_data(self) -> list[str]:
        paths = (path for path in self.root.rglob("*.py") if self.skip not in path.parts)
        return [str(path.relative_to(self.root)) for path in sorted(paths)][: self.limit]

    def _process(self, chunk: list[str]) -> Iterator[tuple[str, Module | None]]:
        for relative in chunk:
            path = self.root / relative
            name = module_name(self.root, path)
            yield name, parse(name, path.read_text(encoding="utf-8", errors="replace"))


# Stage 2: features are made when they are first asked for, kept in SQLite, and the last ones in memory.


class Features(ReadOnlyStash[dict[str, float]]):
    """What can be said of a module in numbers."""

    def __init__(self, modules: Stash[Module | None]) -> None:
        self.modules = modules

    def load(self, name: str) -> dict[str, float] | None:
        module = self.modules.load(name)
        if module is None:
            return None
        uses = module["identifiers"].values()
        total = sum(uses) or 1
        return {
            "tokens": module["tokens"],
            "documented": module["documented"] / (module["functions"] or 1),
            "branching": module["branches"] / (module["functions"] or 1),
            "entropy": -sum(n / total * math.log2(n / total) for n in uses),
        }

    def keys(self) -> Iterable[str]:
        return self.modules.keys()

    def exists(self, name: str) -> bool:
        return self.modules.exists(name)


# Stage 4: what is computed from all modules, kept at three levels.


class Corpus(PersistableContainer):
    """All modules together."""

    def __init__(self, modules: Stash[Module | None], cache: Path) -> None:
        self.modules = modules
        self._vocabulary = PersistedWork(cache / "vocabulary.dat", self)
        self._graph = PersistedWork(cache / "graph.dat", self, cache_global=True)

    @property
    @persisted("_vocabulary")
    def vocabulary(self) -> Counter[str]:
        """How often each identifier is used; kept on the instance and in a file."""
        words: Counter[str] = Counter()
        for _, module in self.modules.items():
            words.update(module["identifiers"] if module else {})
        return words

    @property
    @persisted("_graph")
    def graph(self) -> dict[str, list[str]]:
        """Which module imports which; kept on the class, for all corpora of the process, and in a file."""
        names = set(self.modules.keys())
        return {
            name: [target for target in module["imports"] if target in names] if module else []
            for name, module in self.modules.items()
        }

    @property
    @persisted("_ranking")
    def ranking(self) -> list[tuple[str, float]]:
        """Modules by PageRank over the import graph; kept on the instance."""
        graph = self.graph
        rank = dict.fromkeys(graph, 1 / len(graph))
        for _ in range(20):
            flow = dict.fromkeys(graph, 0.15 / len(graph))
            for name, targets in graph.items():
                for target in targets:
                    flow[target] += 0.85 * rank[name] / len(targets)
            rank = flow
        return sorted(rank.items(), key=lambda pair: -pair[1])


@contextmanager
def stage(title: str, took: dict[str, float]) -> Iterator[None]:
    """Note how long a stage takes, also if it is cut short."""
    start = time.perf_counter()
    try:
        yield
    finally:
        took[title] = time.perf_counter() - start


def print_table(corpus: Corpus, features: Stash[dict[str, float]]) -> None:
    """Print the ranking."""
    print(f"\n{'module':32}{'rank':>8}{'imported by':>13}{'tokens':>9}{'documented':>12}{'entropy':>9}")
    imported = Counter(target for targets in corpus.graph.values() for target in targets)
    for name, rank in corpus.ranking[:12]:
        row = features[name]
        print(
            f"{name[:31]:32}{rank:8.4f}{imported[name]:13,}{row['tokens']:9,.0f}"
            f"{row['documented']:12.0%}{row['entropy']:9.2f}"
        )
    words = ", ".join(f"{word} {count:,}" for word, count in corpus.vocabulary.most_common(6))
    print(f"\n{len(corpus.vocabulary):,} identifiers; most used: {words}")


def run(cache: Path, options: argparse.Namespace) -> None:
    """Do all four stages, print what they found and how long each took."""
    took: dict[str, float] = {}
    roots = {"stdlib": sysconfig.get_path("stdlib"), "site-packages": sysconfig.get_path("purelib")}
    modules: list[Stash[Module | None]] = []
    features: list[Stash[dict[str, float]]] = []
    try:
        with stage("1 parse", took):
            for label, root in roots.items():
                skip = "site-packages" if label == "stdlib" else ""
                source = SourceStash(
                    DirectoryStash(cache / label), Path(root), skip, options.limit, workers=options.workers
                )
                source.prime()
                modules.append(source)
        with stage("2 features", took):
            for label, parsed in zip(roots, modules, strict=True):
                kept: SqliteStash[dict[str, float]] = SqliteStash(cache / "features.db", table=label.replace("-", "_"))
                made = CacheStash(FactoryStash(kept, Features(parsed)), LRUCacheStash(10_000))
                made.load_many(parsed.keys())
                features.append(made)
        with stage("3 join", took):
            joined = SortedStash(UnionStash(modules))
            count = len(joined)
        corpus = Corpus(joined, cache)
        with stage("4 vocabulary, graph, ranking", took):
            corpus.vocabulary, corpus.graph, corpus.ranking  # noqa: B018 - reading computes
        with UnionStash(features) as numbers:
            print_table(corpus, numbers)
        print(f"{count:,} modules\n")
    finally:
        report(cache, took)


def report(cache: Path, took: dict[str, float]) -> None:
    """Print what each stage took, and how much faster this run was than those that did the work."""
    times: DirectoryStash[float] = DirectoryStash(cache / "times")
    finished = len(took) == 4
    total = sum(took.values())
    for title, seconds in sorted(took.items()):
        print(f"{title:32}{seconds:8.2f} s")
    print(f"{'total':32}{total:8.2f} s")
    first = times.get("first")
    if first is None:
        spent = times.update("so far", lambda before: before + total, 0.0)
        if finished:
            times.dump("first", spent)
            print("Run it again: everything is in the stashes now.")
    elif finished:
        print(f"{'the work itself took':32}{first:8.2f} s, {first / total:.0f} times as long")


def main() -> int:
    """Read the command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--cache", type=Path, default=here / "cache", help="where the stashes lie; default: %(default)s"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: all cores")
    parser.add_argument("--limit", type=int, help="the most modules of each corpus")
    parser.add_argument("--fresh", action="store_true", help="delete the stashes first")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.cache, ignore_errors=True)
    # Another selection of modules is another index.
    cache = options.cache.absolute() / ("all" if options.limit is None else f"first-{options.limit}")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        run(cache, options)
    except KeyboardInterrupt:
        print("\nstopped; run it again, and it goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
