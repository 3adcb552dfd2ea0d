"""Names for parts, so that a spec file can say ``sampler = "ddpm"`` or ``sampler = "my_module:make"``.

A part is one file with one ``@registry.register("name")``. An import path always contains a colon, a
registered name never does. A name that is not there makes installed packages bring their parts, once
(`dbpkit.foundation.plugins`). The thing people get wrong: who chose the name. `Registry.resolve` follows
import paths and is for what the user typed; `Registry.get` never does and is for what came out of a file.
"""

import contextlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from dbpkit.foundation.errors import UserError, excerpt, shown, unknown_name
from dbpkit.foundation.options import call_with_options as call_with_options
from dbpkit.foundation.plugins import is_importing, load_plugins, search_last

T = TypeVar("T")

KINDS = (
    "adversaries",
    "analyses",
    "attacks",
    "checks",
    "classifiers",
    "data",
    "denoiser-adapters",
    "denoisers",
    "gradients",
    "layouts",
    "losses",
    "networks",
    "noise-levels",
    "objectives",
    "perturbations",
    "protocols",
    "purifiers",
    "samplers",
    "threats",
    "knowledge",
    "specs",
    "plugins",
)
"""What a spec can name; `dbpkit.cli.listing` has the parts of each kind."""

_trusted: set[str] = set()
"""Import paths that the user typed to vouch for them; see `trust`."""

_trusting = False
"""Whether files of models may name code, and be programs; see `trust_files`."""

_PLAIN = re.compile(r"[\w.]+:\w+")
"""An import path that can be shown as a command."""

_reading: ContextVar[tuple[str, str, bool]] = ContextVar("reading", default=("", "", False))
"""The file whose names are being resolved, what the user can do, and whether they trust the file with import
paths; empty while names are the user's own."""


class Registry(Generic[T]):
    """Maps names to parts of one kind; import paths are followed only if the user typed them.

    Args:
        kind: what the parts are, used in error messages (``"sampler"``).
        others: modules beside the kind's own that register parts; they are imported at the first look.
    """

    def __init__(self, kind: str, others: Iterable[str] = ()) -> None:
        self.kind = kind
        self._others = list(others)
        self._parts: dict[str, T] = {}
        self._typed: set[str] = set()

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
            if is_importing():
                self._complete()
            if name in self._parts and self._parts[name] is not part:
                raise UserError(f"{self.kind} '{name}' is registered twice. Give the second another name.")
            self._parts[name] = part
            return part

        return file

    def get(self, name: str) -> T:
        """Returns the part called ``name``, which a file may have chosen: import paths are not followed.

        One that the user typed in this process (`resolve`, `trust`) is known, and counts as a name.

        Raises:
            UserError: if there is none; the nearest registered name is suggested.
        """
        if not isinstance(name, str):
            raise UserError(f"a {self.kind} is named by text, not by {shown(name)}.")
        if name in self._typed or name in _trusted:
            trusted: T = import_path(name, self.kind)
            return trusted
        if ":" in name:
            if _reading.get()[2]:
                followed: T = import_path(name, self.kind)
                return followed
            raise UserError(self._refusal(name))
        if name not in self:
            raise unknown_name(self.kind, excerpt(name, 100), self._parts)
        return self._parts[name]

    def resolve(self, name: str) -> T:
        """Returns the part called ``name`` or at the import path ``module:attribute``, typed by the user.

        Inside `names_of` a file chose the name, and this is `get`.

        Raises:
            UserError: if there is none; the nearest registered name is suggested.
        """
        if not isinstance(name, str) or ":" not in name or _reading.get()[0]:
            return self.get(name)
        part: T = import_path(name, self.kind)
        self._typed.add(name)
        return part

    def _refusal(self, name: str) -> str:
        where, remedy, _ = _reading.get()
        if not remedy and _PLAIN.fullmatch(name):
            remedy = f"If you trust it: --plugin {name}, or dbpkit.trust('{name}') in Python."
        return (
            f"{self.kind} '{excerpt(name, 100)}' is an import path that {where or 'a file'} names, and those"
            f" are followed only where you type them. {remedy}".rstrip()
        )

    def _complete(self) -> None:
        """Imports the other modules of this package that register parts."""
        while self._others:
            importlib.import_module(self._others.pop())

    def __contains__(self, name: str) -> bool:
        self._complete()
        if name not in self._parts:
            load_plugins()
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        self._complete()
        load_plugins()
        return iter(sorted(self._parts))

    def describe(self) -> dict[str, str]:
        """Returns every name with the first line of its part's docstring."""
        return {name: (self._parts[name].__doc__ or "").strip().split("\n")[0] for name in self}


def trust(path: str) -> None:
    """Admits the import path ``module:attribute`` wherever a file names it, for the rest of the process.

    Raises:
        UserError: if the module or the attribute does not exist.
    """
    if not isinstance(path, str) or ":" not in path:
        raise UserError(f"{shown(path)} is not an import path. Write module:attribute.")
    import_path(path, "part")
    _trusted.add(path)


def trust_files() -> None:
    """Lets files of models name code and be programs, for the rest of the process; what ``--trust`` says."""
    global _trusting
    _trusting = True


def is_trusting() -> bool:
    """Whether files of models may name code and be programs."""
    return _trusting


@contextlib.contextmanager
def names_of(where: str, remedy: str = "", *, follows: bool = False) -> Iterator[None]:
    """Inside the block a file chose all names: no import path is followed that the user has not typed.

    Args:
        where: the file.
        remedy: what the user can do, in a sentence; naming the path themselves if not given.
        follows: whether the user said that the file may name import paths.
    """
    token = _reading.set((where, remedy, follows))
    try:
        yield
    finally:
        _reading.reset(token)


def import_path(path: str, kind: str) -> Any:
    """Imports ``module:attribute``; the current directory is searched last. Only for what the user typed.

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
    """Imports a module that the user named. The current directory is searched too, after all others.

    Raises:
        UserError: if it cannot be found, fails while it is imported, or is hidden by another of its name.
    """
    if not all(name.split(".")) or "/" in name or "\\" in name:
        raise UserError(
            f"{kind} module '{excerpt(name, 100)}' cannot be imported: the name of a module has single"
            " dots and no slash, as in my_package.my_module."
        )
    here = Path.cwd()
    search_last(here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{kind} module '{name}' cannot be imported ({error}). Run from its directory or install it."
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what test libraries raise to skip a module
        said = excerpt(error, 300)
        raise UserError(f"{kind} module '{name}' fails on import: {type(error).__name__}: {said}.") from error
    _refuse_hidden(name, module, here, kind)
    return module


def _refuse_hidden(name: str, module: ModuleType, here: Path, kind: str) -> None:
    """Raises UserError if a module of this name lies here too, and an installed one was imported."""
    top = name.partition(".")[0]
    own = [p for p in (here / f"{top}.py", here / top / "__init__.py") if p.is_file()]
    found = getattr(sys.modules.get(top, module), "__file__", None)
    if own and (found is None or not any(p.samefile(found) for p in own if Path(found).exists())):
        raise UserError(
            f"{kind} module '{name}' is '{own[0]}', but '{found or 'one built into Python'}' has the same"
            " name and is found first. Rename yours."
        )


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Imports every module of a package once, so that each registers its part."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
