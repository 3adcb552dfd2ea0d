"""dbpkit: how robust a diffusion-purified classifier really is, why, and how to make it more robust.

Names are imported when they are used: what reads results needs no torch, which takes a second and 200 MB.
``__init__.pyi`` is the list of them, for type checkers and for this module alike.
"""

from dbpkit.foundation import program  # noqa: F401 - first: before the current folder can hide a module

# isort: split
import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from dbpkit.foundation import moved

moved.install()

__version__ = "0.1.0"


def _listed() -> dict[str, tuple[str, str]]:
    """Reads which module defines each public name, and under which name, from ``__init__.pyi``."""
    stub = ast.parse(Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8"))
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: (i.module or "", alias.name) for i in imports for alias in i.names}


_PLACES = _listed()
"""Module and name there of each public name."""

__all__ = sorted(_PLACES)  # noqa: PLE0605 - names of `_PLACES`


def __getattr__(name: str) -> Any:
    """Imports a public name, once."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dbpkit' has no attribute '{name}'")
    module, own = _PLACES[name]
    found = globals()[name] = getattr(importlib.import_module(module), own)
    return found


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package: importing a module at its old path, such as ``dbpkit.report``, hides no public name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _PLACES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
