"""What every test file shares: the folder of real data.

The thing people get wrong: jaxtyping's import hook with beartype cannot be used on this package. Its
protocols are not ``runtime_checkable``, and beartype refuses every function annotated with one.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: tests share their machine
os.environ.setdefault("DBPKIT_NO_PLUGINS", "1")  # what else is installed here is not under test

import importlib
from pathlib import Path

import pytest

for plugin in os.environ.get("DBPKIT_TEST_PLUGINS", "").split():
    importlib.import_module(plugin)  # before tests are collected, so that registries have its parts


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the original data files; skips the test where ``DBPKIT_DATA`` does not name one."""
    root = os.environ.get("DBPKIT_DATA")
    if not root:
        pytest.skip("DBPKIT_DATA is not set")
    return Path(root)
