"""Public faces are only public: every public attribute of every exported class is pinned in ``faces.txt``, as names are in exported.txt.

Write the file anew with ``python -m tests.unit.test_faces`` when an attribute was added or taken away on purpose.
"""

import enum
import inspect
from pathlib import Path

import nbprocs
from nbprocs import ManagedProcess, ProcessManager
from tests.children import SLEEPER

PINNED = Path(__file__).with_name("faces.txt")
MACHINERY = {
    "blame", "launch", "exited", "drained", "mark_ready", "root", "heard", "let_go", "respawn", "publish", "home", "tasks", "output",
    "more_output", "ended_within", "end_by_task", "supervisor", "launcher", "oom", "recorder", "engine",
}  # fmt: skip


def faces():
    """``Class: attribute attribute …`` for every exported class, by what a class says of itself."""
    lines = []
    for name in nbprocs.__all__:
        kind = getattr(nbprocs, name)
        if inspect.isclass(kind):
            inherited = set(dir(Exception)) | set(dir(str)) | set(dir(int)) | set(dir(tuple))
            own = {a for a in dir(kind) if not a.startswith("_") and (a not in inherited or a in vars(kind))}
            if issubclass(kind, enum.Enum):
                own |= set(kind.__members__)
            lines.append(f"{name}: {' '.join(sorted(own))}".rstrip())
    return lines


def test_every_public_attribute_is_pinned():
    now, pinned = faces(), PINNED.read_text().splitlines()
    assert [line for line in now if line not in pinned] == [], "new, or changed: is it what a user calls? Then write faces.txt anew"
    assert [line for line in pinned if line not in now] == []


async def test_objects_show_no_more_than_their_classes():
    """Attributes that are set in __init__ count, too."""
    async with ProcessManager() as pm:
        process = await pm.spawn(*SLEEPER)
        for thing, kind in ((pm, ProcessManager), (process, ManagedProcess)):
            shown = {name for name in dir(thing) if not name.startswith("_")}
            assert shown == {name for name in dir(kind) if not name.startswith("_")}
            assert not shown & MACHINERY


async def test_a_process_is_the_same_object_for_as_long_as_somebody_holds_it():
    async with ProcessManager() as pm:
        told = []
        process = await pm.spawn("true", name="one")
        process.add_done_callback(told.append)
        await process.wait()
        again = await pm.restart("one")
        assert pm.get(process.id) is process
        assert told == [process]
        assert again.predecessor is process
        assert pm["one"] is again
        assert pm.processes() == (process, again) or again.status.live


if __name__ == "__main__":
    PINNED.write_text("\n".join(faces()) + "\n")
