"""The hash of a spec: fields that come later leave it as it is, values that change do not."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dbpkit import RunDirectory, UserError
from dbpkit.experiment.spec import (
    DrawsSpec,
    EvaluationSpec,
    ExamplesSpec,
    KnowledgeSpec,
    PurifierSpec,
    ThreatSpec,
)
from dbpkit.foundation.spec import PartSpec, Strict, spec_hash
from dbpkit.training.spec import OptimiserSpec, TrainingSpec

FILE = Path(__file__).parents[1] / "golden" / "spec-0.1.0.json"
WRITTEN: dict[str, Any] = json.loads(FILE.read_text())


class LaterPurifier(PurifierSpec):
    """A purifier's spec with a field more."""

    patience: int = 3


class LaterSpec(EvaluationSpec):
    """A spec with a field more, and another in one of its tables."""

    purifier: LaterPurifier = LaterPurifier()
    courage: float = 0.5


class OtherDefault(LaterSpec):
    """The same after the new field's default has changed."""

    absent: ClassVar[Mapping[str, Any]] = {"courage": 0.5}
    courage: float = 0.75


class OtherSeed(EvaluationSpec):
    """A spec in which the default of an old field has changed."""

    seed: int = 7


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    shutil.copy(FILE, tmp_path / "run" / "spec.json")
    return RunDirectory(tmp_path / "run")


@pytest.mark.parametrize("model", [EvaluationSpec, LaterSpec])
def test_spec_of_0_1_0_keeps_table_and_hash_whatever_fields_are_added(
    model: type[EvaluationSpec],
) -> None:
    spec = model.model_validate(WRITTEN["spec"])
    assert spec.model_dump(mode="json") == WRITTEN["spec"]
    assert spec_hash(spec) == WRITTEN["hash"]


@pytest.mark.parametrize("model", [EvaluationSpec, LaterSpec])
def test_run_of_0_1_0_goes_on_and_grows(run: RunDirectory, model: type[EvaluationSpec]) -> None:
    before = FILE.read_bytes()
    run.claim(model.model_validate(WRITTEN["spec"]).model_dump(mode="json"))
    assert (run.path / "spec.json").read_bytes() == before
    more = {**WRITTEN["spec"], "examples": {**WRITTEN["spec"]["examples"], "count": 30}}
    run.claim(model.model_validate(more).model_dump(mode="json"))
    assert run.spec()["hash"] == WRITTEN["hash"]


def test_later_field_with_another_value_is_another_experiment(run: RunDirectory) -> None:
    spec = LaterSpec.model_validate({**WRITTEN["spec"], "courage": 0.9})
    assert spec_hash(spec) != WRITTEN["hash"]
    with pytest.raises(UserError, match=r"made with another spec: courage null -> 0\.9"):
        run.refuse_other(spec.model_dump(mode="json"))


def test_default_that_changes_is_another_experiment(run: RunDirectory) -> None:
    assert spec_hash(OtherSeed()) != spec_hash(EvaluationSpec())
    assert spec_hash(OtherSeed(seed=0)) == spec_hash(EvaluationSpec())
    spec = OtherDefault.model_validate(WRITTEN["spec"])
    assert spec_hash(spec) != WRITTEN["hash"]
    assert spec_hash(OtherDefault.model_validate({**WRITTEN["spec"], "courage": 0.5})) == WRITTEN["hash"]
    with pytest.raises(UserError, match=r"made with another spec: courage null -> 0\.75"):
        run.refuse_other(spec.model_dump(mode="json"))


def test_fields_that_came_later_stand_for_what_runs_without_them_were() -> None:
    """A failure here means: a default has changed. Write the old one into ``absent`` of its class."""
    spec = EvaluationSpec()
    table = spec.model_dump(mode="json")
    absent = {
        **{k: getattr(spec, k) for k in EvaluationSpec.model_fields.keys() - table.keys()},
        **{f"purifier.{k}": getattr(spec.purifier, k) for k in spec.purifier.left_out()},
        **{f"threat.{k}": getattr(spec.threat, k) for k in spec.threat.left_out()},
    }
    known = {"protocol": "one_shot", "analyses": {}, "purifier.name": "diffusion", "threat.options": {}}
    assert {k: v for k, v in absent.items() if k in known} == known


OF_AN_EVALUATION = (
    EvaluationSpec,
    PurifierSpec,
    ThreatSpec,
    ExamplesSpec,
    DrawsSpec,
    KnowledgeSpec,
    PartSpec,
)


@pytest.mark.parametrize("model", [*OF_AN_EVALUATION, TrainingSpec, OptimiserSpec])
def test_every_spec_says_which_keys_its_table_always_has(model: type[Strict]) -> None:
    """Otherwise the next field that it gets changes every hash."""
    assert model.always is not None
    assert model.always <= model.model_fields.keys()
    needed = {name for name, field in model.model_fields.items() if field.is_required()}
    assert needed <= model.always
