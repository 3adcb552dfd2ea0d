"""An evaluation whose classifier runs out of memory has the records of one that does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dbpkit import EvaluationSpec, Execution, UserError, evaluate
from tests.integration.conftest import comparable
from tests.parts import ChannelMean

MOST = 3
"""Rows that fit."""


class Tight(ChannelMean):
    """Channel means that run out of memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits; OutOfMemoryError above three rows."""
        if len(x) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)


def test_records_are_those_of_a_run_with_enough_memory(
    tiny: Callable[..., EvaluationSpec], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = tiny(classifier=f"{__name__}:Tight", examples={"count": 3}, knowledge=["white_box"])
    evaluate(spec, tmp_path / "tight", Execution("cpu", micro_batch=8), checks=lambda *_: _nothing())
    evaluate(spec, tmp_path / "ample", Execution("cpu", micro_batch=2), checks=lambda *_: _nothing())
    assert comparable(tmp_path / "tight") == comparable(tmp_path / "ample")
    assert not any("error" in r for r in comparable(tmp_path / "tight").values())
    assert any("ran out of memory; going on with" in message for message in caplog.messages)


def test_fixed_rows_that_do_not_fit_stop_the_run_with_a_sentence(
    tiny: Callable[..., EvaluationSpec], tmp_path: Path
) -> None:
    spec = tiny(classifier=f"{__name__}:Tight", examples={"count": 3}, knowledge=["white_box"])
    execution = Execution("cpu", micro_batch=8, deterministic=True)
    with pytest.raises(UserError, match=r"8 rows in one call .* Lower --micro-batch or --memory"):
        evaluate(spec, tmp_path, execution, checks=lambda *_: _nothing())


def _nothing():
    from dbpkit import Checked

    return Checked([], ())
