"""One small finished run for tests of bundles, fast because nothing is checked before it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dbpkit import Execution, evaluate
from dbpkit.checks import Checked
from dbpkit.cli.listing import REGISTRIES
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation import registry
from dbpkit.foundation.spec import validate
from tests.parts import TINY

REPOSITORY = Path(__file__).parents[1]

PARTS = {
    "classifier": "tests.parts:ChannelMean",
    "denoiser": "tests.parts:gaussian_denoiser",
    "data": "tests.parts:data",
}
"""The parts of the run, as a verifier names them."""

SMALL: dict[str, Any] = {
    **TINY,
    "examples": {"count": 5, "order": "file"},
    "knowledge": ["white_box", "dw_both"],
}


def small_run(out: Path, batch_size: int = 3, **changes: Any) -> Path:
    """Makes a run of five examples in batches of three, so that micro-batches cross examples."""
    with contextlib.chdir(REPOSITORY):
        spec = validate({**SMALL, **changes}, EvaluationSpec, "small")
        execution = Execution("cpu", batch_size=batch_size, micro_batch=4)
        evaluate(spec, out, execution, checks=lambda *_: Checked([], ()))
    return out


def forget_typed() -> None:
    """Forgets which import paths other tests of this process have typed."""
    registry._trusted.clear()
    for parts in REGISTRIES.values():
        getattr(parts, "_typed", set()).clear()


def command(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process."""
    from dbpkit.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["dbpkit", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run
