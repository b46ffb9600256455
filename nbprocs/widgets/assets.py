"""The built scripts and style sheet of ``static/``: read once, when the first view is shown."""

import pathlib

__all__ = ["ON_DEMAND", "SCRIPT", "STATIC", "STYLE"]

STATIC = pathlib.Path(__file__).parent / "static"
SCRIPT = (STATIC / "views.js").read_text("utf-8")
STYLE = (STATIC / "views.css").read_text("utf-8")
ON_DEMAND = ("terminal", "plot")  # by name, asked for by the pages that need them
