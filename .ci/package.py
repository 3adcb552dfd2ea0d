"""Builds wheel and sdist, looks at what is in them, and runs the wheel on every Python that is installed.

``python .ci/package.py [DIR]``, with an interpreter that has the development requirements. DIR keeps what was
built. The Python that runs this has torch: there the installed wheel evaluates the embedded models on two
images. On the other ones all requirements of reading a run are installed, and the wheel reads the frozen run.
"""

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
FROZEN = ROOT / "tests" / "golden" / "run-schema-2"

PLACES = {"src/dbpkit/": "dbpkit/", "docs/": "dbpkit/docs/", "specs/": "dbpkit/specs/"}
"""Where a folder of the checkout lies in the wheel: all its files, and nothing else."""

BESIDE = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "pyproject.toml")
"""What an sdist has beside them."""

READING = ["annotated-types", "filelock", "jinja2", "numpy", "pydantic", "rich", "safetensors", "scipy"]
READING += ["tomli-w", "typer"]
"""What reading a run needs; the rest is torch and what computes or draws."""

BARE = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "DBPKIT_DATA")}
"""The environment without what would show a checkout or data to the installed package."""

MINORS = (11, 12, 13)
"""Versions 3.x that the package is for."""


def main(arguments: list[str]) -> None:
    """Builds, looks and runs; SystemExit says what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = copied(folder / "tree")
        sdist, wheel = built(tree, folder / "dist")
        looked_at(sdist, wheel)
        for minor, python in interpreters().items():
            tried(python, minor, wheel, folder / f"venv-{minor}")
        for path in (sdist, wheel) if arguments else ():
            shutil.copy(path, Path(arguments[0]))
        size = f"{wheel.stat().st_size / 2**20:.1f} MiB"
        print(f"{wheel.name}: {size}, sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}")


def copied(tree: Path) -> Path:
    """A copy of the files under version control alone, so that nothing else can get into the package."""
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    return tree


def tracked() -> list[str]:
    """The files under version control that are there."""
    listed = told("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def built(tree: Path, dist: Path) -> tuple[Path, Path]:
    """The sdist and the wheel that is made from it; a wheel from the tree itself has the same bytes."""
    when = told("git", "-C", str(ROOT), "log", "-1", "--format=%ct").strip()
    environment = {**BARE, "SOURCE_DATE_EPOCH": when}
    build = [sys.executable, "-m", "build", "--no-isolation"]
    run(*build, "--outdir", str(dist), str(tree), environment=environment)
    run(*build, "--wheel", "--outdir", str(dist / "again"), str(tree), environment=environment)
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    if wheel.read_bytes() != (dist / "again" / wheel.name).read_bytes():
        raise SystemExit("the wheel from the sdist is another one than the wheel from the sources.")
    return sdist, wheel


def looked_at(sdist: Path, wheel: Path) -> None:
    """Compares both with the files under version control."""
    files = tracked()
    expected = {
        place + name.removeprefix(folder)
        for folder, place in PLACES.items()
        for name in files
        if name.startswith(folder)
    }
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(about).decode())
    own = {name for name in names if ".dist-info/" not in name}
    complain("wheel", expected - own, own - expected)
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    complain("sdist", {*BESIDE, *(n for n in files if n.startswith(tuple(PLACES)))} - packed, set())
    if (
        metadata["Version"] != version()
        or f"version: {version()}\n" not in (ROOT / "CITATION.cff").read_text()
    ):
        raise SystemExit(
            f"METADATA, CITATION.cff and dbpkit.__version__ ({version()}) are not of one version."
        )


def version() -> str:
    """What the source says of itself, without importing it."""
    for node in ast.parse((ROOT / "src" / "dbpkit" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit("dbpkit has no __version__.")


def complain(what: str, missing: set[str], stray: set[str]) -> None:
    """Ends the program if there is anything to complain of."""
    for sets, says in ((missing, "lacks"), (stray, "has, and should not")):
        if sets:
            raise SystemExit(
                f"the {what} {says}: {', '.join(sorted(sets))}. See package-data in pyproject.toml."
            )


def interpreters() -> dict[int, str]:
    """An interpreter of each version that is installed, on the path or by pyenv; this one is among them."""
    found = {}
    for minor in MINORS:
        named = (shutil.which(f"python3.{minor}"), *by_pyenv(minor))
        works = (python for python in named if python and minor_of(python) == minor)
        if (python := next(works, None)) is not None:
            found[minor] = python
    return found | {sys.version_info.minor: sys.executable}


def by_pyenv(minor: int) -> Iterator[str]:
    """Interpreters of a version that pyenv has installed."""
    for python in sorted(Path("~/.pyenv/versions").expanduser().glob(f"3.{minor}.*/bin/python")):
        yield str(python)


def minor_of(python: str) -> int | None:
    """Which 3.x it is, if it runs."""
    asked = [python, "-c", "import sys, venv; print(sys.version_info.minor)"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return int(said)


def tried(python: str, minor: int, wheel: Path, folder: Path) -> None:
    """Installs the wheel into a virtual environment and runs what can run there, from an empty folder."""
    run(python, "-m", "venv", "--without-pip", str(folder))
    own = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", own, "install", "-q", "--no-compile"]
    pip.append("--disable-pip-version-check")
    whole = minor == sys.version_info.minor
    if not whole:
        run(*pip, "--only-binary", ":all:", "-c", str(ROOT / "constraints.txt"), *READING)
    run(*pip, "--no-deps", "--no-index", str(wheel))
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    if whole:  # the requirements of the environment that runs this
        (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(own, "-W", "error", "-m", "compileall", "-q", str(packages / "dbpkit"))
    (empty := folder / "empty").mkdir()
    program = str(folder / "bin" / "dbpkit")
    commands = [
        [program, "--version"],
        [own, "-m", "dbpkit", "docs"],
        [program, "show", str(FROZEN), "--json"],
    ]
    run(own, "-W", "error::DeprecationWarning:dbpkit", "-c", BY_ITSELF, folder=empty)
    if whole:
        demo = str(packages / "dbpkit" / "assets" / "demo.toml")
        small = [
            f"--set={leaf}" for leaf in ("examples.count=2", "purifier.steps=20", 'knowledge=["dw_both"]')
        ]
        commands.append([own, "-m", "dbpkit", "list"])
        commands.append([program, "evaluate", demo, "--out", "demo", "--quiet", *small])
    for command in commands:
        run(*command, folder=empty)
    print(f"Python 3.{minor}: {len(commands)} commands of the installed wheel ran")


BY_ITSELF = "import dbpkit, sys; assert dbpkit.__file__.startswith(sys.prefix), dbpkit.__file__"
"""Checks that it is the wheel that runs, and not a checkout."""


def told(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run(*command: str, environment: dict[str, str] = BARE, folder: Path | None = None) -> None:
    """Runs a command; SystemExit with what it printed if it fails."""
    done = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    main(sys.argv[1:])
