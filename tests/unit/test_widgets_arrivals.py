"""Calls of a front end are performed in the order in which it made them, whatever threads they come by."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nbprocs.widgets.arrivals import MOST, Arrivals
from nbprocs.widgets.wire import Call


class Alarms:
    """A loop's timers, which go off when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []

    def call_later(self, _delay: float, callback: Callable[[], object]) -> Any:
        self.due.append(callback)
        return self

    def cancel(self) -> None:
        self.due.pop()

    def go_off(self) -> None:
        for callback in self.due[:]:
            callback()


def made(first: int = 1) -> tuple[Arrivals, Alarms, list[int], Callable[[int], None]]:
    done: list[int] = []
    clock = Alarms()
    arrivals = Arrivals(clock, lambda call: done.append(call.id))  # type: ignore[arg-type]

    def take(number: int) -> None:
        arrivals.take(Call(view="tab", id=number, part="pane", op="send", args={}))

    take(first)
    return arrivals, clock, done, take


@given(st.permutations(range(2, 30)))
def test_all_come_and_each_is_performed_in_its_turn(order: list[int]) -> None:
    _, clock, done, take = made()
    for number in order:
        take(number)
        assert done == list(range(1, len(done) + 1))
        assert len(clock.due) == (len(done) < max(done + order[: order.index(number) + 1]))  # somebody waits: for a limited time
    assert done == list(range(1, 30))


@given(st.lists(st.integers(min_value=2, max_value=40), max_size=60), st.sets(st.integers(0, 60)))
def test_each_that_comes_is_performed_once_though_others_are_lost(numbers: list[int], timers: set[int]) -> None:
    _, clock, done, take = made()
    for i, number in enumerate(numbers):
        take(number)
        if i in timers:
            clock.go_off()
            assert sorted(done) == sorted([1, *numbers[: i + 1]])
    clock.go_off()
    assert sorted(done) == sorted([1, *numbers])
    assert clock.due == []


def test_a_front_end_that_is_known_from_before_begins_with_any_number() -> None:
    _, clock, done, take = made(first=77)
    take(78)
    assert done == [77, 78]
    assert clock.due == []


def test_only_so_many_wait() -> None:
    _, clock, done, take = made()
    for number in range(3, 3 + MOST):
        take(number)
    assert done == [1]
    take(3 + MOST)
    assert done == [1, *range(3, 4 + MOST)]
    assert clock.due == []


def test_the_end_of_a_front_end_ends_the_waiting() -> None:
    arrivals, clock, done, take = made()
    take(3)
    arrivals.end()
    assert clock.due == []
    assert done == [1]
