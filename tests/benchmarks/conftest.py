"""Benchmarks run only when they are asked for: ``python -m pytest tests/benchmarks`` (or one file of it).

Their files are called ``bench_*.py``, so that plain ``pytest`` passes them by. At the end of the session one table shows all rows; ``--bench-out``
names the folder for the table as CSV and as a plot.
"""

import tempfile
from pathlib import Path

import pytest

from tests.benchmarks.harness import Bench, machine, table, write

HERE = Path(__file__).parent
SESSION = pytest.StashKey[Bench]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-out", default=None, help="folder for benchmarks.csv and benchmarks.png (default: a temporary one)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = Bench()


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
    for item in items:
        if HERE in item.path.parents and not any(item.iter_markers("timeout")):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """The session's benchmark: ``bench.row(name, ours=…, peers=…, at_least=…)``."""
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
