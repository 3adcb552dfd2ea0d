"""One small finished run, and its bundle."""

from pathlib import Path

import pytest

from dbpkit.bundles.packing import bundle
from tests.bundled import REPOSITORY, small_run


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return small_run(tmp_path_factory.mktemp("bundled") / "run")


@pytest.fixture(scope="session")
def packed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle."""
    return bundle(finished, tmp_path_factory.mktemp("packed") / "run.zip").path
