"""``nbprocs.doctor()``: what is well, what is doubtful and what is wrong with this kernel and its surroundings, and the cure.

::

    doctor() ─► a thread for each probe, one deadline ─► findings ─► Diagnosis: a table, JSON, a DataFrame

A probe looks at one thing and blocks as it must; one that does not come back in time is a finding, too.
"""

import threading
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from nbprocs.guard import text_of
from nbprocs.runs.doctor import kernel, machine, processes, software
from nbprocs.runs.doctor.finding import Diagnosis, Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PROBES", "Diagnosis", "Finding", "Verdict", "doctor"]

DEADLINE = 1.7  # seconds; the promise is two

Probe = Callable[[], "Iterable[Finding]"]


def _probes(module: ModuleType) -> dict[str, Probe]:
    return {name: getattr(module, name) for name in module.__all__}


PROBES: Mapping[str, Probe] = {**_probes(kernel), **_probes(processes), **_probes(machine), **_probes(software)}


def doctor(*, probes: Mapping[str, Probe] | None = None, deadline: float = DEADLINE) -> Diagnosis:
    """Look at everything once and say what was found; blocks at most two seconds, 0.2 s as a rule. Changes nothing, raises nothing.

    Displayed it is a table, worst first; ``.json()`` and ``.frame()`` are for programs, ``.ok`` is for tests. ``nbprocs doctor`` shows
    the same in a terminal.

    >>> found = nbprocs.doctor()
    >>> {"python", "event loop", "open files"} <= {finding.what for finding in found}
    True
    """
    began = time.monotonic()
    asked = PROBES if probes is None else probes
    context = kernel.surroundings()  # the calling thread's loop: a probe's own thread has none
    told: dict[str, list[Finding]] = {}
    threads = {name: threading.Thread(target=_look, args=(name, probe, told), daemon=True) for name, probe in asked.items()}
    with context:
        for name, thread in threads.items():
            thread.name = f"nbprocs-doctor {name}"
            thread.start()
        for name, thread in threads.items():
            thread.join(max(0.0, began + deadline - time.monotonic()))
            if name not in told:
                cure = "something that it looks at hangs: a network folder, a driver, a helper process"
                told[name] = [Finding(area="doctor", what=name, state=Verdict.WARN, said=f"no answer within {deadline:g} s", cure=cure)]
    findings = [finding for name in asked for finding in told[name]]
    return Diagnosis(findings=tuple(findings), seconds=time.monotonic() - began)


def _look(name: str, probe: Probe, told: dict[str, list[Finding]]) -> None:
    try:
        found = list(probe())
    except Exception as error:  # noqa: BLE001 - a probe that fails is a finding
        found = [Finding(area="doctor", what=name, state=Verdict.WARN, said=f"could not be looked at: {text_of(error)}")]
    told.setdefault(name, found)
