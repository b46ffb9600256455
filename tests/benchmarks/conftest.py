"""Benchmarks run only when they are asked for: ``python -m pytest tests/benchmarks`` (or one file of it).

Their files are called ``bench_*.py``, so that plain ``pytest`` passes them by. At the end of the session one table shows all rows; ``--bench-out``
names the folder for the table as CSV and as a plot. ``--quick`` gives a first answer in two minutes: what has not begun by then is left out.
"""

import tempfile
import time
from pathlib import Path

import pytest

from tests.benchmarks import harness
from tests.benchmarks.harness import Bench, machine, table, write

HERE = Path(__file__).parent
SESSION = pytest.StashKey[Bench]()
BEGAN = pytest.StashKey[float]()
FIRST = ("manager", "pool", "scheduler", "monitor", "recovery", "runs", "detach", "cluster", "widgets")  # in quick mode
QUICK_ENDS = 110.0  # seconds after the start: no row begins later


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smaller sizes, each row once, misses are only shown; ends after two minutes")
    parser.addoption("--bench-out", default=None, help="folder for benchmarks.csv and benchmarks.png (default: a temporary one)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = Bench()
    config.stash[BEGAN] = time.monotonic()
    harness.QUICK = config.getoption("quick", default=False)


def _asked(config: pytest.Config) -> bool:
    """Whether the command line names this folder (not merely one around it)."""
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        return False
    named = (Path(config.invocation_params.dir, arg.split("::")[0]).resolve() for arg in config.args)
    return any(path == HERE or HERE in path.parents for path in named)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not file_path.match("bench_*.py") or parent.session.isinitpath(file_path) or not _asked(parent.config):
        return None  # a file that was named itself is collected by pytest's own hook
    return pytest.Module.from_parent(parent, path=file_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if harness.QUICK:  # a stable sort: the parts of one file stay together
        items.sort(key=lambda item: FIRST.index(name) if (name := item.path.stem.removeprefix("bench_")) in FIRST else len(FIRST))
    for item in items:
        if HERE in item.path.parents and not any(item.iter_markers("timeout")):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The session's benchmark: ``bench.row(name, ours=…, peers=…, at_least=…)``."""
    if harness.QUICK and time.monotonic() - request.config.stash[BEGAN] > QUICK_ENDS:
        pytest.skip("two minutes are over")
    return request.config.stash[SESSION]


@pytest.fixture
def leaks() -> None:
    """Peers keep workers, threads and descriptors of their own: no leak check of the test suite here."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[SESSION].lines
    if not lines:
        return
    terminalreporter.section(f"benchmarks: {machine()}")
    for text in table(lines):
        terminalreporter.write_line(text)
    folder = Path(config.getoption("bench_out", default=None) or tempfile.mkdtemp(prefix="nbprocs-bench-"))
    for path in write(lines, folder):
        terminalreporter.write_line(f"written: {path}")
