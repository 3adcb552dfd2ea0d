"""Recipes are planted afresh for every test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipes.harness import Recipe


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[str], Recipe]:
    """Returns a function that plants the recipe of a name."""
    return lambda name: Recipe.plant(name, tmp_path)
