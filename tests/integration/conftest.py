"""Specs and helpers of the end-to-end tests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import as_toml, validate
from dbpkit.results.run_directory import RunDirectory
from tests.parts import TINY

REPOSITORY = Path(__file__).parents[2]

TINY_TOML = as_toml({**TINY, "knowledge": ["white_box", "dw_both"]})
"""The same as a file, for two attackers."""


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import paths such as tests.parts:data are found from the repository's root."""
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def tiny() -> Callable[..., EvaluationSpec]:
    """Makes the tiny spec with some top-level keys replaced."""
    return lambda **changes: validate({**TINY, **changes}, EvaluationSpec, "tiny")


@pytest.fixture
def tiny_toml(tmp_path: Path) -> Path:
    """The tiny spec as a file."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_TOML)
    return path


def comparable(run: Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Records by key, with the attacked image itself in place of the name of its file."""
    directory = RunDirectory(run)
    shards: dict[str, dict[int, torch.Tensor]] = {}
    found = {}
    for record in directory.records():
        record = dict(record)
        if file := record.pop("images", None):
            shards.setdefault(file, directory.read_images(file))
            record["pixels"] = shards[file][record["example"]].tolist()
        found[record["row"], record["tape"], record["example"]] = record
    return found


def environment() -> dict[str, str]:
    """The environment of a subprocess that finds the package and the tests."""
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}", "COLUMNS": "200"}
