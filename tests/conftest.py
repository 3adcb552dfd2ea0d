"""What every test file shares: the folder of real data, and which files `make test-fast` leaves out.

The thing people get wrong: jaxtyping's import hook with beartype cannot be used on this package. Its
protocols are not ``runtime_checkable``, and beartype refuses every function annotated with one.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: tests share their machine
os.environ.setdefault("DBPKIT_NO_PLUGINS", "1")  # what else is installed here is not under test

import importlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

for plugin in os.environ.get("DBPKIT_TEST_PLUGINS", "").split():
    importlib.import_module(plugin)  # before tests are collected, so that registries have its parts


SLOW = re.compile(
    r"(fuzz|recipes|integration/(?!test_cli_start|test_evaluate|test_readme)|docs/test_(pages|specs)"
    r"|unit/(adapters|test_coverage|test_sanity|test_findings))"
)
"""Files, below this folder, of tests that take seconds each; `make test-fast` leaves them out."""

LIBRARIES = re.compile(r"\[(art|pyautoattack)-")
"""Cases of a test over all attacks that take longer than those of the package's own attacks."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what is in slow files, and the cases of slow libraries."""
    here = Path(__file__).parent
    for item in items:
        own = item.path.relative_to(here).as_posix() if item.path.is_relative_to(here) else ""
        if SLOW.match(own) or LIBRARIES.search(item.name):
            item.add_marker("slow")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a file draws while it is imported, such as weights of its models, is the same in every run."""
    if isinstance(collector, pytest.Module):
        seed()


def seed() -> None:
    """Sets the generator from which networks without weights of their own draw them."""
    import torch

    torch.manual_seed(0)  # noqa: TID251 - what is drawn in a test must not depend on the tests before it


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same generators, whichever ran before it."""
    seed()


@pytest.fixture(autouse=True)
def vouched() -> Iterator[None]:
    """What a test vouches for (``--trust``, import paths that it types) and its log end with the test."""
    from rich.logging import RichHandler

    from dbpkit.cli.listing import REGISTRIES
    from dbpkit.foundation import registry

    root = logging.getLogger()
    level, trusting = root.level, registry._trusting
    paths = [registry._trusted, *(parts._typed for parts in REGISTRIES.values() if hasattr(parts, "_typed"))]
    before = [set(each) for each in paths]
    yield
    for now, then in zip(paths, before, strict=True):
        now.intersection_update(then)
        now.update(then)
    registry._trusting = trusting
    for handler in [each for each in root.handlers if isinstance(each, RichHandler)]:
        root.removeHandler(handler)  # it prints on a stream that the test has closed
        root.setLevel(level)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the original data files; skips the test where ``DBPKIT_DATA`` does not name one."""
    root = os.environ.get("DBPKIT_DATA")
    if not root:
        pytest.skip("DBPKIT_DATA is not set")
    return Path(root)


@pytest.fixture
def guides() -> Iterator[ModuleType]:
    """A module of the user's own, whose ``guide`` is a classifier with trainable weights."""
    from tests.oracles import TinyClassifier

    made = ModuleType("users_guides")
    made.guide = TinyClassifier()
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]
