"""What a doctor finds: values, and how they are shown."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nbprocs.display import Displayable, Html, cell, joined, text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagnosis", "Finding", "Verdict"]


class Verdict(StrEnum):
    """How it is.

    >>> [str(state) for state in Verdict]
    ['ok', 'warn', 'bad']
    """

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


_ORDER = {Verdict.BAD: 0, Verdict.WARN: 1, Verdict.OK: 2}
# Dark enough on white and light enough on black; the word stands beside the colour
_LOOKS = {Verdict.OK: ("#2e7d32", "\N{CHECK MARK}"), Verdict.WARN: ("#b26a00", "!"), Verdict.BAD: ("#d32f2f", "\N{BALLOT X}")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    >>> Finding(area="limits", what="open files", state=Verdict.WARN, said="950 of 1,024", cure="ulimit -n 4096")
    Finding(area='limits', what='open files', state=<Verdict.WARN: 'warn'>, said='950 of 1,024', cure='ulimit -n 4096')
    """

    area: str
    what: str
    state: Verdict
    said: str
    cure: str = ""  # what to do; empty where nothing is to be done


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Diagnosis(Displayable):
    """All findings, in the order of the probes.

    >>> found = Diagnosis(findings=(Finding(area="a", what="b", state=Verdict.OK, said="fine"),), seconds=0.1)
    >>> found.ok, len(found), json.loads(found.json())["findings"][0]["state"]
    (True, 1, 'ok')
    """

    findings: tuple[Finding, ...]
    seconds: float = 0.0  # that looking took

    @property
    def ok(self) -> bool:
        """Whether nothing is bad."""
        return not self.of(Verdict.BAD)

    def of(self, state: Verdict | str) -> tuple[Finding, ...]:
        """Those that are ok, warn or bad."""
        return tuple(finding for finding in self.findings if finding.state == state)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, what: str) -> Finding:
        """By what was looked at; KeyError for another word."""
        return {finding.what: finding for finding in self.findings}[what]

    def json(self, *, indent: int | None = None) -> str:
        """As JSON: ``ok``, ``seconds``, ``host`` and the ``findings``."""
        told: dict[str, Any] = {"ok": self.ok, "seconds": round(self.seconds, 3), "host": platform.node()}
        return json.dumps({**told, "findings": [asdict(finding) for finding in self.findings]}, indent=indent)

    def frame(self) -> "pd.DataFrame":
        """A row a finding, indexed by what was looked at."""
        import pandas as pd  # noqa: PLC0415 - `import nbprocs` stays light

        columns = ["what", "state", "said", "cure", "area"]
        return pd.DataFrame([asdict(finding) for finding in self.findings], columns=columns).set_index("what")

    def _sorted(self) -> list[Finding]:
        return sorted(self.findings, key=lambda finding: _ORDER[finding.state])

    def _summary(self) -> str:
        counts = {state: len(self.of(state)) for state in Verdict}
        return f"{counts[Verdict.BAD]} bad, {counts[Verdict.WARN]} to look at, {counts[Verdict.OK]} ok; looked for {self.seconds:.2f} s"

    def __repr__(self) -> str:
        lines = [f"nbprocs doctor: {self._summary()}"]
        for finding in self._sorted():
            lines.append(f"  {finding.state:<4}  {finding.what:<22} {finding.said}")
            if finding.cure and finding.state is not Verdict.OK:
                lines.append(f"        {'':<22} → {finding.cure}")
        return "\n".join(lines)

    def _html_(self) -> Html:
        rows = []
        for finding in self._sorted():
            colour, sign = _LOOKS[finding.state]
            state = cell(f"{sign} {finding.state}", style=f";color:{colour};font-weight:bold")
            cure = Html("<div><b>→</b> {}</div>").format(text(finding.cure)) if finding.cure and finding.state is not Verdict.OK else ""
            said = cell(joined([text(finding.said), cure]), style=";white-space:normal")
            rows.append(Html("<tr>{}{}{}</tr>").format(state, cell(text(finding.what)), said))
        table = Html('<table style="border-collapse:collapse">{}</table>').format(joined(rows))
        return Html("<div><b>nbprocs doctor</b>: {}{}</div>").format(text(self._summary()), table)
