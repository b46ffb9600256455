"""The shim's decisions without a shim: its wire, whose a process is, and how a tree is ended, against a made-up system."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import nbprocs
from nbprocs.engine.shimlib import looks, server, wire
from nbprocs.engine.shimlib.endings import KILL_DEADLINE, Ending
from nbprocs.engine.shimlib.evidence import Claim, Found, below, claimed, is_stray, tokens_in
from nbprocs.engine.shimlib.kids import REMEMBERED, Kid, Kids
from nbprocs.engine.shimlib.launching import Refusal, launch
from nbprocs.engine.shimlib.looks import send_signals
from nbprocs.engine.shimlib.proc import read_proc

FIELDS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.binary(max_size=300) | st.text(max_size=30) | st.floats(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.dictionaries(st.binary(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.integers(1, 99), FIELDS), max_size=8), st.data())
def test_frames_arrive_whole_however_the_stream_is_cut(messages, data):
    stream = b"".join(wire.pack(*message) for message in messages)
    unpacker = wire.Unpacker()
    got = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += unpacker.feed(stream[:size])
        stream = stream[size:]
    assert got == messages


def test_what_is_no_frame_is_refused():
    with pytest.raises(ValueError, match="a frame of"):
        wire.Unpacker().feed(b"\xff\xff\xff\xff")


BASES = st.integers(1 << 27, (1 << 28) - 1)


@given(BASES, st.integers(0, 4095), st.integers(0, 1 << 40))
def test_a_tag_says_whose_it_is_and_fits_a_signed_limit(base, manager, number):
    tag = wire.tag_of_child(base, manager, number)
    assert 0 < tag < 1 << 62
    assert wire.is_tag(tag)
    assert wire.parts_of_tag(tag) == (base, manager, wire.child_part(number))
    assert wire.is_tag(wire.tag_of_child(wire.new_base(), 1, 1))


@given(st.integers(-1, 1 << 60))
def test_an_ordinary_limit_is_no_tag(value):
    assert not wire.is_tag(value)
    assert not wire.is_tag(None)


def found(*, tag=None, session=0, tokens=()):
    return Found(10, 1.0, tag, session, frozenset(tokens))


def test_the_first_evidence_that_speaks_decides():
    base = wire.new_base()
    mine, other = wire.tag_of_child(base, 1, 1), wire.tag_of_child(base, 1, 2)
    claim = Claim(base, 1, 1, frozenset({50}), "k.1.a")
    assert claimed(claim, found(tag=mine, session=99))
    assert not claimed(claim, found(tag=other, session=50, tokens={"k.1.a"})), "a tag beats the session and the token"
    assert claimed(claim, found(session=50))
    assert claimed(claim, found(tokens={"k.1.a"}))
    assert not claimed(claim, found())
    assert not claimed(claim, found(), stray=True), "a stray goes with the manager, not with a process"
    assert claimed(claim._replace(strays=True), found(), stray=True)
    assert claimed(claim._replace(child=None), found(tag=other)), "the manager's"
    assert not claimed(claim._replace(child=None, manager=2), found(tag=other))
    assert claimed(Claim(base, everything=True), found())


def test_a_stray_is_what_no_evidence_ties_to_anybody():
    base = wire.new_base()
    assert is_stray(found(), base=base, led=False, token="k")
    assert not is_stray(found(tag=wire.tag_of_child(base, 3, 3)), base=base, led=False, token="k")
    assert not is_stray(found(), base=base, led=True, token="k")
    assert not is_stray(found(tokens={"k", "k.1"}), base=base, led=False, token="k")


def test_tokens_nest():
    assert tokens_in(b"outer.1.x:inner.2.y") == {"outer", "outer.1", "outer.1.x", "inner", "inner.2", "inner.2.y"}
    assert tokens_in(b"") == frozenset()


@given(st.dictionaries(st.integers(0, 20), st.lists(st.integers(0, 20), max_size=4), max_size=12), st.lists(st.integers(0, 20), max_size=3))
def test_descent_visits_everybody_once_also_in_a_circle(children, roots):
    got = below(roots, children)
    assert set(roots) <= got
    assert all(set(children.get(pid, ())) <= got for pid in got)


class Dying(RuleBasedStateMachine):
    """An ending against a system in which processes hear, are deaf, fork, refuse signals and end by themselves."""

    @initialize(grace=st.sampled_from([0.0, 0.3, 2.0]), leader_first=st.booleans())
    def begin(self, grace, leader_first):
        self.now, self.began, self.grace = 100.0, 100.0, grace
        self.alive = {1: 0.0}
        self.deaf, self.immortal, self.next = set(), set(), 2
        self.asked, self.kills = {}, []
        self.leader_first = leader_first
        self.ending = Ending(now=self.now, signal=signal.SIGTERM, grace=grace, leader=1, leader_first=leader_first)
        self.due = self.now

    @precondition(lambda self: not self.ending.done)
    @rule()
    def look(self):
        self.now = max(self.now, self.due)
        seen = dict(self.alive)
        step = self.ending.looked(self.now, seen)
        for pid, numbers in step.send:
            assert pid in seen
            if signal.SIGKILL in numbers:
                assert self.now >= self.began + self.grace, "no SIGKILL before the grace is over"
                self.kills.append((self.now, pid))
                if pid not in self.immortal:
                    del self.alive[pid]
            else:
                assert numbers == (signal.SIGTERM, signal.SIGCONT)
                assert pid not in self.asked, "asked once"
                if self.leader_first and self.now < self.began + self.grace:
                    assert pid == 1, "the leader first"
                self.asked[pid] = self.now
                if pid not in self.deaf | self.immortal:
                    del self.alive[pid]
        assert (step.again is None) == self.ending.done
        if step.again is not None:
            assert step.again > self.now or not seen
            self.due = step.again

    @precondition(lambda self: not self.ending.done and self.alive)
    @rule(deaf=st.booleans(), immortal=st.booleans(), data=st.data())
    def fork(self, deaf, immortal, data):
        if len(self.alive) < 6 and self.next < 30:
            self.alive[self.next] = float(self.next)
            if deaf:
                self.deaf.add(self.next)
            if immortal and data.draw(st.integers(0, 5)) == 0:
                self.immortal.add(self.next)
            self.next += 1

    @precondition(lambda self: not self.ending.done and self.alive)
    @rule(data=st.data())
    def end_by_itself(self, data):
        del self.alive[data.draw(st.sampled_from(sorted(self.alive)))]

    @rule(seconds=st.floats(0, 1))
    def time_passes(self, seconds):
        self.now += seconds

    @invariant()
    def said_only_what_was_done(self):
        if not hasattr(self, "ending"):
            return
        if self.ending.survivors:
            first = self.kills[0][0]
            assert self.now >= first + KILL_DEADLINE, "five seconds from the SIGKILL that was really sent"
            assert set(self.ending.survivors) <= self.alive.keys()

    def teardown(self):
        if not hasattr(self, "ending"):
            return
        for _ in range(300):
            if self.ending.done:
                break
            self.look()
        assert self.ending.done, "it comes to an end"
        assert set(self.alive) == set(self.ending.survivors)


Dying.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestDying = Dying.TestCase


def test_one_empty_look_proves_nothing():
    ending = Ending(now=0.0, signal=15, grace=0.0)
    assert ending.looked(0.0, {1: 0.0}).send == ((1, (9,)),)
    for number in range(2, 8):
        assert ending.looked(number / 100, {number: 1.0}).send, "a chain of forks"
        assert ending.looked(number / 100 + 0.001, {}).again is not None
    empty = 0
    while not ending.done:
        ending.looked(1.0 + empty / 100, {})
        empty += 1
    assert empty >= 5


def test_an_empty_look_during_which_somebody_ended_proves_next_to_nothing():
    ending = Ending(now=0.0, signal=15, grace=0.0)
    ending.looked(0.0, {1: 0.0})
    for number in range(1, 16):
        again = ending.looked(number / 100, {}, blurred=True).again
        assert again is not None
        assert again - number / 100 < 0.001, "at once: who was forked is to be seen now"
    assert ending.looked(0.16, {}, blurred=True).again is None, "a neighbour's chain of forks must not hold it up for ever"


def test_a_look_is_blurred_when_an_unknown_child_ends_during_it(monkeypatch):
    mine = read_proc(os.getpid())
    assert mine is not None
    alive = mine._replace(pid=77)
    looker = looks.Looker(Kids(), base=1, token="k")
    everything = [Claim(1, everything=True)]
    monkeypatch.setattr(looks, "children_of", lambda pid: [77] if pid == os.getpid() else [])
    for rows, members, blurred in (
        ([alive, alive], {77}, False),
        ([None, None], set(), True),
        ([alive, None], set(), True),  # it ended while its evidence was read
        ([alive, alive._replace(state="Z")], set(), True),
    ):
        answers = iter(rows)
        monkeypatch.setattr(looks, "read_proc", lambda _, answers=answers: next(answers))
        looker.orphans.clear()
        assert set(looker.look(everything)[0]) == members
        assert looker.blurred is blurred


def test_when_the_kernel_is_gone_the_system_says_when_nobody_descends_from_the_shim(monkeypatch):
    shim = server.Server.__new__(server.Server)
    asked = []
    monkeypatch.setattr(shim, "_end_everything", lambda _over, *, grace, whole_table=False: asked.append((grace, whole_table)))
    monkeypatch.setattr(shim, "_childless", lambda: False)
    shim._own_ended([])
    assert asked.pop() == (0.0, False), "once more, without waiting"
    shim._own_ended([wire.Survivor(7, "immortal", False)])
    assert asked.pop() == (server.LAST_GRACE, True)
    monkeypatch.setattr(shim, "_childless", lambda: True)
    shim._own_ended([])
    assert asked.pop() == (server.LAST_GRACE, True)


def test_looks_come_at_doubling_times_and_a_calm_tree_ends_with_the_second_empty_one():
    ending = Ending(now=0.0, signal=15, grace=10.0)
    waits, now = [], 0.0
    for _ in range(10):
        again = ending.looked(now, {1: 0.0}).again
        assert again is not None
        waits.append(round(again - now, 6))
        now = again
    assert waits == [0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1, 0.1, 0.1]
    assert ending.looked(9.9, {1: 0.0}).again == 10.0, "no look is later than the SIGKILL"
    assert ending.looked(9.9, {}).again == pytest.approx(9.902)
    assert ending.looked(9.91, {}).again is None
    assert ending.done


def test_who_may_not_be_signalled_is_known():
    ending = Ending(now=0.0, signal=15, grace=0.0)
    assert not ending.not_ours
    for start in (1.0, 2.0):
        ending.refused(7, start)
    assert set(ending.not_ours) == {7}


@pytest.mark.parametrize(("newcomers", "looks"), [(0, 2), (1, 2), (2, 6), (3, 6)])
def test_the_more_new_ones_turned_up_the_more_empty_looks_are_wanted(newcomers, looks):
    ending = Ending(now=0.0, signal=15, grace=10.0)
    for number in range(newcomers + 1):
        ending.looked(number / 100, {number + 1: 1.0})
    empty = 0
    while not ending.done:
        ending.looked(1.0 + empty / 100, {})
        empty += 1
    assert empty == looks


# --- a signal only to whom it was meant -----------------------------------------------------------------------------------


def test_a_reused_pid_is_not_signalled(monkeypatch):
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]) as stranger:
        row = read_proc(stranger.pid)
        with monkeypatch.context() as patched:  # an ending takes a moment to be seen, a call does not
            sent = []
            patched.setattr(looks.signal, "pidfd_send_signal", lambda *args: sent.append(args))
            patched.setattr(looks.os, "kill", lambda *args: sent.append(args))
            send_signals(stranger.pid, row.start - 1, (signal.SIGKILL,), own=False)
            assert not sent, "another start: another process"
        send_signals(stranger.pid, row.start, (signal.SIGKILL,), own=False)
        assert stranger.wait() == -9
    send_signals(stranger.pid, row.start, (signal.SIGKILL,), own=False)


def test_the_pidfd_is_opened_before_the_row_is_read(monkeypatch):
    """The other way round a pid could change hands in between."""
    order = []
    real = os.pidfd_open
    monkeypatch.setattr(looks.os, "pidfd_open", lambda pid: order.append("pidfd") or real(pid))
    monkeypatch.setattr(looks, "read_proc", lambda pid: order.append("row") or read_proc(pid))
    send_signals(os.getpid(), read_proc(os.getpid()).start, (), own=False)
    assert order == ["pidfd", "row"]


def test_a_new_shim_guards_only_the_process_that_was_meant():
    """What a shim that died had watched is told by pid, start and tag: whatever has that pid by now is not ended with the kernel."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]) as stranger:
        row = read_proc(stranger.pid)
        for start, tag, same in ((row.start, 0, True), (row.start - 1, 0, False), (row.start, 77, not server.TAGS)):
            watched, gone = [], []
            shim = SimpleNamespace(
                kids=Kids(), watch=lambda fd, _, to=watched: to.append(fd), _exited=lambda kid, *_, to=gone: to.append(kid)
            )
            kid = Kid(1, stranger.pid, tag, None, ("", "", None), (), "", (0, False, 0.0, None), 0.0, own=False, start=start)
            server.Server._guard(shim, kid)
            os.close(kid.pidfd)
            assert (len(watched), len(gone)) == ((1, 0) if same else (0, 1))
        stranger.kill()


@pytest.mark.parametrize("options", [{}, {"umask": 0o77}], ids=["spawned", "forked"])
def test_a_start_that_fails_leaves_nobody_to_be_reaped(options):
    order = wire.StartOrder(
        1, 0, (b"/no/such/program",), None, 0, b"", None, (-1, -1, -1), (), False, options, (15, False, 0.0, None), ("", "", None)
    )
    with pytest.raises(Refusal) as caught:
        launch(order, [], {b"PATH": b"/bin"})
    assert caught.value.step == "program"
    assert [one.pid for one in psutil.Process().children() if one.status() == psutil.STATUS_ZOMBIE] == []


# --- what a shim loads ----------------------------------------------------------------------------------------------------

TUPLES = """
import collections, sys
from nbprocs.engine.shimlib import endings, evidence, proc, wire
found = {
    f"{module.__name__}.{name}": (value._fields, value._field_defaults, hasattr(value, "has_tag"))
    for module in (endings, evidence, proc, wire) for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, tuple) and value.__module__ == module.__name__
}
print(sorted(found.items()))
"""


def test_what_stands_for_typing_in_a_shim_makes_the_same_named_tuples_and_hands_over_to_the_real_one():
    light = "import sys\nfrom nbprocs.engine.shimlib.light import LightTyping\nsys.modules['typing'] = LightTyping('typing')\n"
    bare = f"import os, sys, types\nof = types.ModuleType('nbprocs')\nof.__path__ = [{os.path.dirname(nbprocs.__file__)!r}]\nsys.modules['nbprocs'] = of\n"
    more = "print('re' in sys.modules)\nimport typing\nprint(typing.Optional[int], sys.modules['typing'].__file__ is not None)"

    def said(code):
        return subprocess.run([sys.executable, "-I", "-S", "-E", "-c", code], capture_output=True, text=True, check=True).stdout

    tuples, loaded, real = said(bare + light + TUPLES + more).splitlines()
    assert tuples == said(bare + TUPLES).strip()
    assert tuples.count("nbprocs.engine.shimlib") >= 8
    assert (loaded, real) == ("False", "typing.Optional[int] True")


def test_the_sessions_of_the_last_4096_ended_children_are_known_and_no_memory_grows_with_more():
    kids, size = Kids(), []
    for pid in range(1, 4 * REMEMBERED):
        kid = Kid(pid, pid, wire.tag_of_child(5, 2, pid), None, ("", "", None), (), "", (15, False, 5.0, None), 0.0)
        kids.add(kid)
        kids.remove(kid)
        size.append(len(kids.sessions(2)) if not pid % 1000 else 0)
    assert all(kids.led(pid) for pid in range(3 * REMEMBERED, 4 * REMEMBERED))
    assert REMEMBERED <= max(size) <= 2 * REMEMBERED + 1
    assert not kids.sessions(3)
    kids.add(kid)
    assert kids.sessions(2) >= {kid.pid}
