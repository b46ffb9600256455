"""The pure parts of the cluster: which job goes where, when a worker is certainly gone, and a window that repeats until it is heard."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nbprocs.cluster.files import Shelf, described, parts
from nbprocs.cluster.ledger import AHEAD, Ledger, Wish
from nbprocs.cluster.link import Sign, certainly_gone
from nbprocs.cluster.window import PullWindow
from nbprocs.cluster.wire import dump_error, load_error
from nbprocs.errors import CommunicationError, ProcessFailed, WorkerLost

# -- the ledger


class LedgerMachine(RuleBasedStateMachine):
    """No worker ever has more jobs than slots, and every job is in one place or waits."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.live: set[str] = set()
        self.slots: dict[str, int] = {}
        self.number = 0

    @rule(priority=st.integers(0, 3), gpus=st.sampled_from([0.0, 0.0, 1.0]))
    def add(self, priority, gpus):
        self.number += 1
        name = f"j{self.number}"
        self.live.add(name)
        self.ledger.add(Wish(id=name, priority=priority, gpus=gpus, kind="slow"))

    @rule(worker=st.sampled_from("abc"), slots=st.integers(0, 3), gpus=st.integers(0, 2))
    def join(self, worker, slots, gpus):
        if worker not in self.slots:
            self.slots[worker] = slots
            self.ledger.join(worker, gpus=float(gpus))
            self.ledger.set_slots(worker, slots)

    @rule()
    def place(self):
        for worker, job in self.ledger.place():
            assert self.ledger.where(job) == worker and job in self.live
            assert len(self.ledger.places[worker].jobs) <= self.slots[worker]

    @rule(data=st.data())
    def end(self, data):
        if self.live:
            name = data.draw(st.sampled_from(sorted(self.live)))
            if not self.ledger.remove(name):
                self.ledger.ended(name, 1.0)
            self.live.discard(name)

    @rule(worker=st.sampled_from("abc"))
    def lose(self, worker):
        for name in self.ledger.lose(worker):
            self.live.discard(name)
        self.slots.pop(worker, None)

    @rule(worker=st.sampled_from("abc"))
    def spare(self, worker):
        place = self.ledger.places.get(worker)
        if place is not None and self.ledger.spare(worker):
            self.slots[worker] -= 1

    @invariant()
    def all_are_somewhere(self):
        assert self.ledger.busy + self.ledger.waiting == len(self.live)
        for place in self.ledger.places.values():
            assert sum(wish.gpus for wish in place.jobs.values()) == place.used <= place.gpus


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_the_most_urgent_is_placed_first_and_a_gpu_that_is_missing_holds_nobody_back():
    ledger = Ledger()
    ledger.join("w", gpus=0.0)
    ledger.set_slots("w", 1)
    for name, priority, gpus in (("low", 0, 0.0), ("gpu", 3, 1.0), ("high", 2, 0.0)):
        ledger.add(Wish(id=name, priority=priority, gpus=gpus))
    assert list(ledger.place()) == [("w", "high")]
    ledger.ended("high")
    assert list(ledger.place()) == [("w", "low")]
    assert ledger.waiting == 1


def test_only_short_commands_are_handed_over_ahead():
    ledger = Ledger()
    ledger.join("w", gpus=0.0)
    ledger.set_slots("w", 1)
    for number in range(20):
        ledger.add(Wish(id=str(number), kind="true"))
        list(ledger.place())
        ledger.ended(str(number), 0.001)
    assert ledger.room == 1 + AHEAD
    for number in range(20, 40):
        ledger.add(Wish(id=str(number), kind="true"))
    ledger.add(Wish(id="unknown", kind="train", priority=3))
    placed = [job for _, job in ledger.place()]
    assert placed[0] == "unknown" and len(placed) == 1 + AHEAD
    ledger.ended("unknown", 5.0)
    assert ledger.room == 1, "one that was not short ends that"


# -- when a worker is gone


@pytest.mark.parametrize(
    ("sign", "silent", "unlisted", "gone"),
    [
        (Sign.REFUSED, 2.0, 0.0, True),
        (Sign.REFUSED, 1.9, 1.9, False),
        (Sign.REFUSED, 100.0, None, False),
        (Sign.LISTENS, 100.0, None, False),
        (Sign.SILENT, 44.0, 44.0, False),
        (Sign.SILENT, 45.0, 14.0, False),
        (Sign.SILENT, 45.0, 15.0, True),
    ],
)
def test_a_worker_is_lost_only_when_nothing_of_it_can_run(sign, silent, unlisted, gone):
    assert certainly_gone(sign, silent=silent, unlisted=unlisted, timeout=30.0) is gone


# -- the window


class Source:
    """A run that writes and ends."""

    def __init__(self, name, data):
        self.name, self.data, self.at, self.over, self.heard = name, data, 0, False, False

    def news(self):
        return []

    def output(self, size):
        chunk = self.data[self.at : self.at + size]
        self.at += len(chunk)
        return [("output", self.name, self.at - len(chunk), chunk)] if chunk else []

    def end(self):
        return ("ended", self.name) if self.over else None

    def settled(self):
        self.heard = True


@given(st.lists(st.binary(max_size=300_000), min_size=1, max_size=4), st.lists(st.booleans(), max_size=40))
@settings(deadline=None, max_examples=40)
async def test_bytes_arrive_once_and_in_order_though_answers_are_lost(datas, losses):
    window = PullWindow(list)
    sources = [Source(str(n), data) for n, data in enumerate(datas)]
    for source in sources:
        source.over = True
        window.nudge(source)
    ack, got, ends = 0, {source.name: b"" for source in sources}, Counter()
    lost = iter(losses)
    while len(ends) < len(sources):
        number, items = await window.pull(ack, wait=0.0, room=100_000)
        if next(lost, False):
            continue  # it came, and the answer did not
        assert number == ack + 1
        ack = number
        assert sum(len(item[-1]) for item in items if item[0] == "output") <= 100_000 + 65536
        for kind, name, *rest in items:
            if kind == "output":
                assert not ends[name] and rest[0] == len(got[name])
                got[name] += rest[1]
            else:
                ends[name] += 1
    assert not any(source.heard for source in sources) or len(sources) > 1
    assert await window.pull(ack, wait=0.0, room=1) == (ack, [])
    assert [got[source.name] for source in sources] == datas and set(ends.values()) == {1}
    assert all(source.heard for source in sources)


async def test_a_loud_run_does_not_keep_the_others_waiting():
    window = PullWindow(list)
    loud, quiet = Source("loud", b"x" * (10 << 20)), Source("quiet", b"hello")
    window.nudge(loud)
    window.nudge(quiet)
    _, items = await window.pull(0, wait=0.0, room=1 << 20)
    assert any(item[1] == "quiet" for item in items[:3])


async def test_a_poll_waits_for_news_and_ends_with_the_window():
    window = PullWindow(list)
    source = Source("a", b"x")
    poll = asyncio.get_running_loop().create_task(window.pull(0, wait=60.0, room=100))
    await asyncio.sleep(0)
    window.nudge(source)
    assert (await poll)[1] == [("output", "a", 0, b"x")]
    poll = asyncio.get_running_loop().create_task(window.pull(1, wait=60.0, room=100))
    await asyncio.sleep(0)
    window.close()
    assert await poll == (1, [])


# -- files, errors


def test_a_file_is_complete_or_not_there(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"a" * (1 << 20) + b"b")
    ((name, digest, size, mode),) = described([("there", str(source))])
    shelf = Shelf(tmp_path / "shelf")
    first, last = parts(str(source), 0)
    assert not last
    shelf.write("s", digest, 0, first, last=False)
    assert not shelf.has(digest)
    shelf.write("s", digest, 0, first, last=False)  # twice
    rest, last = parts(str(source), len(first))
    assert last
    shelf.write("s", digest, len(first), rest, last=True)
    assert shelf.has(digest)
    folder = shelf.scratch("attempt", [(name, digest, size, mode)])
    assert (tmp_path / folder / "there").read_bytes() == source.read_bytes()
    with pytest.raises(ValueError, match="leads out"):
        shelf.scratch("other", [("../../there", digest, size, mode)])
    with pytest.raises(ValueError, match="not what its hash says"):
        shelf.write("s", "0" * 64, 0, b"changed", last=True)
    shelf.clear()
    assert not (tmp_path / "shelf").exists()


def test_errors_travel_or_their_text_does():
    error = load_error(dump_error(ProcessFailed("no", exit_code=3)))
    assert isinstance(error, ProcessFailed) and error.exit_code == 3
    lost = load_error(dump_error(WorkerLost("gone", worker="w", host="h", expected=True)))
    assert (lost.worker, lost.host, lost.expected) == ("w", "h", True)

    class Odd(Exception):
        def __reduce__(self):
            raise TypeError("no")

    odd = load_error(dump_error(Odd("its text"), "Traceback …"))
    assert isinstance(odd, CommunicationError) and "its text" in str(odd) and "Traceback" in str(odd.__cause__)
