"""What the README and the pages of docs/ show: blocks of Python and TOML, and commands of the shell."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

LANGUAGES = ("python", "toml", "sh", "console", "json", "bibtex", "text")
"""What a block may be. Each is run, read or parsed by a test, but `text`: output, signatures and drawings."""

PROGRAMS = ("dbpkit", "make", "accelerate", "torchrun", "sbatch", "pip", "python")
"""First words of the commands that are shown; every one is recorded instead of run."""

_RECORD = "\n".join(
    f'{name}() {{ printf \'%s\\037\' {name} "$@" >> "$RECORD"; printf \'\\036\' >> "$RECORD"; }}'
    for name in PROGRAMS
)


class Block(NamedTuple):
    """A fenced block: its page, the line of its fence, its language, and its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """The page's path below ``docs``, or its name if it is none of those."""
        docs = ROOT / "docs"
        return self.page.relative_to(docs if docs in self.page.parents else ROOT).as_posix()

    @property
    def name(self) -> str:
        """The file that a first line such as ``# my_module.py`` names, or an empty text."""
        named = re.match(r"# ([\w-]+\.(?:py|toml))\n", self.text)
        return named[1] if named else ""

    def __str__(self) -> str:
        return f"{self.place}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Every fenced block of some languages, but for the recipes, which `tests/recipes` runs."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(
            r"^(<!-- docs/recipes/.*\n\n)?```(\w*)\n(.*?)^```$", text, flags=re.M | re.S
        ):
            if match[2] in languages and not match[1]:
                found.append(Block(page, text[: match.start()].count("\n") + 1, match[2], match[3]))
    return found


def scripts() -> list[Block]:
    """Blocks that show commands, as scripts without prompts."""
    found = []
    for block in blocks("sh", "console"):
        lines = block.text.splitlines()
        if block.language == "console":
            lines = [re.sub(r"^[$>] ?", "", line) for line in lines if line.startswith(("$ ", "> "))]
        found.append(block._replace(text="\n".join(lines)))
    return found


def commands(script: Block, folder: Path) -> list[list[str]]:
    """The commands that bash would run, with loops, variables and braces expanded."""
    record = folder / "recorded"
    record.write_text("")
    code = f"set -eu\n{_RECORD}\n{script.text}\n"
    subprocess.run(["bash", "-c", code], check=True, env={**os.environ, "RECORD": str(record)})
    return [line.split("\037")[:-1] for line in record.read_text().split("\036")[:-1]]


def inline(pattern: str) -> Iterator[tuple[str, str]]:
    """Yields page and text of every piece of code inside a sentence that begins with a pattern."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        for match in re.finditer(rf"`({pattern}[^`]*)`", text):
            yield page.name, " ".join(match[1].split())
