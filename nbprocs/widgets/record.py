"""The static record: what a saved notebook keeps of a view. HTML and SVG without ``script`` or ``style`` tags, everything escaped.

GitHub and nbviewer strip style sheets and scripts, so colours are inline, each as a JupyterLab variable with a fallback that reads on
white and on black.
"""

import re
from collections.abc import Iterable, Sequence

from nbprocs.display import BAD, CAREFUL, GOOD, ODD, QUIET, Html, bytes_text, cell, duration, joined, text
from nbprocs.model import ProcessInfo, ProcessStatus, signal_name
from nbprocs.redact import one_line

__all__ = ["badge", "command_html", "ending", "lines_html", "process_html", "sparkline", "table_html"]

MUTED = "color:var(--jp-ui-font-color2,#6e7781)"
MONO = "font-family:var(--jp-code-font-family,ui-monospace,SFMono-Regular,Menlo,monospace);font-size:12px"
_COLOURS = {"starting": CAREFUL, "running": GOOD, "paused": CAREFUL, "completed": QUIET, "failed": BAD, "terminated": ODD}


def ending(info: ProcessInfo) -> str:
    """How it ended, in a word: ``exit 0``, ``SIGKILL``, with the reason where there is one; empty while it lives."""
    if info.status.live:
        return ""
    end = signal_name(info.signal) if info.signal is not None else "exit ?" if info.exit_code is None else f"exit {info.exit_code}"
    return f"{end} ({info.reason})" if info.reason else end


def command_html(command: str, *, limit: int) -> Html:
    """A command in one line, its program by its name alone: the folder of an interpreter would push out what tells commands apart.

    >>> command_html("/opt/venv/bin/python -m http.server", limit=80).partition(">")[2]
    Markup('python -m http.server</code>')
    """
    short = re.sub(r"^(?:/|[A-Za-z]:\\)[^\s'\"]*[/\\](?=[^\s'\"/\\])", "", command)
    return Html('<code style="{};background:none;padding:0;white-space:nowrap">{}</code>').format(MONO, text(one_line(short, limit=limit)))


def status_word(info: ProcessInfo) -> str:
    """The status, or ``paused``."""
    return "paused" if info.paused and info.status is ProcessStatus.RUNNING else info.status.value


def badge(word: str) -> Html:
    """A status with its dot; the word itself carries the meaning, the colour helps."""
    colour = _COLOURS.get(word, "#57606a")
    return Html('<span style="white-space:nowrap"><span style="color:{}">●</span> {}</span>').format(colour, text(word))


def sparkline(values: Sequence[float], *, label: str, width: int = 90, height: int = 18, top: float | None = None) -> Html:
    """A line as SVG with a text for screen readers; empty for fewer than two values. ``top`` is the value at the upper edge."""
    if len(values) < 2:  # noqa: PLR2004 - a line has two ends
        return Html()
    limit = top or max(values) or 1.0
    step = (width - 2) / (len(values) - 1)
    points = " ".join(f"{1 + i * step:.1f},{height - 1 - (height - 2) * min(v / limit, 1.0):.1f}" for i, v in enumerate(values))
    return Html(
        '<svg role="img" aria-label="{label}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'style="vertical-align:middle"><polyline points="{points}" fill="none" stroke="var(--jp-brand-color1,#1976d2)" '
        'stroke-width="1.3" stroke-linejoin="round"/></svg>'
    ).format(label=text(label), width=width, height=height, points=points)


def lines_html(output: str, *, lines: int = 10, width: int = 200) -> Html:
    r"""The last lines of an output, in fixed width; a ``\r`` progress bar as its last state."""
    kept = [text(line.rstrip("\r").rsplit("\r", 1)[-1], limit=width) for line in output.split("\n")]
    while kept and not kept[-1]:
        kept.pop()
    if not kept:
        return Html()
    cut = Html('<div style="{}">… {:,} earlier lines</div>').format(MUTED, len(kept) - lines) if len(kept) > lines else ""
    frame = (
        "border-left:3px solid var(--jp-border-color1,#bdbdbd);padding:2px 0 2px 10px;margin:4px 0 0;background:none;white-space:pre-wrap"
    )
    return Html('{}<pre style="{};{}">{}</pre>').format(cut, MONO, frame, joined(kept[-lines:], "\n"))


def process_html(info: ProcessInfo, *, output: str = "", cpu: Sequence[float] = ()) -> Html:
    """The record of one process: what ran, how it ended, how long it took, the last lines."""
    facts: list[object] = [badge(status_word(info))]
    if end := ending(info):
        facts.append(end)
    facts.append(duration(info.execution_time))
    if info.config.detach:
        facts.append("detached")
    if info.restarts:
        facts.append(f"restarted {info.restarts} times")
    if info.peak_rss:
        facts.append(f"peak {bytes_text(info.peak_rss)}")
    if info.dropped_bytes:
        facts.append(f"{bytes_text(info.dropped_bytes)} of output dropped")
    if spark := sparkline(cpu, label=f"CPU of {info.name}"):
        facts.append(Html("CPU {}").format(spark))
    who = Html("<div><b>{}</b> {}</div>").format(text(info.name, limit=80), command_html(info.config.display, limit=120))
    told = Html('<div style="{}">{}</div>').format(MUTED, joined(facts, " · "))
    return Html('<div style="margin:2px 0">{}{}{}</div>').format(who, told, lines_html(output))


def table_html(infos: Iterable[ProcessInfo], *, rows: int = 30, caption: str = "processes") -> Html:
    """The record of many: one line each, the newest ones when there are too many."""
    every = list(infos)
    if not every:
        return Html('<div style="{}">no {}</div>').format(MUTED, text(caption))
    shown = every[-rows:]
    columns = ("name", "status", "pid", "end", "time", "command", "last line")
    head = joined(cell(column, head=True, style=f";{MUTED}") for column in columns)
    body = joined(_row(info) for info in shown)
    counts: dict[str, int] = {}
    for info in every:
        counts[status_word(info)] = counts.get(status_word(info), 0) + 1
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    more = f", the last {rows} shown" if len(every) > rows else ""
    told = Html('<div style="{};margin:2px 0">{} {}: {}{}</div>').format(MUTED, len(every), text(caption), summary, more)
    return told + Html('<table style="border-collapse:collapse"><tr>{}</tr>{}</table>').format(head, body)


def _row(info: ProcessInfo) -> Html:
    mark = Html(' <span style="{}">detached</span>').format(MUTED) if info.config.detach else ""
    cells = [
        Html("<b>{}</b>{}").format(text(info.name, limit=40), mark),
        badge(status_word(info)),
        text(info.pid if info.pid is not None else ""),
        text(ending(info)),
        duration(info.execution_time),
        command_html(info.config.display, limit=44),
        Html('<span style="{}">{}</span>').format(MONO, text(info.last_line, limit=40)),
    ]
    return Html("<tr>{}</tr>").format(joined(cell(content) for content in cells))
