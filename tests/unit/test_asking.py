"""Asking the shims, played by sockets of the test's own: whoever answers badly, late, or not at all holds up nobody."""

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from nbprocs.engine.asking import ask, ask_all


class Shim:
    """A socket that answers a question as told."""

    def __init__(self, path, answer):
        self.asked = []
        self.path = path
        self.answer = answer
        self.socket = socket.socket(socket.AF_UNIX)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        self.socket.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        self.socket.listen(5)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                line = connection.makefile("rb").readline()
                if not line:
                    return
                self.asked.append(json.loads(line))
                if self.answer is None:
                    connection.recv(1)  # until the asker gives up
                else:
                    connection.sendall(self.answer)

    def close(self):
        with socket.socket(socket.AF_UNIX) as last:
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            last.connect(f"/proc/self/fd/{folder}/{self.path.name}")
            os.close(folder)
        self.thread.join()
        self.socket.close()


@pytest.fixture
def shims(tmp_path):
    made = []

    def make(name, answer, folder=tmp_path):
        made.append(Shim(folder / f"{name}.sock", answer))
        return made[-1]

    yield make
    for shim in made:
        shim.close()


def test_all_are_asked_and_answer(shims, tmp_path):
    first, second = shims("a", b'{"x": 1}\n'), shims("b", b'{"x": 2}\n')
    assert [reply.answer for reply in ask_all(tmp_path, {"op": "status"})] == [{"x": 1}, {"x": 2}]
    assert first.asked == second.asked == [{"v": 1, "op": "status"}]


def test_a_silent_one_costs_the_deadline_once_and_the_others_nothing(shims, tmp_path):
    shims("a", None)
    shims("b", None)
    shims("c", b'{"x": 3}\n')
    began = time.monotonic()
    first, second, third = ask_all(tmp_path, {"op": "status"}, timeout=0.3)
    assert time.monotonic() - began < 2
    assert "did not answer within 0.3 s" in first.error
    assert "did not answer" in second.error
    assert third.answer == {"x": 3}


@pytest.mark.parametrize("nonsense", [b"no json\n", b"[1]\n", b"", b'{"cut off'])
def test_nonsense_is_no_answer(shims, tmp_path, nonsense):
    shim = shims("a", nonsense)
    reply = ask(shim.path, {"op": "status"}, timeout=5)
    assert reply.answer is None
    assert "answered" in reply.error


def test_a_long_answer_arrives_whole(shims, tmp_path):
    shim = shims("a", json.dumps({"x": "y" * 3_000_000}).encode() + b"\n")
    assert len(ask(shim.path, {"op": "status"}, timeout=5).answer["x"]) == 3_000_000


def test_a_socket_that_nobody_serves_is_gone(shims, tmp_path):
    shim = shims("a", b"{}\n")
    orphan = tmp_path / "b.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(orphan))
    assert ask(orphan, {"op": "status"}, timeout=1).gone
    assert ask(tmp_path / "none.sock", {"op": "status"}, timeout=1).gone
    assert not ask(shim.path, {"op": "status"}, timeout=1).gone


def test_a_long_path_is_reached(shims, tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    shim = shims("a", b'{"x": 1}\n', deep)
    assert len(os.fsencode(shim.path)) > 108
    assert ask(shim.path, {"op": "status"}, timeout=1).answer == {"x": 1}


def test_a_folder_that_is_not_there_has_no_shims(tmp_path):
    assert ask_all(tmp_path / "none", {"op": "status"}) == ()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to serve as another user")
def test_another_users_socket_is_not_asked():
    serve = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(flush=True); s.accept()"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        path = Path(folder, "theirs.sock")
        command = ["/usr/bin/env", "python3", "-c", serve, str(path)]
        with subprocess.Popen(command, user=65534, stdout=subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}) as theirs:
            assert theirs.stdout.readline() == b"\n"
            reply = ask(path, {"op": "status"}, timeout=5)
    assert reply.answer is None
    assert "another user" in reply.error
