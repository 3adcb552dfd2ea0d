"""A newcomer's file, planted in a package of its own and run as a newcomer would run it."""

import itertools
import multiprocessing
import os
import shutil
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.recipes import child

ROOT = Path(__file__).parents[2]
PACKAGE = "newcomer"
_numbers = itertools.count()


@dataclass(frozen=True)
class Recipe:
    """One file of ``docs/recipes``, copied into the package ``newcomer`` below ``folder``."""

    name: str
    folder: Path

    @classmethod
    def plant(cls, name: str, folder: Path) -> "Recipe":
        package = folder / PACKAGE
        package.mkdir()
        (package / "__init__.py").touch()
        shutil.copy(ROOT / "docs" / "recipes" / f"{name}.py", package)
        return cls(name, folder)

    @property
    def module(self) -> str:
        """What ``--plugin`` takes."""
        return f"{PACKAGE}.{self.name}"

    @property
    def lines(self) -> int:
        """Lines of the file, all of them."""
        return len((ROOT / "docs" / "recipes" / f"{self.name}.py").read_text(encoding="utf-8").splitlines())

    def dbpkit(self, *arguments: str) -> str:
        """Runs a command of dbpkit with the recipe as a plugin; returns what it prints."""
        return self._run("dbpkit", [*arguments, "--plugin", self.module], self.folder)

    def contract(self, tests: str, keyword: str) -> str:
        """Runs tests over the registries with the recipe registered; at least one must run, all must pass."""
        said = self._run("pytest", ["-p", "no:cacheprovider", "-p", "no:xdist", tests, "-k", keyword], ROOT)
        assert " passed" in said, said
        return said

    def python(self, code: str) -> str:
        """Runs a script after importing the recipe; returns what it prints."""
        return self._run("python", [f"import {self.module}\n{code}"], self.folder)

    def _run(self, kind: str, arguments: list[str], where: Path) -> str:
        """Runs a process of `child` and returns what it prints; it must end well."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
        env = {**clean, "DBPKIT_TEST_PLUGINS": self.module, "NO_COLOR": "1"}
        paths = [str(where), str(self.folder), str(ROOT / "src")]
        said = self.folder / f"said-{next(_numbers)}"
        process = _forks().Process(
            target=child.run, args=(kind, arguments, str(where), paths, env, str(said))
        )
        process.start()
        process.join(280)
        if process.is_alive():
            process.kill()
            process.join()
        out, err = (Path(f"{said}.{stream}").read_text(encoding="utf-8") for stream in ("out", "err"))
        assert process.exitcode == 0, out + err
        return out


def _forks() -> ForkServerContext:
    """Where processes come from: one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(child.LIBRARIES)
    return context
