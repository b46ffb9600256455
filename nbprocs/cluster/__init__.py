"""The same queue on a cluster: Dask, and through dask-jobqueue Slurm, PBS and others. Public: DaskBackend.

Layers inside, each imports only from below::

    dask                                    the backend: client, own cluster, capacity and demand
    carriers   station   own                Dask: tasks that hold slots; the plugin on a worker; a scheduler and workers of our own
    fleet                                   the kernel's half, without Dask
    peer  remote  ledger                    one worker as the kernel sees it; a process there; which job goes where (pure)
    bay                                     the worker's half, without Dask
    session  run  window  calls             one kernel's jobs on a worker
    wire  link  files                       what travels, and by what way
"""

from nbprocs.cluster.dask import DaskBackend

__all__ = ["DaskBackend"]
