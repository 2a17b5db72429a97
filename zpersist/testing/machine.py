"""A state machine that does to a stash and to a ``dict`` the same things, and compares them after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zpersist.stash import Stash

try:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
except ModuleNotFoundError as err:  # pragma: no cover - told to who has not installed it
    raise ModuleNotFoundError("zpersist.testing needs hypothesis: pip install 'zpersist[test]'", name=err.name) from err

__all__ = ["stash_machine"]


def _keys(given: Sequence[str] | None) -> st.SearchStrategy[str]:
    if given is not None:
        return st.sampled_from(list(given))
    odd = ["a", "A", "a/b", "../x", ".", "CON", "%41", "\0", "\U0001f600", "x" * 300]
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    return st.one_of(st.sampled_from(odd), text)


def _values(given: Sequence[Any] | None) -> st.SearchStrategy[Any]:
    if given is not None:
        return st.sampled_from(list(given))
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.binary(max_size=8))
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def stash_machine(
    make: Callable[[], Stash[Any]],
    *,
    keys: Sequence[str] | None = None,
    values: Sequence[Any] | None = None,
    atomic: bool = True,
    finish: Callable[[Stash[Any]], None] = Stash.close,
) -> type[RuleBasedStateMachine]:
    """Return a hypothesis state machine for a kind of stash; its ``TestCase`` is what pytest runs.

    Parameters
    ----------
    make :
        Returns a new, empty stash.
    keys, values :
        What to use; default: what any stash must keep.
    atomic :
        Whether the stash has ``add`` and ``update``.
    finish :
        Is given the stash at the end of a run; default: close it.

    Examples
    --------
    >>> TestDictionary = stash_machine(DictionaryStash).TestCase
    """
    a_key, a_value = _keys(keys), _values(values)

    class StashMachine(RuleBasedStateMachine):
        """The rules; the model is a ``dict``, which shares no code with the stash."""

        @initialize()
        def begin(self) -> None:
            self.stash = make()
            self.model: dict[str, Any] = {}

        @rule(key=a_key, value=a_value)
        def dump(self, key: str, value: Any) -> None:
            self.stash.dump(key, value)
            self.model[key] = value

        @rule(key=a_key)
        def delete(self, key: str) -> None:
            assert self.stash.delete(key) == (self.model.pop(key, self) is not self)

        @rule(key=a_key)
        def read(self, key: str) -> None:
            assert self.stash.exists(key) == (key in self.stash) == (key in self.model)
            assert self.stash.load(key) == self.model.get(key)
            assert self.stash.get(key, "nothing") == self.model.get(key, "nothing")

        @rule(pairs=st.lists(st.tuples(a_key, a_value), max_size=4))
        def dump_many(self, pairs: list[tuple[str, Any]]) -> None:
            self.stash.dump_many(pairs)
            self.model.update(pairs)

        @rule(names=st.lists(a_key, max_size=4, unique=True))
        def delete_many(self, names: list[str]) -> None:
            assert self.stash.delete_many(names) == sum(name in self.model for name in names)
            for name in names:
                self.model.pop(name, None)

        @rule(names=st.lists(a_key, max_size=4))
        def load_many(self, names: list[str]) -> None:
            assert self.stash.load_many(names) == {name: self.model[name] for name in names if name in self.model}

        @rule(prefix=a_key.map(lambda key: key[:1]), reverse=st.booleans(), limit=st.none() | st.integers(0, 3))
        def scan(self, prefix: str, reverse: bool, limit: int | None) -> None:
            expected = sorted((key for key in self.model if key.startswith(prefix)), reverse=reverse)
            assert list(self.stash.scan(prefix, reverse=reverse, limit=limit)) == expected[:limit]

        @rule(after=a_key, reverse=st.booleans())
        def scan_after(self, after: str, reverse: bool) -> None:
            names = sorted(self.model, reverse=reverse)
            expected = [name for name in names if (name < after if reverse else name > after)]
            assert list(self.stash.scan(after=after, reverse=reverse)) == expected

        @rule()
        def clear(self) -> None:
            self.stash.clear()
            self.model.clear()

        @rule()
        def close(self) -> None:
            if self.stash.durable:
                self.stash.close()

        if atomic:

            @rule(key=a_key, value=a_value)
            def add(self, key: str, value: Any) -> None:
                assert self.stash.add(key, value) == (key not in self.model)
                self.model.setdefault(key, value)

            @rule(key=a_key, value=a_value)
            def update(self, key: str, value: Any) -> None:
                old: list[Any] = []

                def replace(now: Any) -> Any:
                    old.append(now)
                    return value

                assert self.stash.update(key, replace, "nothing") == value
                assert old[-1] == self.model.get(key, "nothing")
                self.model[key] = value

        @invariant()
        def agree(self) -> None:
            if hasattr(self, "stash"):
                assert sorted(self.stash.keys()) == sorted(self.model)
                assert dict(self.stash.items()) == self.model
                assert len(self.stash) == len(self.model)
                assert bool(self.stash) == bool(self.model)

        def teardown(self) -> None:
            if hasattr(self, "stash"):
                finish(self.stash)

    return StashMachine
