"""The comm target ``nbprocs.notify``: a front end that shows notices opens it. The contract is in ``nbprocs.notify``."""

from typing import Any

from nbprocs.notify import Notice, listen
from nbprocs.widgets.wire import answer_where_asked

__all__ = ["opened"]

VERSION = 1


def opened(comm: Any) -> None:
    """A front end listens: send it each notice until it closes the comm, and first what nobody heard of late."""

    def send(notice: Notice) -> None:
        comm.send({"version": VERSION, "notices": [notice.plain()]})

    answer_where_asked(comm)
    end = listen(send)
    comm.on_close(lambda _message: end())
