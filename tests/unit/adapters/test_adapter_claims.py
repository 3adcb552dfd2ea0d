"""What a library claims and what we find: the flag, and the way from a spec to a record."""

from pathlib import Path
from typing import Any

import pytest

from dbpkit import EvaluationSpec, evaluate
from dbpkit.attacks import attacks
from dbpkit.results.flags import record_flags
from dbpkit.results.run_directory import RunDirectory


def record(example: int, claimed: bool | None, right: int, draws: int = 10) -> dict[str, Any]:
    """A record whose image is right on ``right`` of its draws."""
    said = {} if claimed is None else {"claimed_success": claimed}
    predicted = [1] * right + [0] * (draws - right)
    return {"row": "white_box", "tape": 0, "example": example, "label": 1, "predicted": predicted, **said}


def claims(*records: dict[str, Any]) -> list[str]:
    return [f.message for f in record_flags(records) if f.name == "claim_disagrees"]


def test_claim_flag_counts_both_kinds_of_disagreement() -> None:
    """Claimed, right on 8 of 10; unclaimed, wrong on 7 of 10; the others agree. (8 + 3 + 2 + 9) / 40."""
    (message,) = claims(
        record(0, True, 8), record(1, False, 3), record(2, True, 2), record(3, False, 9), record(4, None, 9)
    )
    assert "claims success on 50.0% of 4 images, report draws leave 55.0% right" in message
    assert "1 claimed images are right on most draws, 1 images without a claim are wrong on most" in message


def test_claim_flag_is_a_warning_about_its_row() -> None:
    (flag,) = [f for f in record_flags([record(0, True, 8)]) if f.name == "claim_disagrees"]
    assert (flag.severity, flag.row) == ("warning", "white_box")


@pytest.mark.parametrize(("claimed", "right"), [(True, 5), (True, 0), (False, 5), (False, 10), (None, 10)])
def test_claim_flag_agreement_an_even_split_or_no_claim_is_silent(claimed: bool | None, right: int) -> None:
    assert not claims(record(0, claimed, right))


def test_adapters_are_registered_attacks() -> None:
    assert {"foolbox", "art", "pyautoattack"} <= set(attacks)


def test_evaluate_adapted_attack_records_its_claim_and_its_cost(tmp_path: Path) -> None:
    """Three gradients; each asks for logits and then makes its graph. One query more is the claim."""
    pytest.importorskip("foolbox")
    spec = EvaluationSpec.model_validate(
        {
            "data": "tests.parts:data",
            "classifier": "tests.parts:ChannelMean",
            "denoiser": "tests.parts:gaussian_denoiser",
            "purifier": {"sampler": "one_step", "steps": 1000},
            "threat": {"norm": "linf", "eps": "16/255"},
            "attacks": [{"name": "foolbox", "options": {"iterations": 3, "eot": 2}}],
            "knowledge": ["white_box"],
            "examples": {"count": 3},
            "draws": {"report": 4, "select": 2},
            "seed": 0,
        }
    )
    evaluate(spec, tmp_path / "run")
    records = [r for r in RunDirectory(tmp_path / "run").records() if r["row"] in ("white_box", "undefended")]
    assert len(records) == 6
    for r in records:
        assert isinstance(r["claimed_success"], bool)
        assert len(r["loss"]) == 2
        assert r["excess"] <= 1e-5
        eot = 2 if r["row"] == "white_box" else 1
        assert r["gradient_passes"] == 3 * eot
        assert r["forward_passes"] == (3 + 3 + 1 + 2) * eot  # logits, graphs, Foolbox's claim, two losses
