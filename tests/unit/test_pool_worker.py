"""The child side alone, driven over its sockets: claims, withdrawals, signs of life, and the end of its parent."""

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbprocs.engine.channel import SharedPage
from nbprocs.pool import python
from nbprocs.pool import worker_main as worker
from nbprocs.pool.wire import Decoder, frame
from tests.waiting import until_blocking


class Child:
    """A worker process with blocking sockets."""

    def __init__(self):
        self.data, data = socket.socketpair()
        self.control, control = socket.socketpair()
        self.page = SharedPage()
        ends = (data.fileno(), control.fileno(), self.page.child_fd)
        command = [sys.executable, "-P", "-c", python._BOOT, str(Path(worker.__file__)), *map(str, ends)]
        self.process = subprocess.Popen(command, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        data.close()
        control.close()
        self.page.release_child()
        for end in (self.data, self.control):
            end.settimeout(20)
        self.decoders = {self.data: Decoder(), self.control: Decoder()}
        self.waiting = {self.data: [], self.control: []}

    def send(self, *messages):
        self.data.sendall(b"".join(map(bytes, frame(list(messages)))))

    def ask(self, *message):
        self.control.sendall(b"".join(map(bytes, frame(message))))
        return self.receive(self.control)

    def receive(self, end=None):
        end = end or self.data
        while not self.waiting[end]:
            count = end.recv_into(self.decoders[end].get_buffer())
            assert count, "the worker closed its socket"
            self.waiting[end] += self.decoders[end].received(count)
        return self.waiting[end].pop(0)

    def setup(self, **options):
        self.send((worker.SETUP, {"path": sys.path, "preload": [], "initializer": None, **options}))
        return self.receive()

    def close(self):
        self.data.close()
        self.control.close()
        self.page.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def child():
    made = Child()
    yield made
    made.close()


def test_ready_run_quit(child):
    assert child.setup() == (worker.READY, 0, 0, child.process.pid)
    child.send((worker.DEFINE, 1, pickle.dumps(abs)), (worker.TASK, 1, 1, (-5,)), (worker.TASK, 2, 1, (-6,)))
    first, second = child.receive(), child.receive()
    assert (first[0], first[1], first[3]) == (worker.VALUE, 1, 5)
    assert (second[0], second[1], second[3]) == (worker.VALUE, 2, 6)
    assert child.page.words[worker.CLAIMED] == 2
    child.send((worker.QUIT,))
    assert child.process.wait(20) == 0


def test_what_has_not_started_can_be_withdrawn_while_a_task_computes(child):
    child.setup()
    child.send((worker.DEFINE, 1, pickle.dumps(time.sleep)), *((worker.TASK, n, 1, (0.3,)) for n in range(1, 5)))
    until_blocking(lambda: child.page.words[worker.CLAIMED] == 1)
    assert child.ask(worker.WITHDRAW, [1, 3, 4]) == (worker.WITHDRAW, [3, 4])
    assert [child.receive()[1] for _ in range(2)] == [1, 2]
    child.send((worker.TASK, 5, 1, (0,)))
    assert child.receive()[1] == 5  # 3 and 4 never ran


def test_a_ping_is_answered_while_a_task_computes(child):
    child.setup()
    child.send((worker.DEFINE, 1, pickle.dumps(time.sleep)), (worker.TASK, 1, 1, (600,)))
    until_blocking(lambda: child.page.words[worker.CLAIMED] == 1)
    assert child.ask(worker.PING, 0) == (worker.PING, 0)
    assert child.page.words[worker.STARTED] * 1e-9 == pytest.approx(time.monotonic(), abs=20)


def test_the_page_outlives_the_process(child):
    child.setup()
    child.send((worker.DEFINE, 1, pickle.dumps(os._exit)), (worker.TASK, 1, 1, (7,)), (worker.TASK, 2, 1, (7,)))
    assert child.process.wait(20) == 7
    assert child.page.words[worker.CLAIMED] == 1


@pytest.mark.parametrize("busy", [True, False])
def test_it_leaves_when_its_parent_is_gone(child, busy):
    child.setup()
    if busy:
        child.send((worker.DEFINE, 1, pickle.dumps(time.sleep)), (worker.TASK, 1, 1, (600,)))
        until_blocking(lambda: child.page.words[worker.CLAIMED] == 1)
    child.data.close()
    child.control.close()
    assert child.process.wait(20) is not None


def test_a_function_that_cant_be_loaded_fails_its_call_only(child):
    child.setup()
    child.send((worker.DEFINE, 1, b"no pickle"), (worker.TASK, 1, 1, ()), (worker.DEFINE, 2, pickle.dumps(abs)), (worker.TASK, 2, 2, (-1,)))
    assert child.receive()[:2] == (worker.ERROR, 1)
    assert child.receive()[:2] == (worker.VALUE, 2)


def test_chunks_stop_at_an_error_and_keep_what_came_before(child):
    child.setup()
    child.send((worker.DEFINE, 1, pickle.dumps(int)), (worker.CHUNK, 1, 1, pickle.dumps(["1", "2", "x"]), False))
    kind, number, _, (values, told) = child.receive()
    assert (kind, number, pickle.loads(values), told[1]) == (worker.STOPPED, 1, [1, 2], "builtins.ValueError")


def test_a_failing_set_up_is_told(child):
    kind, _, _, told = child.setup(preload=["no_such_module_here"])
    assert kind == worker.BROKEN
    assert "no_such_module_here" in told[2]


def test_it_imports_little(child):
    child.setup()
    child.send(
        (worker.TASK, 1, 0, pickle.dumps((exec, ("import sys; sys.exit('cloudpickle' in sys.modules or 'nbprocs' in sys.modules)",), {})))
    )
    message = child.receive()
    assert message[3][2] == "False"
