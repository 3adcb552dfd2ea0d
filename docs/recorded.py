"""The output that the tutorials show: their commands are run in an empty folder, and their blocks filled.

``python docs/recorded.py [PAGE ...]`` runs the tutorials, all of them if none is named. The files that a page
shows (a block whose first line is ``# name.py`` or ``# name.toml``) are written first. Then every command of
its ``console`` blocks runs in its order, and what it prints replaces what stands below it. A page that says
``<!-- continues evaluate.md -->`` runs in the folder that the page before it left. A line ``...`` below a
command says that its output is left out.

With ``--check`` nothing runs: it fails if a file, a command or an output of a page was changed since it was
recorded. With ``--form`` everything runs and nothing is written: it fails if what a command prints has
another form than what the page shows, whatever its numbers. With ``--in=DIR`` the folders stay in DIR, and
what a command said there is taken from there, so that a recording can be stopped and continued.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
PAGES = DOCS / "tutorials"
COLUMNS = 100
"""Width of the terminal whose output is shown."""

MARK = re.compile(r"^<!-- recorded ([0-9a-f]{16}) -->\n", re.M)
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
LEFT_OUT = "...\n"


class Shown(NamedTuple):
    """A command of a page as a reader types it, with the lines below it."""

    command: str
    output: str


def files(page: str) -> dict[str, str]:
    """Returns the files that a page shows, by name."""
    found = re.findall(r"^```(?:python|toml)\n(# ([\w-]+\.(?:py|toml))\n.*?)^```$", page, re.M | re.S)
    return {name: text for text, name in found}


def shown(block: str) -> list[Shown]:
    """Returns the commands of a block with what it shows below each; ``> `` goes on with a command."""
    found: list[Shown] = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append(Shown(line[2:], ""))
        elif line.startswith("> ") and not found[-1].output:
            found[-1] = found[-1]._replace(command=found[-1].command + line[2:])
        else:
            found[-1] = found[-1]._replace(output=found[-1].output + line)
    return found


def commands(page: str) -> list[Shown]:
    """Returns every command of a page with the output shown below it."""
    return [one for block in BLOCK.findall(page) for one in shown(block)]


def digest(page: str) -> str:
    """Returns what says whether files, commands and outputs are those that were recorded."""
    text = "\0".join([*files(page).values(), *(part for one in commands(page) for part in one)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def form(output: str) -> list[str]:
    """Returns the words of an output without numbers, units of time and rules: what stays where numbers move.

    Where lines break is left out too, because numbers of another length break them elsewhere.
    """
    text = re.sub(r"[-−+]?\d[\d.,:]*%?", "#", output)
    text = re.sub(r"\b(second|minute|hour|day)s?\b", "time", text.replace("threads", "thread"))
    return re.sub(r"[─━]+", " ", text).split()


def run(command: str, folder: Path) -> str:
    """Returns what a command prints on standard output, without trailing spaces and the folder's name.

    Raises:
        SystemExit: if it ends with another code than 0.
    """
    path = os.pathsep.join([str(DOCS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "COLUMNS": str(COLUMNS), "PYTHONPATH": path, "NO_COLOR": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=settings, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"'{command.strip()}' ended with {done.returncode}: {done.stderr.strip()}")
    text = done.stdout.replace(f"{folder.resolve()}/", "")
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())


def said(command: str, folder: Path, shown_files: str) -> str:
    """Returns what a command prints in a folder; asked again, with the same files, what it printed there."""
    place = folder / ".said.json"
    kept = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    key = hashlib.sha256(f"{shown_files}\0{command}".encode()).hexdigest()
    if key not in kept:
        kept[key] = run(command, folder)
        place.write_text(json.dumps(kept), encoding="utf-8")
        print(f"{command.strip()}: done", flush=True)  # noqa: T201
    return str(kept[key])


def filled(page: str, folder: Path) -> str:
    """Returns a page with what its commands print."""
    for name, text in files(page).items():
        (folder / name).write_text(text, encoding="utf-8")
    together = "\0".join(files(page).values())

    def answered(block: re.Match[str]) -> str:
        lines = []
        for one in shown(block[1]):
            output = said(one.command, folder, together)
            kept = LEFT_OUT if one.output == LEFT_OUT else output
            lines.append("$ " + one.command.replace("\n", "\n> ").removesuffix("> ") + kept)
        return f"```console\n{''.join(lines)}```"

    text = BLOCK.sub(answered, page)
    return MARK.sub(f"<!-- recorded {digest(text)} -->\n", text)


def before(page: str) -> list[str]:
    """Returns the names of the pages that must have run in the same folder, the first one first."""
    found = re.search(r"^<!-- continues ([\w-]+\.md) -->$", page, re.M)
    if not found:
        return []
    return [*before((PAGES / found[1]).read_text(encoding="utf-8")), found[1]]


def changed(name: str) -> str:
    """Returns a sentence if a page is not as it was recorded, and an empty text otherwise."""
    page = (PAGES / name).read_text(encoding="utf-8")
    mark = MARK.search(page)
    if mark and mark[1] == digest(page):
        return ""
    return f"{name} was changed since it was recorded: run 'python docs/recorded.py {name}'."


def moved(name: str, old: str, new: str) -> list[str]:
    """Returns a sentence for every command of a page whose output has another form than before."""
    pairs = zip(commands(old), commands(new), strict=True)
    return [
        f"{name}: '{a.command.strip()}' prints something of another form."
        for a, b in pairs
        if a.output != LEFT_OUT and form(a.output) != form(b.output)
    ]


def main(arguments: Sequence[str]) -> None:
    """Records pages, or checks them."""
    options = {word for word in arguments if word.startswith("--")}
    names = [Path(w).name for w in arguments if w not in options] or sorted(
        p.name for p in PAGES.glob("*.md")
    )
    if "--check" in options:
        raise SystemExit("\n".join(filter(None, map(changed, names))) or None)
    with tempfile.TemporaryDirectory() as temporary:
        given = [word.partition("=")[2] for word in options if word.startswith("--in=")]
        problems = recorded(names, Path(given[0] if given else temporary), write="--form" not in options)
    if "--form" in options and problems:
        raise SystemExit("\n".join(problems))


def recorded(names: Sequence[str], place: Path, *, write: bool) -> list[str]:
    """Runs pages, each in a folder of its own, and writes them; returns what has another form than before."""
    folders: dict[str, Path] = {}
    problems: list[str] = []
    for name in names:
        for each in [*before((PAGES / name).read_text(encoding="utf-8")), name]:
            if each in folders:
                continue
            page = (PAGES / each).read_text(encoding="utf-8")
            earlier = before(page)
            folders[each] = folders[earlier[-1]] if earlier else place / Path(each).stem
            folders[each].mkdir(parents=True, exist_ok=True)
            text = filled(page, folders[each])
            problems += moved(each, page, text)
            if write and each in names:
                (PAGES / each).write_text(text, encoding="utf-8")
    return problems


if __name__ == "__main__":
    main(sys.argv[1:])
