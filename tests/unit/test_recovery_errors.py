"""The error tree: fields, pickling, text that says what to do; and the classification of real ends."""

import inspect
import os
import pickle
import signal

import pytest

from nbprocs import ProcessManager, errors
from nbprocs.engine import container, oom
from nbprocs.errors import (
    CommunicationError,
    ExecutionTimeout,
    NotReady,
    OutOfMemory,
    PermissionDenied,
    ProcessCrashed,
    ProcessError,
    ProcessFailed,
    ResourceExhausted,
    RestartsExhausted,
    StartupFailed,
    error_from_os,
    error_from_result,
)
from nbprocs.model import EndReason, ProcessResult, ProcessStatus
from nbprocs.processes.manager import manager_core
from tests.children import SLEEPER, python_child

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ProcessError)]
FIELDS = {
    "process_id": "id",
    "name": "web",
    "command": "serve --token=•••",
    "exit_code": 3,
    "signal": 9,
    "last_output": "one\ntwo",
    "attempts": 4,
    "hint": "do this",
}


@pytest.fixture
async def pm():
    async with ProcessManager(grace=0.2) as manager:
        yield manager


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_class_keeps_its_fields_and_pickles(kind):
    error = kind("it happened", **FIELDS)
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    for name, value in FIELDS.items():
        assert getattr(copy, name) == value
    assert str(copy) == str(error)
    assert copy.__notes__ == ["a note"]
    for part in ("it happened", "serve", "attempts: 4", "    two", "→ do this"):
        assert part in str(error)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_class_is_drawn_and_described(kind):
    assert kind.__name__ in errors.__doc__
    assert kind.__name__ in errors.__all__
    assert kind.__doc__


def test_the_history_of_a_supervisor_survives():
    error = RestartsExhausted("given up")
    error.history = tuple(f"life {number}" for number in range(30))
    copy = pickle.loads(pickle.dumps(error))
    assert copy.history == error.history
    assert "life 29" in str(copy)
    assert "life 5\n" not in str(copy)


def ended(**fields):
    return ProcessResult(
        **{"process_id": "1", "name": "job", "command": "job", "exit_code": None, "status": ProcessStatus.FAILED, **fields}
    )


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (ended(exit_code=1), ProcessFailed, "exit status 1"),
        (ended(exit_code=137), ProcessFailed, "SIGKILL ended its command (128 + 9)"),
        (ended(signal=11), ProcessCrashed, "SIGSEGV"),
        (ended(signal=9, reason=EndReason.OUT_OF_MEMORY), OutOfMemory, "out of memory"),
        (ended(signal=9, reason=EndReason.TIMEOUT, status=ProcessStatus.TERMINATED), ExecutionTimeout, "ran out of time"),
        (ended(signal=15, reason=EndReason.STOPPED, status=ProcessStatus.TERMINATED), ProcessFailed, "was stopped"),
    ],
    ids=["exit", "shell", "signal", "memory", "timeout", "stopped"],
)
def test_classification(result, kind, words):
    error = error_from_result(result, attempts=2)
    assert type(error) is kind
    assert words in str(error)
    assert error.attempts == 2
    assert getattr(error, "stopped", False) is (result.reason == "stopped")


def test_no_error():
    assert error_from_result(ended(exit_code=0, status=ProcessStatus.COMPLETED)) is None


def test_only_the_end_of_a_large_output_is_read():
    class Log:
        def __bytes__(self):
            raise AssertionError("all of it was read")

        def tail(self, size):
            return b"the end"

    error = error_from_result(ended(exit_code=1, stdout_source=Log(), stderr_source=b""))
    assert error.last_output == "the end"


class TestRealEnds:
    async def test_a_crash(self, pm):
        with pytest.raises(ProcessCrashed) as caught:
            await pm.run(
                *python_child("print('last words', file=sys.stderr); sys.stderr.flush(); os.kill(os.getpid(), signal.SIGSEGV)"),
                name="crash",
            )
        error = caught.value
        assert (error.name, error.signal, error.exit_code) == ("crash", signal.SIGSEGV, None)
        assert error.last_output == "last words"
        assert error.process_id == pm.get("crash").id
        assert "SIGSEGV" in str(error)

    async def test_an_exit(self, pm):
        with pytest.raises(ProcessFailed) as caught:
            await pm.run("sh", "-c", "exit 7")
        assert caught.value.exit_code == 7
        assert not isinstance(caught.value, ProcessCrashed)

    async def test_out_of_time(self, pm):
        with pytest.raises(ExecutionTimeout) as caught:
            await pm.run(*SLEEPER, timeout=0.2)
        assert isinstance(caught.value, TimeoutError)
        assert "timeout=" in caught.value.hint

    async def test_a_start_that_fails(self, pm, tmp_path):
        with pytest.raises(StartupFailed) as caught:
            await pm.run("no-such-program-here")
        assert "no such program" in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(PermissionDenied):
            await pm.run(tmp_path)

    async def test_never_ready(self, pm):
        with pytest.raises(NotReady) as caught:
            await pm.spawn(*python_child("ready(); sys.exit(0)"), ready=lambda: False)
        assert caught.value.last_output == "ready"

    async def test_communication(self, pm):
        process = await pm.spawn("true")
        with pytest.raises(CommunicationError, match="stdin=True"):
            await process.send("x")

    async def test_out_of_memory_by_the_counter_of_the_cgroup(self, pm, tmp_path, monkeypatch):
        """The kernel's counter moves, then the process is gone by SIGKILL: that is the evidence. Without it SIGKILL is a crash."""
        counter = tmp_path / "memory.events"
        counter.write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 4\n")
        monkeypatch.setattr(container, "kill_counter", lambda: counter)
        manager_core(pm).oom = oom.OomWatch()
        first = await pm.spawn(*SLEEPER, name="hog")
        counter.write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 5\n")
        os.kill(first.pid, signal.SIGKILL)
        assert (await first.wait()).reason == "out of memory"
        error = error_from_result(first.result)
        assert type(error) is OutOfMemory
        assert "run fewer at a time" in error.hint
        second = await pm.spawn(*SLEEPER, name="hog")  # the same kill does not count twice
        os.kill(second.pid, signal.SIGKILL)
        await second.wait()
        assert type(error_from_result(second.result)) is ProcessCrashed

    async def test_a_kill_for_memory_is_credited_to_whom_it_hit(self, pm, tmp_path, monkeypatch):
        """Not to one that started later, nor to one that somebody else kills after a tree has lost a member."""
        counter = tmp_path / "memory.events"

        def count(kills):
            counter.write_text(f"oom {kills}\noom_kill {kills}\n")

        async def killed(process):
            os.kill(process.pid, signal.SIGKILL)
            return (await process.wait()).reason

        count(0)
        monkeypatch.setattr(container, "kill_counter", lambda: counter)
        monkeypatch.setattr(oom, "FRESH", 0.0)
        manager_core(pm).oom = oom.OomWatch()
        old = await pm.spawn(*SLEEPER, name="old")
        count(1)  # somebody who is none of ours
        later = await pm.spawn(*SLEEPER, name="later")
        assert await killed(later) is None
        driver = await pm.spawn("sh", "-c", "read line; exit 1", stdin=True, name="driver")
        count(2)  # a helper of the driver's, which fails for it
        await driver.send_line("")
        assert (await driver.wait()).reason is None
        assert await killed(old) is EndReason.OUT_OF_MEMORY  # the first kill: it lived then, and nobody else has taken that one
        pair = [await pm.spawn(*SLEEPER), await pm.spawn(*SLEEPER)]
        count(4)
        assert [await killed(process) for process in pair] == [EndReason.OUT_OF_MEMORY] * 2
        bystander = await pm.spawn(*SLEEPER)
        fine = await pm.spawn("sh", "-c", "read line", stdin=True)
        count(5)
        await fine.send_line("")
        assert (await fine.wait()).ok  # takes nothing
        assert await killed(bystander) is EndReason.OUT_OF_MEMORY
        assert await killed(await pm.spawn(*SLEEPER)) is None

    async def test_commands_are_masked(self, pm):
        with pytest.raises(ProcessFailed) as caught:
            await pm.run("sh", "-c", "exit 1", "--password", "hunter2")
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(pickle.dumps(caught.value))


@pytest.mark.parametrize("number", [*errors._EXHAUSTED, *errors._DENIED, *errors._FAILED, 99999])
def test_what_the_system_refuses_is_ours(number):
    error = error_from_os(OSError(number, os.strerror(number)), command="serve", name="web")
    assert isinstance(error, (StartupFailed, ResourceExhausted))
    assert error.name == "web"
    assert error.hint or number == 99999
