"""What the tests notice: the package is broken on purpose, in a copy, and some test must fail.

``python -m tests.mutants promises`` takes back each written promise of ``PROMISES``, one after the other, by hand-made changes.
``python -m tests.mutants score [--sample 20] [--seed 0] [FILE …]`` makes random changes, by mutmut's operators, to the files of ``SCORED``,
runs the tests named there, and prints what noticed each of them, and how many were noticed or are explained. mutmut's own runner can't be used: children of the shim and of pools run these
files, too, without its trampolines.

Exit status 1: a promise is not tested, or fewer than ``LEAST`` of the mutants were noticed. A mutant that changes nothing anybody could see
is named in ``EQUAL``, with the reason.
"""

import argparse
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LEAST = 0.9
LIMIT = 240  # seconds that a run of tests may take; a mutant that makes them hang is noticed
NOISE = re.compile(r"^\s*(\"\"\"|#|from |import |__all__|\w+: TypeAlias)|msg = |raise |log\.|_checks?\b|hint=|what=|valid_\w+\(")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Something that is promised, the lines that keep it and what stands there instead; the tests that must see it."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


def _promise(name: str, path: str, old: str, new: str, *tests: str) -> Promise:
    return Promise(name=name, path=f"nbprocs/{path}", old=old, new=new, tests=tuple(f"tests/{test}" for test in tests))


PROMISES = (
    _promise(
        "a full group's next task is woken", "scheduler/queue.py",
        "            group.running -= 1\n            self._wake(group.parked)\n", "            group.running -= 1\n",
        "unit/test_scheduler_promises.py",
    ),
    _promise(
        "a full resource's next task is woken", "scheduler/queue.py",
        "            resource.used -= amount\n            self._wake(resource.parked)\n", "            resource.used -= amount\n",
        "unit/test_scheduler_promises.py",
    ),
    _promise(
        "a process starts only when its row says so on disk", "scheduler/runner.py",
        "            self.writer.change(entry, started=now.wall)\n        try:", "            pass\n        try:",
        "unit/test_scheduler_promises.py",
    ),
    _promise(
        "who awaits is told only after the disk knows", "scheduler/runner.py",
        "        try:\n            self.writer.flush()\n        except StoreError as error:\n            self._give_back",
        "        self._tell()\n        try:\n            self.writer.flush()\n        except StoreError as error:\n            self._give_back",
        "unit/test_scheduler_promises.py",
    ),
    _promise(
        "who asks late is told only after the disk knows", "scheduler/runner.py",
        "return entry.state.final and entry not in self._told", "return entry.state.final", "unit/test_scheduler_promises.py",
    ),
    _promise(
        "a worker that dies by itself leaves nothing", "pool/workers.py",
        "        if not worker.endings:\n            self._see_to_end(worker, 0.0)  # for", "        if False:\n            pass  # for",
        "unit/test_pool_lives.py::test_a_dead_workers_tree_is_ended_before_its_task_fails",
    ),
    _promise(
        "repr(ProcessConfig) shows no secret of the environment", "config.py",
        "mask_env(self.env_vars)", "dict(self.env_vars)", "unit/test_redact.py",
    ),
    _promise(
        "repr(ProcessConfig) shows no secret of the command", "config.py",
        '        shown["command"] = self.display\n        shown.pop("args", None)', '        shown["command"] = self.command',
        "unit/test_redact.py",
    ),
    _promise(
        "an alert's text is escaped in the monitor's table", "monitor/views.py",
        "text(alert.message, limit=200)", "Html(alert.message)", "unit/test_monitor_live.py",
    ),
    _promise(
        "an alert's text is escaped in a record", "widgets/charts.py",
        "text(a.message, limit=200)", "Html(a.message)", "unit/test_widgets_boards.py",
    ),
    _promise(
        "the shim looks at the identity before a signal", "engine/shimlib/looks.py",
        "row is None or row.start != start or row.gone", "row is None or row.gone", "unit/test_shim_pure.py",
    ),
    _promise(
        "the kernel looks at the identity before a signal", "engine/tree.py",
        "row is None or row.identity != identity or row.gone", "row is None or row.gone", "unit/test_tree.py",
    ),
    _promise(
        "so does a system without pidfd", "engine/tree.py",
        "        if row is None or row.identity != identity:\n            continue", "        if row is None:\n            continue",
        "unit/test_tree.py",
    ),
    _promise(
        "a new shim guards only the process that was meant", "engine/shimlib/server.py",
        "(kid.start and row.start != kid.start)", "False", "unit/test_shim_pure.py",
    ),
    _promise(
        "a failed start is reaped", "engine/shimlib/launching.py",
        "        os.waitpid(pid, 0)\n", "        pass\n", "unit/test_shim_pure.py",
    ),
    _promise(
        "a child that could not be taken in is ended", "engine/posix.py",
        "            self._client.say(wire.STOP, *self.unwanted())", "            pass", "unit/test_shim.py::test_a_start_that_nobody_waits_for_any_more_leaves_no_process",
    ),
    _promise(
        "whoever ends is reaped, also who was never taken in", "engine/shimlib/server.py",
        "                pid, status, usage = os.wait4(-1, os.WNOHANG)",
        "                known = [kid.pid for kid in self.kids if kid.own and os.waitid(os.P_PID, kid.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)]\n"
        "                pid, status, usage = os.wait4(known[0], 0) if known else (0, 0, None)",
        "unit/test_shim.py",
    ),
    _promise(
        "a resting process uses no CPU", "monitor/metrics.py", "return values * 0 ", "return values ",
        "unit/test_monitor_metrics.py", "unit/test_monitor_sampler.py",
    ),
    _promise(
        "what has run is no resting process", "engine/handles.py", "self.rested = same and", "self.rested =", "unit/test_monitor_sampler.py",
    ),
)  # fmt: skip

_PURE = ("unit/test_policy_restart.py", "unit/test_policy_retry.py", "unit/test_policy_bucket.py", "unit/test_policy_checks.py")
SCORED = {  # file → the quick tests that hold it
    "redact.py": ("unit/test_redact.py",),
    "policy/restart.py": (*_PURE, "unit/test_supervision_rules.py"),
    "policy/retry.py": _PURE,
    "policy/breaker.py": (*_PURE, "unit/test_supervision_rules.py"),
    "policy/waits.py": _PURE,
    "policy/bucket.py": (*_PURE, "unit/test_policy_shared.py"),
    "scheduler/queue.py": ("unit/test_scheduler_queue.py", "unit/test_scheduler.py", "unit/test_scheduler_promises.py"),
    "scheduler/runner.py": (
        "unit/test_scheduler.py", "unit/test_scheduler_promises.py", "unit/test_scheduler_times.py", "unit/test_scheduler_again.py",
        "unit/test_scheduler_durable.py", "unit/test_scheduler_detached.py",
    ),
    "scheduler/writer.py": ("unit/test_scheduler_promises.py", "unit/test_scheduler_store.py", "unit/test_scheduler_durable.py"),
    "engine/shimlib/endings.py": ("unit/test_shim_pure.py",),
    "engine/shimlib/evidence.py": ("unit/test_shim_pure.py", "unit/test_shim.py"),
    "engine/tree.py": ("unit/test_tree.py", "unit/test_child.py", "unit/test_many_children.py"),
}  # fmt: skip

EQUAL = {  # (file, the changed line): why nobody can see it
    ("scheduler/runner.py", "self._wanted = None"): "it is asked only whether it is true",
    ("scheduler/runner.py", "self._give_back(taken, None, error)"): "what is given back is due at once: no clock is asked",
    ("engine/shimlib/evidence.py", 'found |= {".".join(parts[:size]) for size in range(len(parts) + 1)}'): (
        "the empty token that this adds is taken out at the end"
    ),
    ("redact.py", "masked = _masked_words(words, None)"): "a shell line was answered above: it is false here",
    ("scheduler/queue.py", "if not track.parked or (track.order is None or order < track.order):"): (
        "a track that is opened once too often is found out by _first or parked again: the same tasks start, some steps later"
    ),
}


class Copy:
    """The package, its tests and its settings, where they may be broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = shutil.ignore_patterns("__pycache__", "node_modules", "*.png", ".hypothesis")
        for name in ("nbprocs", "tests", "notebooks", ".github"):
            shutil.copytree(ROOT / name, folder / name, ignore=kept)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def fails(self, tests: tuple[str, ...]) -> str:
        """The first test that fails; "" when all pass."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not slow", *tests]
        env = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
        with subprocess.Popen(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as running:
            try:
                out, _ = running.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                running.kill()
                return f"nothing came within {LIMIT} s"
        if running.returncode == 0:
            return ""
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE)
        return found[0] if found else out.strip().rpartition("\n")[2] or "it can't even be loaded"

    def broken(self, path: str, text: str, tests: tuple[str, ...]) -> str:
        """What fails while the file says this instead."""
        file = self.folder / path
        good = file.read_text()
        file.write_text(text)
        try:
            return self.fails(tests)
        finally:
            file.write_text(good)


def promises(copy: Copy, only: str) -> bool:
    """Whether each promise has a test that fails without it."""
    kept = True
    for promise in PROMISES:
        if only and only not in promise.name:
            continue
        good = (copy.folder / promise.path).read_text()
        if good.count(promise.old) != 1:
            print(f"MOVED     {promise.name}: {promise.path} has its lines {good.count(promise.old)} times", flush=True)
            kept = False
            continue
        failed = copy.broken(promise.path, good.replace(promise.old, promise.new), promise.tests)
        print(f"{'noticed ' if failed else 'UNNOTICED'} {promise.name}: {failed}", flush=True)
        kept = kept and bool(failed)
    return kept


def candidates(text: str) -> tuple[Callable[[Any, Any], str], list[tuple[Any, Any]]]:
    """What makes a mutant of a node and its replacement, and every such pair by mutmut's operators."""
    import libcst
    from mutmut.mutation.mutators import mutation_operators

    module = libcst.parse_module(text)
    found: list[tuple[Any, Any]] = []

    class Nodes(libcst.CSTVisitor):
        def on_visit(self, node: libcst.CSTNode) -> bool:
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    found.extend((node, changed) for changed in operator(node))
            return not isinstance(node, (libcst.Annotation, libcst.Decorator))

    module.visit(Nodes())
    return lambda node, changed: module.deep_replace(node, changed).code, found


def mutants(text: str, rng: random.Random) -> Iterator[tuple[int, str]]:
    """Mutants in random order: the number of the first line that differs, and the whole text. Not what only words an error or a log line."""
    made, found = candidates(text)
    lines = text.splitlines()
    listed = re.search(r"^__all__ = \[.*?\]", text, re.MULTILINE | re.DOTALL)
    exported = range(*(text.count("\n", 0, end) for end in listed.span())) if listed else range(0)  # test_faces.py compares it
    rng.shuffle(found)
    for node, changed in found:
        mutant = made(node, changed)
        at = next((i for i, (a, b) in enumerate(zip(lines, mutant.splitlines(), strict=False)) if a != b), None)
        if at is not None and at not in exported and not NOISE.search(lines[at]):
            yield at + 1, mutant


def score(copy: Copy, files: list[str], sample: int, seed: int) -> bool:
    """Whether enough mutants were noticed."""
    noticed = total = 0
    for name in files:
        tests = tuple(f"tests/{test}" for test in SCORED[name])
        path = f"nbprocs/{name}"
        if (failed := copy.fails(tests)) and (failed := copy.fails(tests)):  # a second time: the machine may be busy
            raise SystemExit(f"{name}: {failed} fails without any mutant")
        text = (copy.folder / path).read_text()
        good = text.splitlines()
        here = count = 0
        for line, mutant in itertools.islice(mutants(text, random.Random(f"{seed}:{name}")), sample):
            after = mutant.splitlines()[line - 1].strip()
            why = EQUAL.get((name, after), "")
            failed = why or copy.broken(path, mutant, tests)
            count += 1
            here += bool(failed)
            what = "explained" if why else "noticed  " if failed else "UNNOTICED"
            print(f"  {what} {path}:{line}: {good[line - 1].strip()!r} → {after!r}{failed and ': '}{failed}", flush=True)
        noticed, total = noticed + here, total + count
        print(f"{name}: {here} of {count} noticed or explained", flush=True)
    print(f"{noticed} of {total} noticed or explained: {noticed / max(total, 1):.0%}")
    return noticed >= LEAST * total


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("promises", "score"))
    parser.add_argument("files", nargs="*", help="of SCORED; with promises: a part of the names meant")
    parser.add_argument("--sample", type=int, default=20, help="mutants a file at most")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="nbprocs-mutants-") as folder:
        copy = Copy(Path(folder))
        if chosen.what == "promises":
            return not promises(copy, " ".join(chosen.files))
        return not score(copy, chosen.files or list(SCORED), chosen.sample, chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
