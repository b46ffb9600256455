"""Tell me when it is done: what is told, whom, and how it gets there.

::

      notify=…  ──as_notify──►  Notify (a value: whom, when)
      an end    ──────────────►  Notice (a value: what)          both are made where the end is known: processes, pool, scheduler, recovery
                                    │ tell(notice, notify)
             ┌──────────────────────┼───────────────────────────┐
      the notebook: publish()   a URL: a thread of its own   a callable: on the loop where the end was noticed
             │
      listen(): the comm target ``nbprocs.notify``, a bell in a view, a test

The comm message. A front end (the JupyterLab extension, a bell in a view) opens a comm to the kernel with the target name
``nbprocs.notify``; while it is open the kernel sends it one message for each notice, and first those of the last day that none was
there to hear. Its data is ``{"version": 1, "notices": [notice, …]}``, a notice being ``Notice.plain()``:

    title       str     one line, "train failed (exit status 3) after 2 m 05 s"
    body        str     the last lines of output, secrets masked; may be empty, may hold anything: show it as text, never as HTML
    level       str     "success", "warning" (stopped by its owner), "error"
    process_id  str     of the process, task or map; unique in the kernel
    at          float   seconds since the epoch
    name, kind, exit_code, signal, seconds      as far as they are known; else null

The front end decides how it shows them: a notification of JupyterLab, of the browser when the tab is hidden, the tab's title. Nothing is
sent while no front end has opened the comm, so that a front end without the extension sees no unknown target.
"""

from nbprocs.notify.channel import listen, publish, recent
from nbprocs.notify.model import Notice, Notify, as_notify
from nbprocs.notify.sending import tell

__all__ = ["Notice", "Notify", "as_notify", "listen", "publish", "recent", "tell"]
