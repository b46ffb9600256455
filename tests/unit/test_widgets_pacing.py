"""Who may speak when, by a fake clock."""

from collections.abc import Callable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nbprocs.testing import FakeClock
from nbprocs.widgets.pacing import Pacer, PacingSlots


class Timer:
    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


class View:
    def __init__(self, clock: FakeClock, size: int = 100) -> None:
        self.clock, self.size, self.spoke = clock, size, []

    def speak(self) -> int:
        self.spoke.append(self.clock())
        return self.size


def pacer(clock: FakeClock, slots: PacingSlots | None = None) -> Pacer:
    return Pacer(lambda delay, call: Timer(clock.call_later(delay, call)), clock=clock, slots=slots or PacingSlots())


def test_a_first_word_is_at_once_and_then_ten_a_second() -> None:
    clock = FakeClock()
    pace, view = pacer(clock), View(clock)
    for _ in range(1000):
        pace.want(view)
        clock.advance(0.001)
    assert view.spoke[0] == 0
    assert len(view.spoke) in (10, 11)


def test_all_together_twenty_a_second_and_none_is_forgotten() -> None:
    clock = FakeClock()
    pace, views = pacer(clock), [View(clock) for _ in range(40)]
    for _ in range(400):
        for view in views:
            pace.want(view)
        clock.advance(0.01)
    assert 70 <= sum(len(view.spoke) for view in views) <= 81  # 4 seconds
    assert all(view.spoke for view in views)


def test_loops_share_the_turns() -> None:
    clock, slots = FakeClock(), PacingSlots()
    paces = [pacer(clock, slots) for _ in range(3)]
    views = [View(clock) for _ in paces]
    for _ in range(100):
        for pace, view in zip(paces, views, strict=True):
            pace.want(view)
        clock.advance(0.01)
    assert sum(len(view.spoke) for view in views) <= 21


def test_a_big_message_makes_a_long_pause() -> None:
    clock = FakeClock()
    pace, view = pacer(clock), View(clock, size=600_000)
    for _ in range(300):
        pace.want(view)
        clock.advance(0.01)
    assert len(view.spoke) == 2  # at 0 and at 2 seconds


def test_what_may_wait_waits_but_urgent_news_take_it_along() -> None:
    clock = FakeClock()
    pace, view = pacer(clock), View(clock)
    pace.want(view, after=0.5)
    clock.advance(0.2)
    pace.want(view)
    clock.advance(1.0)
    assert view.spoke == [0.2]


def test_no_timer_without_news() -> None:
    clock = FakeClock()
    pace, view = pacer(clock), View(clock)
    assert pace.idle
    pace.want(view)
    assert not pace.idle
    clock.advance(1)
    assert pace.idle
    pace.want(view)
    pace.forget(view)
    assert pace.idle
    clock.advance(1)
    assert len(view.spoke) == 1


def test_nothing_to_say_costs_no_turn_of_its_own() -> None:
    clock = FakeClock()
    pace, view = pacer(clock), View(clock, size=0)
    pace.want(view)
    clock.advance(0.01)
    view.size = 100
    pace.want(view)
    clock.advance(0.06)
    assert len(view.spoke) == 2


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 0.3), st.floats(0, 1)), max_size=80))
def test_limits_hold_for_any_pattern(moves: list[tuple[int, float, float]]) -> None:
    clock = FakeClock()
    pace, views = pacer(clock), [View(clock) for _ in range(5)]
    for number, pause, after in moves:
        pace.want(views[number], after=after)
        clock.advance(pause)
    clock.advance(5)
    assert pace.idle
    every = sorted(at for view in views for at in view.spoke)
    assert all(b - a >= 0.049 for a, b in pairwise(every))
    for number, view in enumerate(views):
        assert bool(view.spoke) == any(move[0] == number for move in moves)
        assert all(b - a >= 0.099 for a, b in pairwise(view.spoke))
