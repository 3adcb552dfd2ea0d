"""Files that come with the package for people: published specs, and the documentation.

In a source checkout they lie in ``specs/`` and ``docs/``, in an installed package beside its modules.
"""

import functools
import hashlib
import os
from pathlib import Path

from dbpkit.foundation.errors import UserError, nearest, shown, unknown_name

HERE = Path(__file__).parents[1]

TEMPLATE = HERE / "assets" / "init.toml"
"""What `dbpkit init` writes."""


def asset(name: str) -> Path:
    """Returns the path of a file that the package carries."""
    return HERE / "assets" / name


@functools.cache
def code_sha256() -> str:
    """Returns the sha256 of the package's own source files, hexadecimal.

    A checkout and an installed wheel of the same sources have the same: the scripts that lie among the
    documentation are not part of the package's code.
    """
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")):
        place = path.relative_to(HERE)
        if place.parts[0] not in ("docs", "specs"):
            digest.update(str(place).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def folder(kind: str) -> Path:
    """Returns the folder of ``"specs"`` or ``"docs"``; UserError if this installation has none."""
    checkout = HERE.parents[1]
    places = [HERE / kind, *([checkout / kind] if (checkout / "pyproject.toml").is_file() else [])]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"this installation of dbpkit has no {kind}. Install the wheel, or use a source checkout."
    )


def specs() -> dict[str, Path]:
    """Returns the published specs by name, such as ``cifar10-ddpm`` or ``train/cifar10-addt``."""
    root = folder("specs")
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.toml"))}


def find_spec(path: str | Path, *, or_run: bool = False) -> Path:
    """Returns the file of a spec: the path as it is, or else a published spec of that name.

    Args:
        path: what the user typed.
        or_run: whether it might have been meant for a run directory, which the error then says.

    Raises:
        UserError: if there is neither; the nearest name is suggested.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a spec is named by its path or its published name, not by {shown(path)}.")
    path = Path(os.fsdecode(path))
    if path.is_file():
        return path
    name = path.as_posix().removesuffix(".toml")
    known = specs()
    if name not in known:
        what, or_folder = ("spec or run", " or a run directory") if or_run else ("spec", "")
        is_not, guess = "does not exist.", nearest(name, known)
        if path.is_dir():
            is_not, guess = "is a directory.", ""
        raise UserError(
            f"{what} '{path}' {is_not}{guess} Give the path of a TOML file{or_folder},"
            " or the name of a published spec such as cifar10-ddpm (dbpkit list specs)."
        )
    return known[name]


def title(path: Path) -> str:
    """Returns the first words of a spec or a page: its comment or heading."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip("# "):
            return line.strip("# ")
    return ""


def pages() -> dict[str, Path]:
    """Returns the pages of the documentation by name, such as ``flags``.

    A name is the last word of the page's path, or the path where two pages end in the same word.
    """
    root = folder("docs")
    paths = {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.md"))}
    words = [p.stem for p in paths.values()]
    return {name if words.count(p.stem) > 1 else p.stem: p for name, p in paths.items()}


def find_page(name: str) -> Path:
    """Returns a page by its name or its path below ``docs``, such as ``flags`` or ``reference/flags.md``.

    Raises:
        UserError: if there is no such page; the nearest name is suggested.
    """
    found = pages()
    name = name.removesuffix(".md")
    root = folder("docs")
    paths = {p.relative_to(root).with_suffix("").as_posix(): p for p in found.values()}
    if name not in found and name not in paths:
        raise unknown_name("page", name, found)
    return found.get(name) or paths[name]


def write_template(path: Path) -> None:
    """Writes a commented spec for the user's own parts into a new file.

    Raises:
        UserError: if something of that name is there already.
    """
    there = UserError(f"'{path}' exists already and is left as it is. Choose another name.")
    if path.is_dir():
        raise there
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise there from error
