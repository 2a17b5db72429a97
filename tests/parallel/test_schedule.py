"""Every item is given out until it is done, and done once, whatever becomes of the workers."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from zpersist.parallel.intake import InputOrder, Intake, stretches
from zpersist.parallel.schedule import Schedule, Task

RETRIES = 3


class Nothing:
    """Nothing is done already."""

    unsure = False

    def refresh(self):
        pass

    def limit(self, place, count):
        return count

    def is_done(self, place, items):
        return [False] * len(items)


class Some(Nothing):
    def __init__(self, done):
        self.done = done

    def is_done(self, place, items):
        return [item in self.done for item in items]


def simulate(schedule, workers, choose, *, isolated, deadly=(), lazy=False):
    """Let workers do, leave, and lose tasks as it is chosen; return what was done, and how often items were tried."""
    done, running, tries = [], [], {}
    while True:
        while len(running) < workers:
            task = schedule.next(idle=not running, isolated=isolated)
            if task is None:
                break
            assert task.items
            assert len(task.items) == len(task.places)
            if not isolated and any(other.suspect for other in running):
                raise AssertionError("a suspect is not alone")
            running.append(task)
            if not isolated and task.suspect:
                assert len(running) == 1
                break
        if not running:
            return done, tries
        task = running.pop(choose(len(running)))
        bad = [i for i, item in enumerate(task.items) if item in deadly]
        if bad:
            at = bad[0]
            tries[task.items[at]] = tries.get(task.items[at], 0) + 1
            if isolated:
                done += task.items[:at]
                schedule.again(task.cut(at + 1))
                task = task.cut(at, at + 1)
            if len(task.items) == 1 and task.deaths + 1 >= RETRIES:
                continue
            schedule.suspect(task)
            continue
        count = 1 + choose(len(task.items)) if lazy else len(task.items)
        schedule.learn(count, 0.001 * count)
        done += task.items[:count]
        schedule.again(task.cut(count))


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(0, 300),
    workers=st.integers(1, 9),
    size=st.integers(0, 40),
    known=st.booleans(),
    isolated=st.booleans(),
    lazy=st.booleans(),
    deadly=st.sets(st.integers(0, 300), max_size=4),
    done=st.sets(st.integers(0, 300), max_size=60),
    data=st.data(),
)
def test_every_item_exactly_once(n, workers, size, known, isolated, lazy, deadly, done, data):
    random = data.draw(st.randoms(use_true_random=False))
    passed = []
    intake = Intake(range(n), Some(done), passed=lambda place, items: passed.extend(items))
    schedule = Schedule(intake, workers=workers, total=n if known else None, size=size)
    made, tries = simulate(
        schedule, workers, lambda k: random.randrange(k), isolated=isolated, deadly=deadly, lazy=lazy
    )
    assert sorted(passed) == sorted(done & set(range(n)))
    expected = set(range(n)) - done
    assert sorted(made) == sorted(expected - deadly)
    if isolated:
        assert set(tries.values()) <= {RETRIES}
    assert set(tries) == deadly & expected


def test_a_schedule_that_forgets_what_was_lost_is_found_out():
    class Forgets(Schedule):
        def suspect(self, task):
            super().suspect(task.cut(1) if len(task.items) > 1 else task)

    schedule = Forgets(Intake(range(20), Nothing()), workers=2, size=4)
    made, _ = simulate(schedule, 2, lambda k: 0, isolated=False, deadly={5})
    assert sorted(made) != [item for item in range(20) if item != 5]


def test_chunks_take_the_budget_and_shrink_towards_the_end():
    schedule = Schedule(Intake(range(10_000), Nothing()), workers=2, total=10_000)
    sizes = []
    while task := schedule.next(idle=True, isolated=True):
        sizes.append(len(task.items))
        schedule.learn(len(task.items), 0.001 * len(task.items))
    assert sizes[0] == 1
    assert max(sizes) <= 51
    assert sizes[1] >= 49
    # What takes 2 ms: smaller ones would not be worth the way.
    assert sizes[-1] == 2
    assert sum(sizes) == 10_000


def test_an_endless_input_is_taken_as_it_is_needed():
    taken = itertools.count()
    schedule = Schedule(Intake(taken, Nothing()), workers=2)
    for _ in range(100):
        task = schedule.next(idle=True, isolated=True)
        schedule.learn(len(task.items), 1e-9)
    assert next(taken) <= 100 * 4096


@given(st.lists(st.booleans()))
def test_stretches(flags):
    parts = list(stretches(flags))
    assert [flag for start, end, flag in parts for _ in range(start, end)] == flags
    assert all(one[2] != other[2] and one[1] == other[0] for one, other in itertools.pairwise(parts))


@given(st.permutations(range(12)), st.integers(1, 20))
def test_the_order_of_the_input(places, window):
    order = InputOrder(window)
    assert order.limit() == window
    came = []
    for place in places:
        order.add([place], [f"key {place}"])
        came += order.ready()
    assert came == [f"key {place}" for place in range(12)]
    assert order.limit() == window + 12


def test_a_task_that_is_cut():
    task = Task(list("abcdef"), range(10, 16), deaths=1)
    assert task.cut(2, 4) == Task(["c", "d"], range(12, 14), deaths=1)
    assert task.cut(4).places == range(14, 16)
