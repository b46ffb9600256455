"""axe-core over nbprocs' own elements. It comes with the JavaScript packages; without them the tests that ask for it are skipped."""

import os
from pathlib import Path
from typing import Any

from tests.browser.server import ROOT

AXE = Path(os.environ.get("NBPROCS_NODE_MODULES", ROOT / "nbprocs/widgets/js/node_modules")) / "axe-core/axe.min.js"
VIOLATIONS = """async (root) => {
  const { violations } = await axe.run(root, { rules: { region: { enabled: false } } });
  return violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)).join(' | ')}`);
}"""


async def violations(page: Any, root: str) -> list[str]:
    """What axe finds below a selector."""
    if not await page.evaluate("() => 'axe' in window"):
        await page.add_script_tag(path=str(AXE))
    found: list[str] = await page.evaluate(VIOLATIONS, root)
    return found
