"""Links that lead nowhere, in a built site and in the repository's own pages: ``python tests/links.py SITE``. Needs no network.

Every relative link must lead to a file, and its anchor to an element there. Links to other hosts are for ``sphinx -b linkcheck``, in the workflow
that has a network. Exit status 1 with what is wrong.
"""

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", ".github/*.md", ".github/docs/*.md", ".adr/*.md")


class Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what it is called and where it leads."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None and tag in ("a", "link", "img", "script"):
                self.links.append(value)


@cache
def page(path: Path) -> Page:
    """A page, read once."""
    return Page(path.read_text(encoding="utf-8"))


def wrong_in_site(site: Path) -> list[str]:
    """Links between the pages of a site that lead nowhere."""
    wrong = []
    for path in sorted(site.rglob("*.html")):
        for link in page(path).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                wrong.append(f"{path.relative_to(site)}: {link}: no such file")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in page(target).anchors:
                wrong.append(f"{path.relative_to(site)}: {link}: no such anchor")
    return wrong


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def wrong_in_repository(root: Path = ROOT) -> list[str]:
    """Relative links of Markdown pages that lead nowhere."""
    wrong = []
    for path in sorted(found for pattern in PAGES for found in root.glob(pattern)):
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            if not target.exists():
                wrong.append(f"{path.relative_to(root)}: {link}: no such file")
            elif parts.fragment and target.suffix == ".md":
                anchors = {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)}
                if parts.fragment not in anchors:
                    wrong.append(f"{path.relative_to(root)}: {link}: no such heading")
    return wrong


def main(site: Path) -> int:
    """Check both."""
    wrong = wrong_in_site(site) + wrong_in_repository()
    count = sum(len(page(path).links) for path in site.rglob("*.html"))
    print(*wrong, sep="\n") if wrong else print(f"{count} links of the site lead somewhere, and those of the repository's pages")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
