"""Installed packages that bring parts: they declare the entry-point group ``dbpkit.plugins``.

They are imported when a name is looked up that nobody has registered, and when parts are listed; a program
that meets known names alone imports none. Installing a package is what trusts it: no file chooses which
plugins load, and none is looked for in the current folder. One that fails is a warning that names its
package, and everything else goes on.
"""

import importlib.metadata
import logging
import os
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import NamedTuple

from dbpkit.foundation.errors import excerpt

log = logging.getLogger(__name__)

GROUP = "dbpkit.plugins"
"""Entry-point group; each entry names a module that registers parts when it is imported."""

SWITCH = "DBPKIT_NO_PLUGINS"
"""Environment variable: set to anything but 0, no installed package is asked for parts."""


class Plugin(NamedTuple):
    """An installed package that brings parts.

    Attributes:
        name: of its entry point.
        module: what is imported.
        package: name and version of what was installed.
        problem: why it brings nothing; empty if all is well.
    """

    name: str
    module: str
    package: str
    problem: str = ""

    def __str__(self) -> str:
        """What a list says of it."""
        return f"{self.module}, from {self.package}" + (f"; left out: {self.problem}" if self.problem else "")


_loaded: dict[str, Plugin] | None = None
"""What this process has loaded by name; None before the first look."""

_importing = False
"""Whether a plugin is being imported now."""

_visited: set[str] = set()
"""Folders that the search path ends with because the user named a module there."""


def load_plugins() -> dict[str, Plugin]:
    """Imports the plugins of installed packages, once in a process.

    Nothing is imported if the environment variable ``DBPKIT_NO_PLUGINS`` is set. A plugin that fails is
    logged as a warning and said in its ``problem``.

    Returns:
        Every plugin by the name of its entry point, in alphabetical order.

    Example:
        >>> from dbpkit import load_plugins
        >>> [name for name, plugin in load_plugins().items() if plugin.problem]
        []
    """
    global _loaded
    if _loaded is None:
        _loaded = {}  # now, because a plugin may look up names while it is imported
        if os.environ.get(SWITCH, "0") in ("", "0"):
            for package, entry in sorted(_declared(), key=lambda found: found[1].name):
                _loaded[entry.name] = _imported(entry, package, _loaded.get(entry.name))
    return _loaded


def is_importing() -> bool:
    """Whether a plugin is being imported now: what it registers must not take a name of this package."""
    return _importing


def search_last(folder: Path) -> None:
    """Ends the search path for modules with a folder in which the user named one."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # last, so that nothing in this folder hides an installed module
        _visited.add(str(folder))


def _declared() -> Iterator[tuple[str, EntryPoint]]:
    """Name and version of every package that brings plugins, with each; of two of a name, the first."""
    seen: set[str] = set()
    for package in importlib.metadata.distributions(path=_places()):
        try:
            entries = [entry for entry in package.entry_points if entry.group == GROUP]
            name, version = (package.metadata["Name"], package.version) if entries else ("", "")
        except Exception as error:  # what an installer left half done
            log.warning("an installed package cannot be asked for plugins: %s.", excerpt(error))
            continue
        if name not in seen:  # Python imports the first on its path, too
            yield from ((f"{name} {version}", entry) for entry in entries)
            seen.add(name)


def _places() -> list[str]:
    """The search path without the current folder, if Python put it first, and what a named module added."""
    here = os.path.realpath(".")
    first = sys.path[:1] if sys.path and os.path.realpath(sys.path[0] or ".") == here else []
    return [place for place in sys.path[len(first) :] if place not in _visited]


def _imported(entry: EntryPoint, package: str, same_name: Plugin | None) -> Plugin:
    """Imports a plugin from where packages are installed; says what went wrong if anything does."""
    plugin = Plugin(entry.name, entry.value, package)
    if same_name is not None:
        return _left_out(same_name, plugin, f"{same_name.package} has brought a plugin of this name")
    global _importing
    path, sys.path[:], _importing = list(sys.path), _places(), True
    try:
        entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what test libraries raise to skip a module
        return _left_out(plugin, plugin, f"{type(error).__name__}: {excerpt(error).rstrip('.')}")
    finally:
        _importing = False
        sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
    return plugin


def _left_out(listed: Plugin, plugin: Plugin, why: str) -> Plugin:
    """Warns that a plugin brings nothing; returns what is listed under its name."""
    log.warning(
        "plugin '%s' of %s is left out (%s). Update or uninstall that package, or set %s=1 to use none.",
        plugin.name,
        plugin.package,
        why,
        SWITCH,
    )
    return plugin._replace(problem=why) if listed is plugin else listed
