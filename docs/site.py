"""What mkdocs does beside its own: links from a page to a file of the repository lead to a copy in the site.

``mkdocs.yml`` names this file as a hook. Pages link to specs, results and source by their paths, so that the
links work in the repository too; CONTRIBUTING, CHANGELOG and SECURITY become pages of the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]

PROJECT = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
}
"""Pages of the repository's root and where they are in the site."""

LAST = "---\nsearch:\n  boost: 0.1\n---\n"
"""A search finds pages that explain a word before the one that says when it came."""

SPECS = "reference/specs.md"
"""The page that a link to the folder of specs leads to."""

FOLDERS = "design.md#map-of-the-repository"
"""Where a link to any other folder leads: what each holds."""

_FENCE = re.compile(r"^(```.*?^```$)", flags=re.M | re.S)
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def at_site(source: str, place: str, link: str) -> str:
    """Returns where a link leads in the site, seen from a page.

    Args:
        source: path of the page in the repository, such as ``docs/start.md``.
        place: path of the page below the site's root, such as ``start.md``.
        link: what the page says, without an anchor.
    """
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if "://" in link or link.startswith("mailto:"):
        return link
    if target.startswith("docs/") and (ROOT / target).is_file():
        there = target.removeprefix("docs/")
    elif target in PROJECT:
        there = PROJECT[target]
    elif target == "README.md":
        there = "index.md"
    elif target.rstrip("/") in ("specs", "specs/train"):
        there = SPECS
    elif (ROOT / target).is_file():
        there = f"files/{target}"
    elif (ROOT / target).is_dir():
        there = FOLDERS
    else:
        return link  # mkdocs says that it leads nowhere
    return posixpath.relpath(there, posixpath.dirname(place) or ".")


def with_links(text: str, source: str, place: str) -> str:
    """Returns a page whose links out of the documentation lead to copies in the site; blocks of code stay."""

    def moved(link: re.Match[str]) -> str:
        return f"]({at_site(source, place, link[1])}{link[2] or ''})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the root, and every file of the repository that a page links to."""
    pages = {f"docs/{f.src_uri}": f.src_uri for f in files.documentation_pages()} | PROJECT
    for source, place in PROJECT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = (LAST if source == "CHANGELOG.md" else "") + with_links(text, source, place)
        files.append(File.generated(config, place, content=content))
    wanted = set()
    for source, place in pages.items():
        text = with_links((ROOT / source).read_text(encoding="utf-8"), source, place)
        found = (
            posixpath.normpath(posixpath.join(posixpath.dirname(place), m[1])) for m in _LINK.finditer(text)
        )
        wanted |= {there for there in found if there.startswith("files/")}
    for there in sorted(wanted):
        files.append(File.generated(config, there, abs_src_path=str(ROOT / there.removeprefix("files/"))))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrites the links of a page of ``docs``; those of the root's pages are rewritten already."""
    place = page.file.src_uri
    if place.startswith(("project/", "files/")):
        return markdown
    return with_links(markdown, f"docs/{place}", place)
