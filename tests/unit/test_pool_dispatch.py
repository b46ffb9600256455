# ruff: noqa: RUF059
"""The dispatcher's rules, by example and as a state machine: no task is lost, run twice, or held where another worker could run it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nbprocs.pool.dispatch import DEEPEST, SHORT, STALE, WORTH, Dispatcher, Pace, Window


@dataclass(eq=False)
class Job:
    name: int
    priority: int = 1
    dropped: bool = False
    log: list = field(default_factory=list)


def dispatcher(windows=2, *, mean=None, **options):
    made = Dispatcher()
    if mean is not None:
        made.pace.note(mean)
    for key in range(windows):
        made.add(Window(key, **options))
    return made


def jobs(count, **options):
    return [Job(i, **options) for i in range(count)]


def push(made, tasks):
    for task in tasks:
        made.queue.push(task)


def answered(made, window, number):
    """An answer came: what the pool does, for many at once."""
    task = window.sent.pop(number, None)
    made.answered(window, int(task is not None))
    return task


def test_higher_priority_first_then_arrival():
    made = dispatcher(1)
    tasks = [Job(i, priority=p) for i, p in enumerate([1, 0, 3, 1, 3])]
    push(made, tasks)
    assert [t.name for t in made.queue.take(10)] == [2, 4, 0, 3, 1]


def test_unknown_durations_one_task_a_worker():
    made = dispatcher(2)
    push(made, jobs(10))
    assert [len(tasks) for _, _, tasks in made.plan(0.0)] == [1, 1]
    assert made.plan(0.0) == []
    assert len(made.queue) == 8


def test_short_tasks_fill_the_windows_evenly():
    made = dispatcher(2, mean=0.000_1)
    push(made, jobs(10))
    assert sorted(len(tasks) for _, _, tasks in made.plan(0.0)) == [5, 5]


def test_a_single_task_goes_to_the_idle_worker():
    made = dispatcher(2, mean=0.000_1)
    push(made, jobs(1))
    ((busy, _, _),) = made.plan(0.0)
    push(made, jobs(1))
    ((other, _, _),) = made.plan(0.0)
    assert other is not busy


@pytest.mark.parametrize(("mean", "depth"), [(None, 1), (SHORT * 2, 1), (SHORT / 2, 2), (WORTH / 9.5, 10), (0.0, DEEPEST)])
def test_depth_follows_the_measured_duration(mean, depth):
    pace = Pace()
    if mean is not None:
        pace.note(mean)
    assert pace.depth() == depth


def test_the_mean_follows_in_batches_as_one_by_one():
    one, many = Pace(), Pace()
    one.note(1.0), many.note(1.0)
    for _ in range(50):
        one.note(0.1)
    many.note(0.1, 50)
    assert one.mean == pytest.approx(many.mean)


def test_what_waits_behind_a_long_task_is_taken_back_when_another_worker_is_idle():
    made = dispatcher(2, mean=0.000_1)
    push(made, jobs(10))
    (a, first, tasks), (b, _, _) = made.plan(0.0)
    for number in list(b.sent):
        answered(made, b, number)
    assert made.stale(STALE / 2) == []  # too early to tell
    ((window, numbers),) = made.stale(STALE)
    assert window is a
    assert numbers == list(a.sent)[1:]
    window.withdrawing = True
    assert made.stale(1.0) == []
    made.returned(window, numbers)
    assert list(a.sent) == [first]
    assert [t.name for t in made.queue] == [t.name for t in tasks[1:]]
    assert {window.owner for window, _, _ in made.plan(1.0)} == {b.owner}


def test_nothing_is_taken_back_while_everybody_is_busy():
    made = dispatcher(2, mean=0.000_1)
    push(made, jobs(10))
    made.plan(0.0)
    assert made.stale(10.0) == []


def test_what_waits_is_taken_back_for_something_more_urgent():
    made = dispatcher(1, mean=SHORT / 2)
    push(made, jobs(2))
    made.plan(0.0)
    push(made, [Job(9, priority=3)])
    assert [numbers for _, numbers in made.stale(STALE)] == [[2]]


def test_a_dead_workers_unstarted_tasks_go_to_the_front():
    made = dispatcher(1, mean=0.000_1)
    tasks = jobs(5)
    push(made, tasks)
    ((window, _, _),) = made.plan(0.0)
    push(made, jobs(1))
    answered(made, window, 1)
    assert made.lost(window, 2) == [tasks[1]]
    assert list(made.queue)[:3] == tasks[2:]
    assert made.windows == {}


def test_a_worker_gets_no_more_than_its_budget():
    made = dispatcher(1, mean=0.000_1, budget=3)
    push(made, jobs(10))
    ((window, _, tasks),) = made.plan(0.0)
    assert len(tasks) == 3
    for number in list(window.sent):
        answered(made, window, number)
    assert made.plan(1.0) == []
    assert made.direct(Job(99), 1.0) is None


def test_a_lone_task_skips_the_queue_only_if_nobody_waits():
    made = dispatcher(1)
    assert made.direct(Job(0), 0.0) is not None
    assert made.direct(Job(1), 0.0) is None
    push(made, jobs(1))
    answered(made, next(iter(made.windows)), 1)
    assert made.direct(Job(2), 0.0) is None


class Machine(RuleBasedStateMachine):
    """A pool of model workers that claim in order, answer, give back, die and come, while tasks are submitted and cancelled at any time."""

    def __init__(self):
        super().__init__()
        self.made = Dispatcher()
        self.now = 0.0
        self.count = 0
        self.workers = {}  # key -> (window, claimed number, numbers it has and did not claim yet)
        self.keys = 0
        self.alive = set()  # jobs that have not ended
        self.started = {}  # job -> times claimed

    @rule(count=st.integers(1, 30), priority=st.integers(0, 3))
    def submit(self, count, priority):
        for _ in range(count):
            self.count += 1
            job = Job(self.count, priority=priority)
            self.alive.add(job)
            if (found := self.made.direct(job, self.now)) is not None:
                window, number = found
                self.workers[window.owner][2].append(number)
            else:
                self.made.queue.push(job)

    @rule(deepest=st.sampled_from([1, 4, DEEPEST]), budget=st.none() | st.integers(1, 5))
    def hire(self, deepest, budget):
        self.keys += 1
        window = Window(self.keys, deepest=deepest, budget=budget)
        self.workers[self.keys] = [window, 0, []]
        self.made.add(window)

    @rule(seconds=st.sampled_from([1e-6, 1e-4, 1e-3, 0.01, 1.0]), count=st.integers(1, 20))
    def pace(self, seconds, count):
        self.made.pace.note(seconds, count)

    @rule(seconds=st.floats(0, 0.1))
    def plan(self, seconds):
        self.now += seconds
        for window, first, tasks in self.made.plan(self.now):
            assert tasks
            assert window.open
            assert not window.withdrawing
            assert len(window.sent) <= min(self.made.pace.depth(), window.deepest)
            self.workers[window.owner][2] += range(first, first + len(tasks))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), count=st.integers(1, 10), finish=st.booleans())
    def work(self, data, count, finish):
        """Claim and answer some; perhaps claim one more and leave it running."""
        worker = self.workers[data.draw(st.sampled_from(sorted(self.workers)))]
        window, running, waiting = worker
        for _ in range(count):
            if running and running in window.sent:
                job = answered(self.made, window, running)
                assert job is not None
                self.alive.discard(job)
                running = 0
            if not waiting:
                break
            running = worker[1] = waiting.pop(0)
            job = window.sent[running]
            self.started[job] = self.started.get(job, 0) + 1
        if finish and running and running in window.sent:
            self.alive.discard(answered(self.made, window, running))

    @rule()
    def take_back(self):
        for window, numbers in self.made.stale(self.now):
            worker = self.workers[window.owner]
            window.withdrawing = True
            won = [n for n in numbers if n > worker[1]]
            worker[2] = [n for n in worker[2] if n not in won]
            for number in won:
                if window.sent[number].dropped:
                    self.alive.discard(window.sent[number])
            self.made.returned(window, won)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def die(self, data):
        key = data.draw(st.sampled_from(sorted(self.workers)))
        window, claimed, _ = self.workers.pop(key)
        before = list(window.sent.values())
        victims = self.made.lost(window, claimed)
        assert len(victims) <= 1
        for job in victims:
            assert self.started[job]
            self.alive.discard(job)
        for job in before:
            if job.dropped:
                self.alive.discard(job)

    @precondition(lambda self: len(self.made.queue))
    @rule(data=st.data())
    def cancel_queued(self, data):
        job = data.draw(st.sampled_from(list(self.made.queue)))
        self.made.queue.drop(job)
        self.alive.discard(job)

    @precondition(lambda self: self.made.running)
    @rule(data=st.data())
    def cancel_sent(self, data):
        job = data.draw(st.sampled_from([job for window in self.made.windows for job in window.sent.values()]))
        job.dropped = True

    @invariant()
    def everybody_is_somewhere_once(self):
        held = list(self.made.queue) + [job for window in self.made.windows for job in window.sent.values()]
        assert len(held) == len(set(held))
        assert {job for job in held if not job.dropped} == {job for job in self.alive if not job.dropped}
        assert len(self.made.queue) == len(list(self.made.queue))

    @invariant()
    def the_count_is_right(self):
        assert self.made.running == sum(len(window.sent) for window in self.made.windows)

    @invariant()
    def nothing_starts_twice(self):
        assert all(times == 1 for times in self.started.values())

    @invariant()
    def budgets_hold(self):
        assert all(window.budget is None or window.budget >= 0 for window in self.made.windows)

    def teardown(self):
        """With workers that work, everything ends."""
        for window, _, _ in self.workers.values():
            window.budget = None
        if not self.workers:
            self.hire(4, None)
        self.made.pace.mean = None
        for _ in range(10 * self.count + 10):
            self.plan(1.0)
            for key in self.workers:
                window, running, waiting = self.workers[key]
                for number in list(window.sent):
                    self.alive.discard(answered(self.made, window, number))
                waiting.clear()
        assert not {job for job in self.alive if not job.dropped}


TestDispatcher = Machine.TestCase
TestDispatcher.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
