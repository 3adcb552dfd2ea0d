"""What holds for every analysis of distances and compression: resuming, micro-batches, pure conclusions."""

import json
from pathlib import Path
from typing import Any

import pytest

from dbpkit.analyses.analysis import analyses
from dbpkit.analyses.run import analyse, make_analysis
from dbpkit.experiment.execution import Execution
from dbpkit.foundation.errors import UserError
from tests.unit.analyses.linear import measured, spec, subject

OPTIONS: dict[str, dict[str, Any]] = {
    "compression": {"images": 9, "tapes": 1, "directions": 1, "attack_iterations": 2},
    "distances": {"images": 9, "attack_iterations": 2},
    "randomness": {"images": 9, "draws": 3},
    "spectrum": {"images": 5, "draws": 3},
}
SMALL_IMAGES = {"name": "tests.unit.analyses.linear:images", "options": {"side": 4}}
"""48 values: one Jacobian is 48 rows."""
ROUNDING = 1e-4
"""Float32 sums in another order, divided by lengths of about 0.1."""

each = pytest.mark.parametrize("name", OPTIONS)


class Killed(BaseException):
    """Stands for a kill between two units."""


def numbers(value: Any) -> list[float]:
    """All numbers in nested lists and dictionaries, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [x for v in value for x in numbers(v)]
    return [float(value)] if isinstance(value, (int, float)) else []


@each
def test_killed_between_units_and_run_again_gives_the_identical_result(name: str, tmp_path: Path) -> None:
    made, chosen = spec("ddpm", data=SMALL_IMAGES), {name: OPTIONS[name]}
    analyse(made, tmp_path / "whole", chosen)
    calls: list[str] = []

    def kill_before_the_second(share: float, what: str) -> None:
        calls.append(what)
        if len(calls) == 2:
            raise Killed

    with pytest.raises(Killed):
        analyse(made, tmp_path / "cut", chosen, progress=kill_before_the_second)
    records = tmp_path / "cut" / "analyses" / name / "records.jsonl"
    before = records.read_text()
    assert len(before.splitlines()) == 1
    analyse(made, tmp_path / "cut", chosen)
    assert records.read_text().startswith(before)
    whole = tmp_path / "whole" / "analyses" / name / "result.json"
    assert (tmp_path / "cut" / "analyses" / name / "result.json").read_bytes() == whole.read_bytes()


@each
def test_micro_batch_changes_only_rounding(name: str) -> None:
    analysis = make_analysis(name, OPTIONS[name])
    found = [
        numbers(measured(analysis, subject("ddpm", micro_batch=size, data=SMALL_IMAGES))) for size in (5, 64)
    ]
    assert found[0] == pytest.approx(found[1], rel=ROUNDING, abs=ROUNDING)


@each
def test_conclude_is_a_pure_function_of_the_recorded_json(name: str) -> None:
    analysis = make_analysis(name, OPTIONS[name])
    units = measured(analysis, subject("ddpm", data=SMALL_IMAGES))
    recorded = json.dumps(units)
    first = analysis.conclude(json.loads(recorded)).as_json()
    shuffled = dict(reversed(json.loads(recorded).items()))
    assert analysis.conclude(shuffled).as_json() == first
    assert json.dumps(units) == recorded
    assert len(first["sentences"]) == 2
    with_ends = [n for n in first["numbers"] if n["low"] is not None]
    assert all(n["method"] for n in first["numbers"])
    assert with_ends
    assert all(n["low"] <= n["value"] <= n["high"] for n in with_ends)
    assert all(c["description"] and c["series"] for c in first["charts"])


@each
def test_examples_are_measured_alike_alone_and_together(name: str) -> None:
    one = make_analysis(name, {**OPTIONS[name], "images": 1})
    made = subject("ddpm", data=SMALL_IMAGES)
    alone = one.measure(made, "0-0")
    together = one.measure(made, "0-3")
    assert numbers(alone[0]) == pytest.approx(numbers(together[0]), rel=ROUNDING, abs=ROUNDING)


@each
def test_unknown_option_and_too_many_images_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"analysis '{name}' has no option 'image'"):
        make_analysis(name, {"image": 3})
    with pytest.raises(UserError, match="the spec has 12 examples"):
        analyse(spec(), tmp_path / "run", {name: {"images": 13}}, Execution())


@each
def test_default_options_are_registered_with_a_title(name: str) -> None:
    assert make_analysis(name, {}).title
    assert name in analyses
