"""What pages show of files: the recipes in CONTRIBUTING.md, the import paths that moved in CHANGELOG.md.

``python docs/shown.py`` copies both in; with ``--check`` it fails if one of the pages is out of date.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs" / "recipes"
MOVED = ROOT / "src" / "dbpkit" / "foundation" / "moved.py"


def with_recipes(page: str) -> str:
    """Returns a page in which each block after ``<!-- docs/recipes/NAME.py -->`` is that file.

    Raises:
        SystemExit: if a file is missing, or a recipe is not shown.
    """

    def filled(block: re.Match[str]) -> str:
        path = RECIPES / block[1]
        if not path.is_file():
            raise SystemExit(f"the page shows docs/recipes/{block[1]}, which is missing.")
        return f"<!-- docs/recipes/{block[1]} -->\n\n```python\n{path.read_text(encoding='utf-8')}```\n"

    pattern = r"<!-- docs/recipes/(\w+\.py) -->\n\n```python\n.*?^```\n"
    shown = re.findall(pattern, page, flags=re.M | re.S)
    if missing := sorted({path.name for path in RECIPES.glob("*.py")} - set(shown)):
        raise SystemExit(f"the page does not show these files of docs/recipes: {', '.join(missing)}.")
    return re.sub(pattern, filled, page, flags=re.M | re.S)


def with_moved(page: str) -> str:
    """Returns a page whose table of import paths is that of `dbpkit.foundation.moved`."""
    for node in ast.parse(MOVED.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MOVED":
            moved = ast.literal_eval(node.value)
    rows = [f"| `dbpkit.{old}` | `dbpkit.{new}` |" for old, new in sorted(moved.items())]
    table = "\n".join(["| 0.1 | now |", "|---|---|", *rows]) + "\n"
    return re.sub(r"^\| 0\.1 \| now \|\n(\|.*\n)*", lambda _: table, page, flags=re.M)


PAGES = {"CONTRIBUTING.md": with_recipes, "CHANGELOG.md": with_moved}


def main(arguments: list[str]) -> None:
    """Fills the pages, or checks them."""
    for name, fill in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        filled = fill(text)
        if "--check" not in arguments:
            (ROOT / name).write_text(filled, encoding="utf-8")
        elif filled != text:
            raise SystemExit(f"{name} is out of date: run 'python docs/shown.py'.")


if __name__ == "__main__":
    main(sys.argv[1:])
