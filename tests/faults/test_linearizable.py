"""The checker of histories is right: about histories made by hand, and about random ones whose answer is known."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.faults.linearizable import ABSENT, Operation, is_linearizable


def op(kind, called, returned, value=None, result=None):
    return Operation(kind, called, returned, value, result)


def pending(kind, called, value=None):
    return Operation(kind, called, value=value)


GOOD = {
    "nothing": [],
    "one after the other": [op("dump", 0, 1, "a"), op("load", 2, 3, result="a")],
    "nothing there": [op("load", 0, 1, result=ABSENT)],
    "read while it is written, old": [op("dump", 0, 9, "a"), op("load", 1, 2, result=ABSENT)],
    "read while it is written, new": [op("dump", 0, 9, "a"), op("load", 1, 2, result="a")],
    "old then new": [op("dump", 0, 9, "a"), op("load", 1, 2, result=ABSENT), op("load", 3, 4, result="a")],
    "two writes at once": [op("dump", 0, 9, "a"), op("dump", 0, 9, "b"), op("load", 10, 11, result="a")],
    "added, then refused": [op("add", 0, 1, "a", True), op("add", 2, 3, "b", False), op("load", 4, 5, result="a")],
    "one of two adds": [op("add", 0, 9, "a", False), op("add", 1, 8, "b", True)],
    "deleted once": [op("dump", 0, 1, "a"), op("delete", 2, 5, result=True), op("delete", 3, 6, result=False)],
    "updates in a chain": [op("update", 0, 5, "a", ABSENT), op("update", 1, 6, "b", "a"), op("load", 7, 8, result="b")],
    "killed, and it happened": [pending("dump", 0, "a"), op("load", 2, 3, result="a")],
    "killed, and it did not": [pending("dump", 0, "a"), op("load", 2, 3, result=ABSENT)],
    "killed, and it happened later": [
        pending("dump", 0, "a"),
        op("load", 2, 3, result=ABSENT),
        op("load", 4, 5, result="a"),
    ],
    "killed, seen by its effect only": [pending("dump", 0, "a"), op("delete", 2, 3, result=True)],
    "killed while it read": [pending("load", 0), op("dump", 2, 3, "a")],
}
BAD = {
    "never written": [op("load", 0, 1, result="a")],
    "lost": [op("dump", 0, 1, "a"), op("load", 2, 3, result=ABSENT)],
    "stale": [op("dump", 0, 1, "a"), op("dump", 2, 3, "b"), op("load", 4, 5, result="a")],
    "new then old": [op("dump", 0, 9, "a"), op("load", 1, 2, result="a"), op("load", 3, 4, result=ABSENT)],
    "read before it is written": [op("load", 0, 1, result="a"), op("dump", 2, 3, "a")],
    "two adds": [op("add", 0, 9, "a", True), op("add", 1, 8, "b", True)],
    "refused with nothing there": [op("add", 0, 1, "a", False)],
    "deleted twice": [op("dump", 0, 1, "a"), op("delete", 2, 5, result=True), op("delete", 3, 6, result=True)],
    "an update is lost": [op("update", 0, 5, "a", ABSENT), op("update", 1, 6, "b", ABSENT)],
    "two readers disagree on the order": [
        op("dump", 0, 9, "a"),
        op("dump", 0, 9, "b"),
        op("load", 1, 2, result="a"),
        op("load", 3, 4, result="b"),
        op("load", 5, 6, result="a"),
    ],
    "killed, and it happened twice": [
        pending("dump", 0, "a"),
        op("load", 2, 3, result="a"),
        op("dump", 4, 5, "b"),
        op("load", 6, 7, result="b"),
        op("load", 8, 9, result="a"),
    ],
    "seen before it was called": [op("load", 0, 1, result="a"), pending("dump", 2, "a")],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_have_happened(name):
    for order in itertools.islice(itertools.permutations(GOOD[name]), 24):
        assert is_linearizable(order)


@pytest.mark.parametrize("name", BAD)
def test_what_can_not_have_happened(name):
    for order in itertools.islice(itertools.permutations(BAD[name]), 24):
        assert not is_linearizable(order)


def by_trying(history):
    """Return the answer by trying every order of every choice of what was pending."""
    sure = [one for one in history if not one.pending]
    unsure = [one for one in history if one.pending]
    chosen = itertools.chain.from_iterable(itertools.combinations(unsure, n) for n in range(len(unsure) + 1))
    return any(fits(order) for extra in chosen for order in itertools.permutations([*sure, *extra]))


def fits(order):
    state = ABSENT
    for number, one in enumerate(order):
        possible, state = one.after(state)
        if not possible or any(later.returned < one.called for later in order[number + 1 :]):
            return False
    return True


def test_it_agrees_with_trying_every_order():
    chance = random.Random(7)
    answers = []
    for _ in range(600):
        history = []
        for number in range(chance.randint(1, 5)):
            kind = chance.choice(["load", "dump", "add", "delete", "update"])
            called = chance.randint(0, 8)
            returned = chance.choice([called + chance.randint(1, 6), float("inf")]) if number else called + 2
            found = chance.choice([ABSENT, 0, 1, 2])
            result = chance.random() < 0.5 if kind in ("add", "delete") else found
            history.append(Operation(kind, called, returned, number, result))
        answers.append(is_linearizable(history))
        assert answers[-1] == by_trying(history), history
    assert 50 < sum(answers) < 550, "both answers are tried"


def test_a_long_history_is_judged():
    # Each reads while the next one writes.
    history = [op("dump", 10 * n, 10 * n + 14, n) for n in range(250)]
    history += [op("load", 10 * n + 5, 10 * n + 13, result=n) for n in range(250)]
    assert is_linearizable(history)
    assert not is_linearizable([*history, op("load", 2600, 2601, result=0)])
