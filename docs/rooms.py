"""The rooms of the house from their imports: the figure and the table's last column in design.md.

``python docs/rooms.py`` writes both; with ``--check`` it fails if one of them is out of date.
"""

import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src" / "dbpkit"
PAGE, FIGURE = DOCS / "design.md", DOCS / "images" / "rooms.svg"

PLACES = {
    "cli": 2.4,
    "tables": 1.8,
    "bundles": 4.0,
    "analyses": 1.0,
    "fidelity": 2.65,
    "training": 3.75,
    "reporting": 4.8,
    "evaluation": 1.0,
    "checks": 1.0,
    "experiment": 1.85,
    "attacks": 0.6,
    "purification": 1.65,
    "data": 2.65,
    "results": 3.75,
    "threats": 0.6,
    "statistics": 4.4,
    "models": 1.1,
    "foundation": 2.65,
}
"""Middle of each room across the figure, in room widths; how high it stands follows from its imports."""

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 118, 34, 138, 62, 14
"""Size of a box, distance of their middles, and the edge of the figure, in pixels."""

Imports = dict[str, set[str]]


def read_imports(source: Path = SOURCE) -> Imports:
    """Returns which rooms the modules of every room import."""
    rooms = {path.parent.name for path in source.glob("*/__init__.py")}
    found: Imports = {room: set() for room in rooms}
    for room in rooms:
        for path in (source / room).rglob("*.py"):
            found[room] |= {name.split(".")[1] for name in _imported(path) if name.startswith("dbpkit.")}
        found[room] = (found[room] & rooms) - {room}
    return found


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def below(room: str, imports: Imports) -> set[str]:
    """Returns all rooms that a room stands on, directly or not."""
    found: set[str] = set()
    waiting = [room]
    while waiting:
        new = imports[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def arrows(imports: Imports) -> list[tuple[str, str]]:
    """Returns the imports that no other path of imports implies."""
    return sorted(
        (room, other)
        for room, others in imports.items()
        for other in others
        if not any(other in below(between, imports) for between in others - {other})
    )


def heights(imports: Imports) -> dict[str, int]:
    """Returns the row of each room in the figure, 0 at the bottom: right below the lowest that imports it."""
    if circle := next((room for room in imports if room in below(room, imports)), None):
        raise SystemExit(f"the rooms' imports go in a circle through '{circle}'.")
    found: dict[str, int] = {}
    for room in sorted(imports, key=lambda room: -len(below(room, imports))):
        found[room] = min((found[other] for other in found if room in imports[other]), default=0) - 1
    lowest = min(found.values())
    return {room: row - lowest for room, row in found.items()}


def svg(imports: Imports) -> str:
    """Returns the figure: a box for every room, above all rooms that it imports."""
    height = heights(imports)
    top = max(height.values())
    at = {
        room: (MARGIN + ACROSS * PLACES.get(room, 5.75), MARGIN + HEIGHT / 2 + DOWN * (top - height[room]))
        for room in sorted(imports, key=lambda room: (-height[room], PLACES.get(room, 5.75)))
    }
    width = 2 * MARGIN + ACROSS * 5.3
    size = f"{width:g} {2 * MARGIN + HEIGHT + DOWN * top:g}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif"'
        ' font-size="15">',
        "<title>The rooms of dbpkit and the imports between them</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
        ' orient="auto"><path d="M0 0 8 4 0 8z" fill="#5a636e"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for room, other in arrows(imports):
        (x, y), (to_x, to_y) = at[room], at[other]
        ends = f'x1="{x:g}" y1="{y + HEIGHT / 2:g}" x2="{to_x:g}" y2="{to_y - HEIGHT / 2:g}"'
        lines.append(f'<line {ends} stroke="#5a636e" stroke-width="1.3" marker-end="url(#head)"/>')
    for room, (x, y) in at.items():
        box = f'x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"'
        lines.append(f'<rect {box} fill="#e8f3fa" stroke="#00598c" stroke-width="1.3"/>')
        lines.append(f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle" fill="#1b1f24">{room}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def with_imports(page: str, imports: Imports) -> str:
    """Returns the page with the last column of its table of rooms filled in."""
    height = heights(imports)
    listed = re.findall(r"^\| `(\w+)` \|.*\|$", _table(page), flags=re.M)
    if sorted(listed) != sorted(imports):
        missing, gone = sorted(imports.keys() - set(listed)), sorted(set(listed) - imports.keys())
        raise SystemExit(f"the table of rooms in {PAGE.name} lacks {missing} and has {gone} too many.")

    def filled(row: re.Match[str]) -> str:
        others = sorted(imports[row[1]], key=lambda room: (-height[room], room))
        return f"| `{row[1]}` |{row[2]}| {', '.join(others) or '–'} |"

    table = re.sub(r"^\| `(\w+)` \|(.*)\|[^|]*\|$", filled, _table(page), flags=re.M)
    return page.replace(_table(page), table)


def _table(page: str) -> str:
    found = re.search(r"^\| room \|.*?\n(?!\|)", page, flags=re.M | re.S)
    if found is None:
        raise SystemExit(f"{PAGE.name} has no table that begins with '| room |'.")
    return found[0]


def main(arguments: list[str]) -> None:
    """Writes figure and table, or checks them."""
    imports = read_imports()
    page = PAGE.read_text(encoding="utf-8")
    wanted = {PAGE: with_imports(page, imports), FIGURE: svg(imports)}
    for path, text in wanted.items():
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{path.name} is out of date: run 'python docs/rooms.py'.")


if __name__ == "__main__":
    main(sys.argv[1:])
