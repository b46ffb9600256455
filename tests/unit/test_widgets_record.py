"""The static record: what a saved notebook shows."""

import re
import sys
from datetime import UTC, datetime

import bleach  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from nbprocs import Dashboard, OutputPane, ProcessManager, display
from nbprocs.display import Html
from nbprocs.model import EndReason, ProcessConfig, ProcessInfo, ProcessStatus
from nbprocs.widgets import record


def info(name: str = "web", command: str = "python", args: tuple[str, ...] = (), **fields: object) -> ProcessInfo:
    values: dict[str, object] = {
        "id": "1",
        "pid": 7,
        "status": ProcessStatus.FAILED,
        "created_at": datetime.now(UTC),
        "exit_code": 3,
        "execution_time": 75.0,
    }
    return ProcessInfo(name=name, config=ProcessConfig(command=command, args=args), **(values | fields))  # type: ignore[arg-type]


def test_it_says_what_ran_how_it_ended_and_how_long_it_took() -> None:
    html = record.process_html(info(args=("serve.py", "--token", "s3cret"), restarts=2), output="one\ntwo\n", cpu=[1, 5, 3])
    for part in ("web", "python serve.py", "•••", "failed", "exit 3", "1 m 15 s", "one\ntwo", "restarted 2 times", "<polyline"):
        assert part in html
    assert "s3cret" not in html


def test_signals_have_names() -> None:
    assert record.ending(info(exit_code=None, signal=9, reason=EndReason.TIMEOUT)) == "SIGKILL (timeout)"
    assert record.ending(info(status=ProcessStatus.RUNNING)) == ""


@given(st.text(max_size=200), st.text(min_size=1, max_size=40), st.lists(st.text(max_size=30), max_size=3))
def test_nothing_from_outside_becomes_markup(output: str, name: str, args: list[str]) -> None:
    plain_tags = set(re.findall(r"</?\w+", record.process_html(info(), output="x") + record.table_html([info()])))
    html = record.process_html(info(name, args=tuple(args)), output=output) + record.table_html([info(name, args=tuple(args))])
    assert set(re.findall(r"</?\w+", html)) <= plain_tags
    assert "script" not in plain_tags
    assert "<style" not in html


def test_marks_by_the_thousand_are_cut() -> None:
    html = record.lines_html("e\u0301 a" + "\u0301" * 200_000 + "\nnext", width=1000)
    assert "e\u0301 a\u0301" in html
    assert len(html) < 1000
    assert "next" in html


def test_what_is_not_html_is_escaped_wherever_it_is_put() -> None:
    assert display.table(["<a>"], [["<b>", Html("<i>c</i>"), 5]]).count("&lt;") == 2
    assert display.joined(["<a>", Html("<b>")], "&") == "&lt;a&gt;&amp;<b>"
    assert "&lt;a&gt;" in display.cell("<a>")


def test_progress_bars_show_their_last_state_and_old_lines_are_counted() -> None:
    html = record.lines_html("".join(f"line {i}\n" for i in range(30)) + "10%\r50%\r100%\r\n", lines=5)
    assert "26 earlier lines" in html
    assert "100%" in html
    assert "50%" not in html


def test_a_table_of_many_shows_the_last_ones_and_counts_all() -> None:
    html = record.table_html([info(f"p{i}") for i in range(100)], rows=10)
    assert "100 processes: 100 failed, the last 10 shown" in html
    assert html.count("<tr>") == 11
    assert record.table_html([]).count("no processes") == 1


def test_a_command_is_one_line_and_its_program_a_name() -> None:
    def shown(command: str) -> str:
        return re.sub(r"<[^>]*>", "", record.command_html(command, limit=40))

    assert shown("/opt/venv/bin/python -c 'import os\nos.abort()'") == "python -c &#39;import os os.abort()&#39;"
    assert shown("ls /usr/bin/env") == "ls /usr/bin/env"
    assert shown(r"C:\Python\python.exe x.py") == "python.exe x.py"
    assert shown("'/a b/python' x.py") == "&#39;/a b/python&#39; x.py"
    assert shown("/") == "/"
    assert shown("/usr/bin/x " + "y" * 100) == "x " + "y" * 37 + "…"


def test_a_sparkline_needs_two_values_and_stays_in_its_box() -> None:
    assert record.sparkline([1.0], label="x") == ""
    drawn = record.sparkline([0, 200, 50], label='a "label"', top=100)
    assert "&#34;label&#34;" in drawn
    assert all(0 <= float(v) <= 90 for v in re.findall(r"[\d.]+(?=[, ])", drawn.split('points="')[1].split('"')[0]))


# What GitHub leaves of a notebook's HTML: text, in these elements, without styles, classes and scripts (github.com/gjtorikian/html-pipeline,
# SanitizationFilter). What a style hid or set apart must not be needed.
KEPT = {
    "b",
    "i",
    "em",
    "strong",
    "code",
    "pre",
    "div",
    "span",
    "p",
    "br",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
}


async def test_github_leaves_what_matters() -> None:
    async with ProcessManager() as pm:
        await pm.run("sh", "-c", "echo first words; echo why it failed >&2; exit 3", name="broken", check=False)
        alive = await pm.spawn(sys.executable, "-c", "print('at work', flush=True); input()", name="alive", stdin=True)
        await alive.expect("at work")
        views = [Dashboard(pm), OutputPane(pm.get("broken"))]
        left = [bleach.clean(view.record()["text/html"], tags=KEPT, attributes=[], strip=True) for view in views]
        for view in views:
            view.close()
    assert {name for html in left for name in re.findall(r"<(\w+)", html)} <= KEPT
    assert not [tag for html in left for tag in re.findall(r"<\w+\s[^>]*>", html)]
    dashboard, pane = ([" ".join(part.split()) for part in re.split(r"</?(?:div|tr|pre)>", html)] for html in left)
    rows = [re.findall(r"<td>(.*?)</td>", line) for line in dashboard if "<td>" in line]
    shown = [[re.sub(r"<[^>]*>", "", cell) for cell in row[:2]] for row in rows]
    assert shown == [["name", "status"], ["broken", "● failed"], ["alive", "● running"]]
    assert "2 processes: 1 failed, 1 running" in dashboard
    assert any("as of" in part for part in dashboard)
    assert [part for part in pane if "exit 3" in part and "failed" in part], pane
    assert [part for part in pane if "first words" in part and "why it failed" in part], pane
