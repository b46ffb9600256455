"""One view of everything: form, table, charts, pool and queue."""

from typing import TYPE_CHECKING, Any

from nbprocs.checks import flag
from nbprocs.processes.manager import manager_core
from nbprocs.widgets.base import Part, View
from nbprocs.widgets.charts import ChartsPart
from nbprocs.widgets.process_table import TablePart
from nbprocs.widgets.sampling import readings_of
from nbprocs.widgets.spawn_form import FormPart

if TYPE_CHECKING:  # a dashboard without a pool or a scheduler loads neither
    from nbprocs.monitor import ProcessMonitor
    from nbprocs.pool import ProcessPool
    from nbprocs.scheduler import TaskScheduler

__all__ = ["Dashboard"]


class Dashboard(View):
    """Arranges the views of a manager, and of a monitor, pools and schedulers where given, in one widget.

    Args:
        manager: whose processes are shown and started.
        monitor: its readings and alerts; without one a private one measures while somebody looks.
        pool: a pool, or several.
        scheduler: a scheduler, or several.
        form: False leaves the spawn form out: for dashboards that only show.
        height: pixels of the table at most.

    >>> async with ProcessManager() as pm:
    ...     Dashboard(pm, form=False).close()
    """

    def __init__(
        self,
        manager: Any,
        *,
        monitor: "ProcessMonitor | None" = None,
        pool: "ProcessPool | list[ProcessPool] | None" = None,
        scheduler: "TaskScheduler | list[TaskScheduler] | None" = None,
        form: bool = True,
        height: int = 300,
    ) -> None:
        readings = readings_of(manager, monitor)
        parts: dict[str, Part] = {}
        if flag("form", form):
            parts["form"] = FormPart(manager)
        parts["table"] = TablePart(manager, readings)
        parts["charts"] = ChartsPart(manager, monitor, readings)
        for number, one in enumerate(_several(scheduler), 1):
            from nbprocs.widgets.queue_view import QueuePart  # noqa: PLC0415 - see above

            parts[f"queue{number}"] = QueuePart(one)
        for number, one in enumerate(_several(pool), 1):
            from nbprocs.widgets.boards import PoolPart  # noqa: PLC0415 - see above

            parts[f"pool{number}"] = PoolPart(one)
        super().__init__(parts, model=manager, home=manager_core(manager).home, arranged="dashboard", height=height)


def _several(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, (list, tuple)) else [given]
