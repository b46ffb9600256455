"""The pure queue against a naive model, and each rule on its own."""

import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nbprocs.scheduler.backend import Shape
from nbprocs.scheduler.entry import DEFAULTS, Entry, TaskOptions
from nbprocs.scheduler.model import Condition, Now, TaskState
from nbprocs.scheduler.queue import TaskQueue

INF = float("inf")
T0 = Now(1000.0, 0.0)


def entry(
    key: int, priority: int = 1, time: float = 1000.0, options: TaskOptions = DEFAULTS, due: float | None = None, on_wall: bool = False
) -> Entry:
    made = Entry(key, f"task{key}", (), priority, time, options)
    made.due, made.on_wall = due, on_wall
    return made


def keys(entries: list[Entry]) -> list[int]:
    return [e.key for e in entries]


class Naive:
    """The same rules by brute force: sort everything each time."""

    def __init__(self) -> None:
        self.tasks: dict[int, dict] = {}
        self.max_running, self.paused = 2, False
        self.groups = {"a": [1, False], "b": [2, False]}
        self.capacity = {"gpu": 2.0, "mem": 8.0}
        self.ended: dict[int, TaskState] = {}

    def state(self, key: int, now: Now) -> TaskState:
        t = self.tasks[key]
        if t["running"]:
            return TaskState.RUNNING
        if t["held"]:
            return TaskState.HELD
        if t["needs"]:
            return TaskState.BLOCKED
        if t["due"] is not None and t["due"] > (now.wall if t["on_wall"] else now.elapsed) and not t["came"]:
            return TaskState.SCHEDULED
        return TaskState.QUEUED

    def come(self, now: Now) -> None:
        """A task whose time came once stays ready, even if the clock goes back."""
        for key, t in self.tasks.items():
            if self.state(key, now) is TaskState.QUEUED:
                t["came"] = True

    def take(self, now: Now, memory: float) -> list[int]:
        self.come(now)
        taken: list[int] = []
        if self.paused:
            return taken
        ready = [k for k in self.tasks if self.state(k, now) is TaskState.QUEUED]
        for key in sorted(ready, key=lambda k: (-self.tasks[k]["priority"], self.tasks[k]["time"], k)):
            running = [t for t in self.tasks.values() if t["running"]]
            t = self.tasks[key]
            if len(running) >= self.max_running:
                break
            if t["group"]:
                limit, paused = self.groups[t["group"]]
                if paused or sum(r["group"] == t["group"] for r in running) >= limit:
                    continue
            if any(sum(dict(r["resources"]).get(n, 0) for r in running) + a > self.capacity[n] for n, a in t["resources"]):
                continue
            if t["gate"] > memory:
                continue
            memory -= t["gate"]
            t["running"] = True
            taken.append(key)
        return taken

    def end(self, key: int, state: TaskState) -> set[int]:
        skipped = set()
        del self.tasks[key]
        self.ended[key] = state
        for other in list(self.tasks):
            if other not in self.tasks:
                continue
            condition = self.tasks[other]["needs"].pop(key, None)
            if condition is not None and not condition.met(state):
                skipped |= {other} | self.end(other, TaskState.SKIPPED)
        return skipped


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = TaskQueue(max_running=2, groups={"a": 1, "b": 2}, resources={"gpu": 2, "mem": 8})
        self.model = Naive()
        self.all: dict[int, Entry] = {}
        self.now = T0
        self.key = 0

    @initialize()
    def start(self) -> None:
        assert self.queue.take(self.now) == []

    def pick(self, data: st.DataObject, *states: TaskState) -> int | None:
        found = [k for k in self.model.tasks if not states or self.model.state(k, self.now) in states]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(
        data=st.data(),
        priority=st.integers(0, 3),
        delay=st.sampled_from([None, None, 1.0, 5.0]),
        on_wall=st.booleans(),
        group=st.sampled_from([None, None, "a", "b"]),
        resources=st.sampled_from([(), (), (("gpu", 1.0),), (("gpu", 2.0),), (("gpu", 1.0), ("mem", 5.0))]),
        gate=st.sampled_from([0, 0, 0, 3]),
        time=st.sampled_from([0.0, 0.0, -3.0, 2.0]),
        held=st.booleans(),
    )
    def add(self, data, priority, delay, on_wall, group, resources, gate, time, held) -> None:
        self.key += 1
        reading = self.now.wall if on_wall else self.now.elapsed
        due = None if delay is None else reading + delay
        made = entry(
            self.key, priority, self.now.wall + time, TaskOptions(group=group, resources=resources, memory_gate=gate), due, on_wall
        )
        others = data.draw(st.lists(st.sampled_from(sorted(self.all)), max_size=2, unique=True)) if self.all else []
        needs = {k: data.draw(st.sampled_from(list(Condition))) for k in others}
        self.all[self.key] = made
        state = self.queue.add(made, self.now, after=[(self.all[k], c) for k, c in needs.items()], held=held)
        ended = self.model.ended
        if any(k in ended and not c.met(ended[k]) for k, c in needs.items()):
            assert state is TaskState.SKIPPED
            ended[self.key] = TaskState.SKIPPED
            for other in self.all.values():  # a task that never came in leaves no link behind
                assert made.key not in (other.dependents or {})
            return
        self.model.tasks[self.key] = {
            "priority": priority, "time": made.time, "due": due, "on_wall": on_wall, "group": group, "resources": resources, "gate": gate,
            "held": held, "running": False, "needs": {k: c for k, c in needs.items() if k not in ended}, "came": False,
        }  # fmt: skip
        if state is TaskState.QUEUED:
            self.model.tasks[self.key]["came"] = True
        assert state is self.model.state(self.key, self.now)

    @rule(memory=st.sampled_from([0.0, 3.0, 4.0, 100.0]))
    def take(self, memory: float) -> None:
        self.now = Now(self.now.wall, self.now.elapsed + 3)  # past the memory of earlier gates
        assert keys(self.queue.take(self.now, lambda: memory)) == self.model.take(self.now, memory)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def tick(self, seconds: float) -> None:
        self.now = Now(self.now.wall + seconds, self.now.elapsed + seconds)

    @rule(jump=st.sampled_from([-3600.0, -2.0, 3600.0]))
    def set_clock(self, jump: float) -> None:
        self.now = Now(self.now.wall + jump, self.now.elapsed)

    @rule(data=st.data(), state=st.sampled_from([TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED]))
    def end(self, data, state) -> None:
        states = () if state is TaskState.CANCELLED else (TaskState.RUNNING,)
        if (key := self.pick(data, *states)) is not None:
            skipped = self.queue.end(self.all[key], state, self.now)
            assert {e.key for e, _ in skipped} == self.model.end(key, state)
            self.came()

    @rule(data=st.data(), delay=st.sampled_from([0.0, 2.0]), on_wall=st.booleans())
    def again(self, data, delay, on_wall) -> None:
        if (key := self.pick(data, TaskState.RUNNING)) is not None:
            due = (self.now.wall if on_wall else self.now.elapsed) + delay
            self.queue.again(self.all[key], self.now, time=self.now.wall + delay, due=due, on_wall=on_wall)
            self.model.tasks[key] |= {"running": False, "time": self.now.wall + delay, "due": due, "on_wall": on_wall, "came": delay == 0}

    @rule(data=st.data())
    def hold(self, data) -> None:
        if (key := self.pick(data)) is not None:
            can = self.model.state(key, self.now) not in (TaskState.RUNNING, TaskState.HELD)
            assert self.queue.hold(self.all[key]) is can
            if can:
                self.model.tasks[key]["held"] = True

    @rule(data=st.data())
    def release(self, data) -> None:
        if (key := self.pick(data, TaskState.HELD)) is not None:
            assert self.queue.release(self.all[key], self.now)
            self.model.tasks[key] |= {"held": False, "came": False}
            self.came()

    @rule(data=st.data(), priority=st.integers(0, 4))
    def reprioritise(self, data, priority) -> None:
        if (key := self.pick(data)) is not None:
            was = self.all[key].state
            self.queue.reprioritise(self.all[key], priority, self.now)
            self.model.tasks[key]["priority"] = priority
            if was is TaskState.QUEUED:
                self.model.tasks[key]["came"] = self.all[key].state is TaskState.QUEUED

    @rule(data=st.data(), condition=st.sampled_from(list(Condition)))
    def depend(self, data, condition) -> None:
        key, other = self.pick(data), self.pick(data)
        if key is None or other is None or self.model.state(key, self.now) is TaskState.RUNNING:
            return
        if self.reaches(other, key):
            with pytest.raises(ValueError, match="wait for each other"):
                self.queue.depend(self.all[key], self.all[other], condition, self.now)
            return
        assert self.queue.depend(self.all[key], self.all[other], condition, self.now) == []
        self.model.tasks[key]["needs"][other] = condition
        self.model.tasks[key]["came"] = False

    def reaches(self, start: int, goal: int) -> bool:
        return start == goal or any(self.reaches(k, goal) for k in self.model.tasks[start]["needs"])

    @rule(paused=st.booleans(), limit=st.integers(1, 3))
    def control(self, paused, limit) -> None:
        self.queue.paused = self.model.paused = paused
        self.queue.limit(limit)
        self.model.max_running = limit

    @rule(name=st.sampled_from("ab"), paused=st.booleans(), limit=st.integers(0, 2))
    def control_group(self, name, paused, limit) -> None:
        self.queue.pause_group(name, paused=paused)
        self.queue.limit_group(name, limit)
        self.model.groups[name] = [limit, paused]

    @rule(gpu=st.integers(0, 3))
    def control_resource(self, gpu) -> None:
        self.queue.set_resource("gpu", gpu)
        self.model.capacity["gpu"] = gpu

    def came(self) -> None:
        """What the queue has placed as ready stays ready whatever the clock does."""
        for key, t in self.model.tasks.items():
            if self.all[key].state is TaskState.QUEUED:
                assert self.model.state(key, self.now) is TaskState.QUEUED
                t["came"] = True

    @precondition(lambda self: self.model.tasks)
    @invariant()
    def states_agree(self) -> None:
        for key in self.model.tasks:
            expected, found = self.model.state(key, self.now), self.all[key].state
            # a time that has come is noticed by take(), not by itself
            assert found is expected or (expected is TaskState.QUEUED and found is TaskState.SCHEDULED)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.model.tasks)
        for state in TaskState:
            live = sum(e.state is state for e in self.queue)
            assert self.queue.counts[state] == live + sum(s is state for s in self.model.ended.values())
        running = [e for e in self.queue if e.state is TaskState.RUNNING]
        for resource in self.queue.resources():
            assert resource.used == pytest.approx(sum(dict(e.options.resources).get(resource.name, 0) for e in running))

    @invariant()
    def next_time_is_the_first(self) -> None:
        waiting = [e for e in self.queue if e.state is TaskState.SCHEDULED]
        wall = min((e.due for e in waiting if e.on_wall), default=INF)
        elapsed = min((e.due for e in waiting if not e.on_wall), default=INF)
        assert self.queue.next_time() == Now(wall, elapsed)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_order_is_priority_then_time_then_arrival() -> None:
    queue = TaskQueue(max_running=10)
    for key, priority, time in ((1, 1, 5.0), (2, 2, 9.0), (3, 1, 3.0), (4, 1, 5.0), (5, 3, 9.0)):
        queue.add(entry(key, priority, time), T0)
    assert keys(queue.take(T0)) == [5, 2, 3, 1, 4]


def test_not_yet_due_never_holds_back_one_that_is() -> None:
    queue = TaskQueue(max_running=1)
    queue.add(entry(1, priority=3, due=60.0), T0)
    queue.add(entry(2, priority=0), T0)
    assert keys(queue.take(T0)) == [2]
    assert queue.next_time() == Now(INF, 60.0)


def test_a_full_group_never_holds_back_another() -> None:
    queue = TaskQueue(max_running=3, groups={"g": 1})
    for key in range(5):
        queue.add(entry(key, priority=3, options=TaskOptions(group="g")), T0)
    queue.add(entry(9, priority=0), T0)
    assert keys(queue.take(T0)) == [0, 9]


def test_a_large_request_waits_while_small_ones_fit() -> None:
    queue = TaskQueue(max_running=4, resources={"gpu": 2})
    queue.add(entry(1, options=TaskOptions(resources=(("gpu", 1.0),))), T0)
    assert keys(queue.take(T0)) == [1]
    queue.add(entry(2, priority=3, options=TaskOptions(resources=(("gpu", 2.0),))), T0)
    queue.add(entry(3, priority=0, options=TaskOptions(resources=(("gpu", 1.0),))), T0)
    assert keys(queue.take(T0)) == [3]  # nothing is reserved for the large one: the docstring says so


def test_ten_thousand_at_the_same_instant_come_in_order() -> None:
    queue = TaskQueue(max_running=10_000)
    order = list(range(10_000))
    random.Random(4).shuffle(order)
    for key in order:
        queue.add(entry(key, due=60.0, time=1060.0), T0)
    assert queue.take(Now(1059.0, 59.0)) == []
    assert keys(queue.take(Now(1060.0, 60.0))) == list(range(10_000))


def test_clock_set_back_an_hour() -> None:
    queue = TaskQueue(max_running=5)
    queue.add(entry(1, due=10.0), T0)  # a delay
    queue.add(entry(2, due=1010.0, on_wall=True), T0)  # a date
    back = Now(1000.0 - 3600 + 10, 10.0)
    assert keys(queue.take(back)) == [1], "a delay is on the clock that never goes back"
    assert keys(queue.take(Now(1010.0, 3610.0))) == [2], "a date waits for the date"


def test_suspended_for_an_hour_starts_what_came_due_in_order() -> None:
    queue = TaskQueue(max_running=5)
    queue.add(entry(1, due=1800.0, time=2800.0), T0)
    queue.add(entry(2, due=1700.0, time=2700.0), T0)
    queue.add(entry(3, due=5000.0, time=6000.0), T0)
    assert keys(queue.take(Now(1000.0 + 3600, 3600.0))) == [2, 1]


def test_dependency_on_a_cancelled_task() -> None:
    queue = TaskQueue(max_running=5)
    first = entry(1)
    queue.add(first, T0)
    on_success, on_failure, on_any, chained = (entry(k) for k in (2, 3, 4, 5))
    queue.add(on_success, T0, after=[(first, Condition.SUCCESS)])
    queue.add(on_failure, T0, after=[(first, Condition.FAILURE)])
    queue.add(on_any, T0, after=[(first, Condition.ANY)])
    queue.add(chained, T0, after=[(on_success, Condition.SUCCESS)])
    assert {(e.key, cause.key) for e, cause in queue.end(first, TaskState.CANCELLED, T0)} == {(2, 1), (3, 1), (5, 2)}
    assert keys(queue.take(T0)) == [4]


def test_a_cycle_is_refused_and_names_its_members() -> None:
    queue = TaskQueue()
    a, b, c = (entry(k) for k in (1, 2, 3))
    queue.add(a, T0)
    queue.add(b, T0, after=[(a, Condition.ANY)])
    queue.add(c, T0, after=[(b, Condition.ANY)])
    with pytest.raises(ValueError, match="task1 → task3 → task2 → task1"):
        queue.depend(a, c, Condition.ANY, T0)
    assert a.needs is None
    with pytest.raises(ValueError, match="task2 → task2"):
        queue.depend(b, b, Condition.ANY, T0)


def test_started_gates_count_until_the_task_has_grown() -> None:
    queue = TaskQueue(max_running=9)
    for key in (1, 2, 3):
        queue.add(entry(key, options=TaskOptions(memory_gate=4)), T0)
    assert keys(queue.take(T0, lambda: 10.0)) == [1, 2]
    assert queue.gated()
    assert queue.take(Now(1001.0, 1.0), lambda: 10.0) == []
    assert keys(queue.take(Now(1003.0, 3.0), lambda: 4.0)) == [3]


def test_a_resource_that_can_never_be_met_is_told() -> None:
    queue = TaskQueue(resources={"gpu": 1}, groups={"off": 0})
    assert "only 1" in (queue.impossible(entry(1, options=TaskOptions(resources=(("gpu", 2.0),)))) or "")
    assert "does not have" in (queue.impossible(entry(1, options=TaskOptions(resources=(("fpga", 1.0),)))) or "")
    assert "limit 0" in (queue.impossible(entry(1, options=TaskOptions(group="off"))) or "")
    assert queue.impossible(entry(1)) is None


def test_cancelling_nearly_all_gives_the_memory_back() -> None:
    queue = TaskQueue(max_running=1)
    made = [entry(k) for k in range(5000)] + [entry(k, due=9.0) for k in range(5000, 10_000)]
    for e in made:
        queue.add(e, T0)
    for e in made[:4990] + made[5000:9990]:
        queue.end(e, TaskState.CANCELLED, T0)
    lane = made[4999].lane
    assert lane is not None
    assert len(lane.run) < 200
    assert len(queue._due[0]) < 200
    assert keys(queue.take(T0)) == [4990]


def test_what_is_asked_of_a_backend_that_grows_is_what_limits_let_run() -> None:
    queue = TaskQueue(max_running=1, groups={"one": 1})
    running = entry(0)
    queue.add(running, T0)
    assert queue.take(T0) == [running]
    for key, options in enumerate([TaskOptions(group="one")] * 3 + [TaskOptions(group="new")] * 2 + [TaskOptions(memory_gate=7)], 1):
        queue.add(entry(key, options=options), T0)
    assert queue.demand([running], 100) == (
        Shape(count=4),
        Shape(count=1, memory=7),
    )  # the one that runs, one of its group, two of the other
    assert queue.demand([running], 3) == (Shape(count=3),)
    queue.pause_group("one", paused=True)
    assert queue.demand([running], 100) == (Shape(count=3), Shape(count=1, memory=7))
    queue.pause()
    assert queue.demand([running], 100) == (Shape(count=1),)


def test_a_group_of_two_shapes_is_counted_once() -> None:
    queue = TaskQueue(groups={"g": 3})
    for key in range(4):
        queue.add(entry(key, options=TaskOptions(group="g", memory_gate=key // 2)), T0)
    assert queue.demand([], 100) == (Shape(count=2), Shape(count=1, memory=1))


def test_one_that_runs_already_takes_its_room() -> None:
    queue = TaskQueue(max_running=2, groups={"g": 1})
    first, second = (entry(key, options=TaskOptions(group="g", resources=(("gpu", 1.0),))) for key in (1, 2))
    queue.take_over(first)
    assert (first.state, queue.counts[TaskState.RUNNING], len(queue)) == (TaskState.RUNNING, 1, 1)
    assert [(r.name, r.used, r.capacity) for r in queue.resources()] == [("gpu", 1.0, 0.0)]
    queue.set_resource("gpu", 2.0)
    queue.add(second, T0)
    assert queue.take(T0) == []
    queue.end(first, TaskState.SUCCEEDED, T0)
    assert queue.take(T0) == [second]
    assert [r.used for r in queue.resources()] == [1.0]


def test_options_are_values() -> None:
    assert replace(DEFAULTS, group="g") == TaskOptions(group="g")
