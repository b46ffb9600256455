"""``%load_ext nbprocs``: what is typed into a cell. Public is what is named here."""

from nbprocs.magics.magics import CellProcess, ProcessMagics, load_ipython_extension, manager, parse_ready, unload_ipython_extension

__all__ = ["CellProcess", "ProcessMagics", "load_ipython_extension", "manager", "parse_ready", "unload_ipython_extension"]
