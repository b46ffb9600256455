"""Tell me when it is done: real children, real servers, real threads."""

import asyncio
import contextlib
import http.server
import json
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

import nbprocs
from nbprocs import Notice, Notify, ProcessConfig, ProcessFailed, ProcessManager, RestartPolicy, RetryPolicy
from nbprocs.notify import as_notify, channel, listen, publish, sending
from nbprocs.notify.webhook import Undelivered, payload, post
from tests.children import SLEEPER, python_child

FAILING = python_child("print('--password=hunter2 line'); ready(); print('last words'); sys.exit(3)")
DONE = Notice(title="job <b> completed", level="success", process_id="1", body="a & b", at=5.0)


@pytest.fixture
def notebook():
    """What the front end is told."""
    channel._unheard.clear()
    heard = []
    end = listen(heard.append)
    yield heard
    end()


@pytest.fixture
def pages():
    """Servers of this machine; each answers by a function of its handler."""
    made = []

    def serve(answer):
        got = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                with contextlib.suppress(OSError):
                    answer(self, len(got))

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = False  # server_close() waits for them
        server.got = got
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        made.append((server, thread))
        return server

    yield serve
    for thread in list(sending._under_way):
        thread.join(20)
    for server, thread in made:
        server.shutdown()
        thread.join()
        server.server_close()


def fine(handler, _):
    handler.send_response(204)
    handler.end_headers()


def delivered():
    for thread in list(sending._under_way):
        thread.join(20)


# -- what is told, once


async def test_a_process_is_told_of_once_with_code_time_and_last_lines(notebook):
    async with ProcessManager() as pm:
        with pytest.raises(ProcessFailed):
            await pm.run(*FAILING, name="job", notify=True)
    (notice,) = notebook
    assert notice.title.startswith("job failed (exit status 3) after ")
    assert (notice.level, notice.name, notice.kind, notice.exit_code, notice.signal) == ("error", "job", "process", 3, None)
    assert notice.body.splitlines()[-1] == "last words"
    assert "hunter2" not in notice.body
    assert 0 < notice.seconds < 60
    assert abs(notice.at - time.time()) < 60
    assert json.loads(json.dumps(notice.plain()))["process_id"] == notice.process_id


@pytest.mark.parametrize(
    ("command", "options", "level", "word"),
    [
        (("true",), {}, "success", "completed after"),
        (("sh", "-c", "kill -SEGV $$"), {}, "error", "crashed (SIGSEGV)"),
        (SLEEPER, {"timeout": 0.2}, "error", "ran out of time"),
        (("sh", "-c", "exit 7"), {"success_codes": (7,)}, "success", "completed after"),
    ],
    ids=["completed", "crashed", "timeout", "success_codes"],
)
async def test_each_end_has_its_words(notebook, command, options, level, word):
    async with ProcessManager() as pm:
        await pm.run(*command, name="job", notify=True, check=False, **options)
    (notice,) = notebook
    assert notice.level == level
    assert word in notice.title


async def test_a_stop_is_no_failure_and_failures_only_says_nothing_of_it(notebook):
    async with ProcessManager() as pm:
        for notify in (True, Notify(failures_only=True)):
            await (await pm.spawn(*SLEEPER, notify=notify)).stop()
        await pm.run("true", notify=Notify(failures_only=True))
        await pm.run("false", name="bad", notify=Notify(failures_only=True), check=False)
    assert [(notice.level, "was stopped" in notice.title) for notice in notebook] == [("warning", True), ("error", False)]


async def test_of_tries_only_the_last_is_told(notebook, tmp_path):
    line = f"echo x >> {tmp_path}/n; test $(wc -l < {tmp_path}/n) -ge 3"
    async with ProcessManager() as pm:
        await pm.run(ProcessConfig(command=line, shell=True, name="third", notify=True), retry=RetryPolicy(max_retries=5, initial_delay=0))
        assert [notice.title.split(" after")[0] for notice in notebook] == ["third completed"]
        await pm.run("false", name="never", notify=True, check=False, retry=RetryPolicy(max_retries=2, initial_delay=0))
    assert [notice.title.split(" after")[0] for notice in notebook] == ["third completed", "never failed (exit status 1)"]


async def test_a_supervised_process_is_told_of_at_each_end(notebook):
    async with ProcessManager() as pm:
        events = pm.events()
        policy = RestartPolicy(max_restarts=2, initial_delay=0)
        await pm.spawn("false", name="web", restart=policy, notify=True)
        async with contextlib.aclosing(events):
            async for event in events:
                if event.kind is nbprocs.EventKind.FATAL:
                    break
    assert [notice.name for notice in notebook] == ["web"] * 3


async def test_no_lines_and_no_notebook(notebook):
    heard = []
    async with ProcessManager() as pm:
        await pm.run("echo", "hello", notify=Notify(to=heard.append, notebook=False, lines=0))
        await pm.run("sh", "-c", "seq 20", notify=[heard.append])
    assert [notice.body for notice in heard] == ["", "\n".join(map(str, range(11, 21)))]
    assert len(notebook) == 1


async def test_a_task_is_told_of_once_whatever_its_attempts(notebook, tmp_path):
    line = f"echo x >> {tmp_path}/n; test $(wc -l < {tmp_path}/n) -ge 3"
    config = nbprocs.SchedulerConfig(retry_delay=0.01)
    async with nbprocs.TaskScheduler(config) as sch:
        third = sch.schedule(line, shell=True, name="third", max_retries=3, notify=True)
        await third
        never = sch.schedule("false", name="never", max_retries=1, notify=Notify(failures_only=True))
        await asyncio.wait({asyncio.ensure_future(never.wait())})
        held = sch.schedule("true", name="held", hold=True, notify=True)
        held.cancel()
        await asyncio.wait({asyncio.ensure_future(held.wait())})
    assert [(notice.kind, notice.title.split(" after")[0], notice.level) for notice in notebook] == [
        ("task", "third completed", "success"),
        ("task", "never failed (exit status 1)", "error"),
        ("task", "held was cancelled", "warning"),
    ]
    assert notebook[0].process_id == third.id


async def test_a_series_is_told_of_at_each_run(notebook):
    async with nbprocs.TaskScheduler() as sch:
        await sch.schedule("true", name="tick", every=0.05, repeat=3, notify=True)
    assert [notice.name for notice in notebook] == ["tick"] * 3


async def test_a_function_as_a_task_and_a_map(notebook):
    def odd(n):
        if n == 7:
            raise ValueError("seven")
        return n

    async with nbprocs.ProcessPool(nbprocs.PoolConfig(max_processes=1)) as pool:
        async with nbprocs.TaskScheduler(pool=pool) as sch:
            await sch.schedule(odd, 3, name="odd", notify=True)
        assert [n async for n in pool.map(odd, range(5), notify=True)] == list(range(5))
        with pytest.raises(ValueError, match="seven"):
            async for _ in pool.map(odd, range(9), notify=True, chunksize=1):
                pass
        async with contextlib.aclosing(pool.map(odd, range(5), notify=[notebook.append])) as results:
            async for _ in results:
                break
        with pytest.raises(TypeError, match="notify"):
            pool.map(odd, range(5), notify=3)
    titles = [notice.title for notice in notebook]
    assert titles[0].startswith("odd completed")
    assert "odd completed after" in titles[1]
    assert titles[1].endswith(": 5 results")
    assert ("failed after" in titles[2], "ValueError: seven" in notebook[2].body, notebook[2].level) == (True, True, "error")
    assert "was left early" in titles[3]


async def test_a_durable_task_still_tells_in_the_next_scheduler(notebook, tmp_path, pages):
    page = pages(fine)
    async with nbprocs.TaskScheduler(store=tmp_path / "q.db") as sch:
        sch.schedule("echo", "hello", name="later", hold=True, notify=page.url)
        with pytest.raises(TypeError, match="can't be stored"):
            sch.schedule("true", notify=print)
    async with nbprocs.TaskScheduler(store=tmp_path / "q.db") as sch:
        (handle,) = sch.handles()
        handle.release()
        await handle
    delivered()
    assert [notice.title.split(" after")[0] for notice in notebook] == ["later completed"]
    assert page.got[0][1]["body"] == "hello"


# -- whom


async def test_callables_sync_and_async_and_what_they_raise(caplog):
    heard = []

    async def later(notice):
        heard.append(notice.level)

    def broken(notice):
        raise SystemExit(1)

    async def broken_too(notice):
        raise KeyboardInterrupt

    async with ProcessManager() as pm:
        process = await pm.spawn("true", name="job", notify=[broken, broken_too, later])
        await process.wait()
        assert (await pm.run("true")).ok
    assert heard == ["success"]
    assert caplog.text.count("notify= of job failed") == 2


async def test_a_url_gets_json(pages):
    page = pages(fine)
    async with ProcessManager() as pm:
        await pm.run("echo", "hello", name="job", notify=f"{page.url}/hook/secret")
    delivered()
    ((path, got),) = page.got
    assert path == "/hook/secret"
    assert (got["level"], got["body"], got["exit_code"], got["name"]) == ("success", "hello", 0, "job")


def test_services_have_their_own_form():
    url, told = payload("https://hooks.slack.com/services/T/B/x", DONE)
    assert url == "https://hooks.slack.com/services/T/B/x"
    assert told == {"text": "*job &lt;b&gt; completed*\n```a &amp; b```"}
    assert payload("https://ntfy.sh/my-topic", DONE) == payload("ntfy://ntfy.sh/my-topic", DONE)
    url, told = payload("ntfy://push.example.org/jobs?auth=x", DONE)
    assert url == "https://push.example.org/?auth=x"
    assert told["topic"] == "jobs"
    assert (told["title"], told["message"], told["priority"]) == (DONE.title, "a & b", 3)
    assert payload("https://example.org/x", DONE) == ("https://example.org/x", DONE.plain())


# -- the webhook's dangers


def test_a_redirect_is_not_followed(pages):
    inside = pages(fine)

    def away(handler, _):
        handler.send_response(302)
        handler.send_header("Location", f"{inside.url}/metadata")
        handler.end_headers()

    page = pages(away)
    with pytest.raises(Undelivered, match="redirect, which is not followed") as caught:
        post(page.url, DONE.plain(), timeout=10)
    assert not caught.value.again
    assert inside.got == []


@pytest.mark.parametrize("start", [b"HTTP/", b"HTTP/1.1 200 OK\r\nX-Slow: "], ids=["status", "headers"])
def test_a_dripping_answer_ends_at_the_deadline(pages, start):
    """Each byte comes well within the timeout; all of it would take minutes. Its status, once it has come, counts."""

    def drip(handler, _):
        handler.wfile.write(start)
        for _ in range(600):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            threading.Event().wait(0.05)

    page = pages(drip)
    began = time.monotonic()
    if start == b"HTTP/":
        with pytest.raises(Undelivered, match=r"no whole answer within 0.3 s"):
            post(page.url, DONE.plain(), timeout=0.3)
    else:
        assert post(page.url, DONE.plain(), timeout=0.3) == 200
    assert time.monotonic() - began < 3


def test_a_server_that_never_answers_and_one_that_is_not_there(pages):
    hang = threading.Event()
    page = pages(lambda *_: hang.wait(20))
    with pytest.raises(Undelivered, match=r"within 0\.2 s"):
        post(page.url, DONE.plain(), timeout=0.2)
    hang.set()
    with pytest.raises(Undelivered, match="could not be told") as caught:
        post("http://127.0.0.1:1/hook/secret", {}, timeout=5)
    assert "secret" not in str(caught.value)
    assert caught.value.again


def test_what_may_help_is_tried_again_and_what_can_not_is_not(pages):
    def second(handler, number):
        handler.send_response(503 if number == 1 else 200)
        handler.end_headers()

    def gone(handler, _):
        handler.send_response(404)
        handler.end_headers()

    page, other = pages(second), pages(gone)
    assert sending.deliver(page.url, DONE, pauses=(0.0, 0.0)) == 200
    assert len(page.got) == 2
    with pytest.raises(Undelivered, match="404"):
        sending.deliver(other.url, DONE, pauses=(0.0, 0.0))
    assert len(other.got) == 1


async def test_a_server_that_hangs_takes_no_more_than_its_threads(pages, caplog, monkeypatch):
    hang = threading.Event()
    page = pages(lambda handler, _: (hang.wait(20), fine(handler, 0)))
    monkeypatch.setattr(sending, "MOST", 2)
    async with ProcessManager() as pm:
        with caplog.at_level(logging.ERROR):
            for _ in range(4):
                await pm.run("true", notify=page.url)
        assert len(sending._under_way) == 2
        assert caplog.text.count("under way already") == 2
        hang.set()
        delivered()
    assert "127.0.0.1" in caplog.text


def test_the_end_of_the_interpreter_waits_for_what_is_under_way(pages):
    page = pages(lambda handler, _: (threading.Event().wait(0.3), fine(handler, 0)))
    program = f"import asyncio, nbprocs\nasync def main():\n  async with nbprocs.ProcessManager() as pm: await pm.run('true', notify={page.url!r})\nasyncio.run(main())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert len(page.got) == 1, done.stderr


# -- the value


@pytest.mark.parametrize("bad", [5, 1.5, b"x", object(), [3], {"to": 1}])
def test_what_tells_nobody_is_refused(bad):
    with pytest.raises(TypeError):
        ProcessConfig(command="true", notify=bad)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "ftp://host/x",
        "file:///etc/passwd",
        "http://",
        "https:///x",
        "http://a:b:c/",
        "http://host/a b",
        "http://h\n.org/",
        "http://\ud800",
    ],
)
def test_what_is_no_url_is_refused_and_not_shown(bad):
    with pytest.raises(ValueError, match="a URL that begins with"):
        ProcessConfig(command="true", notify=bad)


def test_a_webhooks_path_is_a_secret():
    config = ProcessConfig(command="true", notify="https://hooks.slack.com/services/T0/B0/abc123")
    assert "abc123" not in repr(config)
    assert "hooks.slack.com/…" in repr(config)


def test_it_goes_through_json_and_pickle_but_for_callables():
    import pickle

    notify = Notify(to=["https://example.org/x"], failures_only=True, notebook=False)
    assert as_notify("notify", json.loads(json.dumps(notify.stored()))) == notify
    config = ProcessConfig(command="true", notify=notify)
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(TypeError, match="can't be stored"):
        Notify(to=len).stored()
    assert ProcessConfig(command="true", notify=True).replace(notify=None).notify is None


# -- the channel


def test_who_comes_late_hears_what_nobody_heard():
    channel._unheard.clear()
    old, new = Notice(title="old", level="success", process_id="1", at=1.0), Notice(title="new", level="success", process_id="2")
    kept = Notice(title="of a cell's first minute", level="success", process_id="3", at=new.at - 10 * 3600)
    for notice in (old, kept, new):
        publish(notice)
    heard, again = [], []
    end = listen(heard.append)
    end_again = listen(again.append)
    assert (heard, again) == ([kept, new], [])
    end()
    end()
    end_again()
    assert new in nbprocs.notify.recent()


def test_a_listener_that_fails_harms_nobody(notebook):
    def broken(_):
        raise SystemExit

    end = listen(broken)
    publish(DONE)
    end()
    assert notebook == [DONE]
