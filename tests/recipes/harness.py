"""A newcomer's file, planted in a package of its own and run as a newcomer would run it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "newcomer"


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
        command = [sys.executable, "-m", "dbpkit", *arguments, "--plugin", self.module]
        return self._run(command, self.folder)

    def contract(self, tests: str, keyword: str) -> str:
        """Runs tests over the registries with the recipe registered; at least one must run, all must pass."""
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            tests,
            "-k",
            keyword,
        ]
        said = self._run(command, ROOT)
        assert " passed" in said, said
        return said

    def python(self, code: str) -> str:
        """Runs a script after importing the recipe; returns what it prints."""
        return self._run([sys.executable, "-c", f"import {self.module}\n{code}"], self.folder)

    def _run(self, command: list[str], where: Path) -> str:
        paths = [str(self.folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
        env = {
            **clean,
            "PYTHONPATH": os.pathsep.join(paths),
            "DBPKIT_TEST_PLUGINS": self.module,
            "NO_COLOR": "1",
        }
        found = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=280)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout
