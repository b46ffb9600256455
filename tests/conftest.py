"""What every test gets: leak checks, a watch for blocking calls, and loops in other modes for those that ask.

- ``leaks`` compares children, zombies, strays, threads, descriptors and comms before and after; ``leaked_tasks`` the loop's tasks and the futures
  that somebody still holds.
- ``blocking`` makes a blocking call of nbprocs on a running loop an error.
- ``@pytest.mark.loop_modes`` runs an async test three times: plainly, in debug mode, and with eager tasks (Python 3.12+).
"""

import asyncio
import gc
import inspect
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from nbprocs.testing import Snapshot, kept_futures, leaked, warm
from nbprocs.testing import leaked_tasks as left_running
from tests import blocking as blocking_calls

SLOW_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]  # real children take their time
settings.register_profile("nbprocs", deadline=None, suppress_health_check=SLOW_CHECKS, print_blob=True)
settings.register_profile("ci", settings.get_profile("nbprocs"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "nbprocs")

MOST_KEPT = 200  # futures that are done, yet held, at the end of a test: results and handles that the test itself holds
LOOP_MODES = ("plain", "debug", *(("eager",) if sys.version_info >= (3, 12) else ()))


def pytest_configure(config: pytest.Config) -> None:
    # Records of detached processes are the user's: the tests have a folder of their own for them.
    folder = tempfile.TemporaryDirectory(prefix="nbprocs-tests-")
    os.environ["NBPROCS_STATE_DIR"] = folder.name
    config.add_cleanup(folder.cleanup)
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGQUIT", signal.SIG_DFL), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # so nohup, and a shell its background jobs, start us; children of ours would inherit it
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("loop_modes"):
        metafunc.parametrize("loop_mode", LOOP_MODES, indirect=True)


@pytest.fixture
def loop_mode(request: pytest.FixtureRequest) -> str:
    """The mode of the loop that the test runs on."""
    return getattr(request, "param", "plain")


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    warm()


@pytest.fixture(scope="module", autouse=True)
def _spared_by_gc(_warm: None) -> None:
    """Keeps what is there before a file's first test (modules, pytest's own) out of every later collection: half of the time of many tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def leaks(_warm: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails when the test leaves a child, thread, descriptor or comm behind."""
    before = Snapshot.take()
    yield
    request.node.funcargs.clear()  # pytest holds what the fixtures gave until later: a manager there keeps the files of its history open
    if found := leaked(before):
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture
async def _own_loop(loop_mode: str) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    if loop_mode == "debug":
        loop.set_debug(True)
    elif loop_mode == "eager":
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    before = asyncio.all_tasks()
    with kept_futures() as kept:
        yield
        if found := await left_running(before):
            pytest.fail("left running:\n  " + "\n  ".join(found), pytrace=False)
        if (number := kept(more_than=MOST_KEPT)) > MOST_KEPT:
            pytest.fail(f"{number} futures that are done are still held: by a list of waiters?", pytrace=False)


@pytest.fixture(autouse=True)
def leaked_tasks(leaks: None, loop_mode: str, request: pytest.FixtureRequest) -> None:
    """Fails when an async test leaves a task running. Set up after ``leaks``, so that the loop's own descriptors are closed by then."""
    function = getattr(request, "function", None)
    function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    if inspect.iscoroutinefunction(function):
        request.getfixturevalue("_own_loop")


@pytest.fixture(autouse=True)
def blocking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a blocking call of nbprocs on a running loop an error."""
    blocking_calls.watch(monkeypatch)
