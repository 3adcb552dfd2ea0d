"""What several files of unit tests share."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.oracles import TinyClassifier


@pytest.fixture
def guides() -> Iterator[ModuleType]:
    """A module of the user's own, whose ``guide`` is a classifier with trainable weights."""
    made = ModuleType("users_guides")
    made.guide = TinyClassifier()
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]
