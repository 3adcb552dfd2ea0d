"""mkdocs.yml as data, and the site that mkdocs makes of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.docs.pages import ROOT


class _Loader(yaml.SafeLoader):
    """Leaves out what names code, such as the function that makes anchors."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def config() -> dict[str, Any]:
    """Returns what mkdocs.yml says."""
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)


def navigated(entries: Any) -> Iterator[str]:
    """Yields every page of the navigation, in its order."""
    if isinstance(entries, str):
        yield entries
    for entry in entries if isinstance(entries, list) else ():
        for below in entry.values() if isinstance(entry, dict) else (entry,):
            yield from navigated(below)


def built(folder: Path) -> tuple[Path, str]:
    """Builds the site into a folder, as `make docs` does; returns it and what mkdocs said."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr
