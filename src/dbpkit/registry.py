"""Names for parts, so that a spec file can say ``sampler = "ddpm"`` or ``sampler = "my_module:make"``.

A part is one file with one ``@registry.register("name")``. The thing people get wrong: an import path
always contains a colon, a registered name never does.
"""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from dbpkit.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to parts of one kind and resolves import paths of the user's own.

    Args:
        kind: what the parts are, used in error messages (``"sampler"``).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files a part under ``name``.

        Raises:
            UserError: if the name is taken by another part or contains a colon.
        """
        if ":" in name:
            raise UserError(
                f"{self.kind} name '{name}' contains ':', which marks import paths. Choose another."
            )

        def file(part: T) -> T:
            if name in self._parts and self._parts[name] is not part:
                raise UserError(f"{self.kind} '{name}' is registered twice. Give the second another name.")
            self._parts[name] = part
            return part

        return file

    def get(self, name: str) -> T:
        """Returns the part called ``name``, or the one at the import path ``module:attribute``.

        Raises:
            UserError: if there is none; the nearest registered name is suggested.
        """
        if ":" in name:
            return import_path(name, self.kind)
        if name not in self._parts:
            raise unknown_name(self.kind, name, self._parts)
        return self._parts[name]

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def describe(self) -> dict[str, str]:
        """Returns every name with the first line of its part's docstring."""
        return {name: (self._parts[name].__doc__ or "").strip().split("\n")[0] for name in self}


def import_path(path: str, kind: str) -> Any:
    """Imports ``module:attribute``; the current directory is searched too.

    Raises:
        UserError: if the module or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    module = import_module(module_name, kind)
    if not hasattr(module, attribute):
        raise UserError(
            f"{kind} '{path}': module '{module_name}' has no '{attribute}'. It defines: "
            f"{', '.join(n for n in vars(module) if not n.startswith('_')) or 'nothing'}."
        )
    return getattr(module, attribute)


def import_module(name: str, kind: str = "plugin") -> ModuleType:
    """Imports a user's module by name, searching the current directory first.

    Raises:
        UserError: if it cannot be found or fails while it is imported.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{kind} module '{name}' cannot be imported ({error}). Run from its directory or install it."
        ) from error
    except Exception as error:
        raise UserError(
            f"{kind} module '{name}' fails on import: {type(error).__name__}: {error}."
        ) from error


def call_with_options(part: Callable[..., Any], options: Mapping[str, Any], what: str) -> Any:
    """Calls a part with a spec's options.

    Raises:
        UserError: if it does not accept them; errors inside the part pass through.
    """
    parameters = inspect.signature(part).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not open_ended:
            raise UserError(f"{what} has no option '{option}'. Available: {', '.join(parameters) or 'none'}.")
    needed = [
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if missing := [n for n in needed if n not in options]:
        raise UserError(f"{what} needs the option '{missing[0]}'. Give it in options.")
    return part(**options)


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Imports every module of a package once, so that each registers its part."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
