"""What holds for every registered analysis, a newcomer's too: resuming, micro-batches, pure conclusions."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dbpkit.analyses.analysis import Unit, analyses, columns, records
from dbpkit.analyses.run import analyse, make_analysis
from dbpkit.experiment.execution import Execution
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import options_of
from tests.unit.analyses.linear import measured, spec, subject

ONE_STEP = [{"sampler": "one_step", "t_star": t, "steps": 20} for t in (0.05, 0.1, 0.15, 0.2, 0.3)]
SHORT: dict[str, dict[str, Any]] = {
    "compression": {"tapes": 1, "directions": 1, "attack_iterations": 2},
    "distances": {"attack_iterations": 2},
    "eot": {"counts": [1, 2], "iterations": 2, "draws": 2, "semi": 2, "stride": 16},
    "fuzziness": {"draws": 12, "iterations": 2, "eot": 2},
    "gradient_variance": {
        "configurations": ONE_STEP[:1],
        "forward": 2,
        "reverse": 2,
        "fresh": 2,
        "iterations": 2,
        "eot": 2,
        "draws": 2,
    },
    "ladder": {"draws": 2, "iterations": 2, "eot": 2},
    "landscape": {"grid": 3, "iterations": 2, "eot": 2},
    "law": {"configurations": ONE_STEP, "eps": ["0.1", "0.4"], "directions": 1, "iterations": 2},
    "randomness": {"draws": 3},
    "recommend": {"configurations": ONE_STEP[:2], "eps": ["0.1"], "confirm": 1, "others": 1, "iterations": 2},
    "shares": {"draws": 2, "tapes": 2, "iterations": 2, "eot": 2},
    "spectrum": {"draws": 3},
    "tapes": {"tapes": 3, "iterations": 2, "eot": 2},
    "thresholds": {"iterations": 2, "points": 4, "slices": 1, "samples": 4},
    "trajectories": {"repeats": 1, "iterations": 2, "eot": 2},
    "transfer": {"tapes": 2, "averaged": [1, 2], "unseen": 2, "iterations": 2},
}
"""What makes the package's own analyses short; others run with their defaults."""

DATA = {"name": "tests.unit.analyses.linear:images", "options": {"side": 4}}
"""48 values: one Jacobian is 48 rows."""
ROUNDING = 1e-4
"""Float32 sums in another order, divided by lengths of about 0.1."""

each = pytest.mark.parametrize("name", list(analyses))


class Killed(BaseException):
    """Stands for a kill between two units."""


def short(name: str) -> dict[str, Any]:
    """Options of a short run: 9 images are two or three units of batches."""
    images = {"images": 9} if "images" in options_of(analyses.get(name)) else {}
    return {**images, **SHORT.get(name, {})}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Returns the folder that an uninterrupted run of an analysis left; made once."""
    done: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp("whole") / "analyses" / name
            analyse(spec("ddpm", data=DATA), done[name].parents[1], {name: short(name)})
        return done[name]

    return made


def recorded(name: str, folder: Path) -> dict[Unit, Any]:
    """What every unit measured, read back from the records."""
    lines = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    found = {line["unit"]: line["measured"] for line in lines}
    units = make_analysis(name, short(name)).units(subject("ddpm", data=DATA))
    return {unit: found[str(unit)] for unit in units}


def flat(value: Any) -> list[float]:
    """All numbers in nested lists and dictionaries, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [x for v in value for x in flat(v)]
    return [float(value)] if isinstance(value, int | float) else []


@each
def test_killed_between_units_and_run_again_repeats_nothing(
    name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    made, chosen = spec("ddpm", data=DATA), {name: short(name)}
    said: list[str] = []

    def kill_before_the_second(share: float, what: str) -> None:
        said.append(what)
        if len(said) == 2:
            raise Killed

    with pytest.raises(Killed):
        analyse(made, tmp_path, chosen, progress=kill_before_the_second)
    folder = tmp_path / "analyses" / name
    before = (folder / "records.jsonl").read_bytes()
    assert len(before.splitlines()) == 1
    analyse(made, tmp_path, chosen)
    assert (folder / "records.jsonl").read_bytes().startswith(before)
    for file in ("records.jsonl", "result.json", "settings.json"):
        assert (folder / file).read_bytes() == (whole(name) / file).read_bytes()


@each
def test_run_again_measures_nothing(
    name: str, whole: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole(name)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(analyses.get(name), "measure", None)
    analyse(spec("ddpm", data=DATA), folder.parents[1], {name: short(name)})
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@each
def test_micro_batch_changes_only_rounding(name: str, whole: Callable[[str], Path]) -> None:
    analysis = make_analysis(name, short(name))
    own = subject("ddpm", micro_batch=5, data=DATA)
    done: dict[Unit, Any] = {}
    for unit in analysis.units(own):
        done[unit] = json.loads(json.dumps(analysis.measure(own._replace(done=done), unit)))
    expected = flat(list(recorded(name, whole(name)).values()))
    assert flat(list(done.values())) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)


@each
def test_conclusion_is_a_pure_function_of_the_records(name: str, whole: Callable[[str], Path]) -> None:
    analysis, found = make_analysis(name, short(name)), recorded(name, whole(name))
    untouched = copy.deepcopy(found)
    first = analysis.conclude(found)
    assert found == untouched
    assert repr(analysis.conclude(found)) == repr(first)
    if all(unit.of is None for unit in found):  # batches alone: images are put in order
        assert repr(analysis.conclude(dict(reversed(found.items())))) == repr(first)


@each
def test_conclusion_says_something_with_intervals_and_described_charts(
    name: str, whole: Callable[[str], Path]
) -> None:
    found = recorded(name, whole(name))
    conclusion = make_analysis(name, short(name)).conclude(found)
    assert all(sentence.strip() for sentence in conclusion.sentences)
    assert conclusion.sentences
    assert len({n.name for n in conclusion.numbers}) == len(conclusion.numbers)
    with_ends = [n for n in conclusion.numbers if n.low is not None]
    assert with_ends
    assert all(n.method and math.isfinite(n.value) and n.low <= n.high for n in with_ends)
    if all(unit.of is None for unit in found):  # intervals of refitted curves need not hold the fit
        assert all(n.low <= n.value <= n.high for n in with_ends)
    assert all(c.description and c.series for c in conclusion.charts)
    assert "NaN" not in (whole(name) / "result.json").read_text()


@each
def test_examples_are_measured_alike_alone_and_together(name: str, whole: Callable[[str], Path]) -> None:
    units = list(recorded(name, whole(name)))
    if any(unit.of is not None for unit in units) or name == "trajectories":  # its records are of a batch
        pytest.skip("its records are not one for each example")
    analysis, own = make_analysis(name, short(name)), subject("ddpm", data=DATA)
    alone = analysis.measure(own, Unit(range(1)))
    assert flat(alone[0]) == pytest.approx(
        flat(recorded(name, whole(name))[units[0]][0]), rel=ROUNDING, abs=ROUNDING
    )


@each
def test_wrong_options_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"analysis '{name}' has no option 'image'"):
        make_analysis(name, {"image": 3})
    if "images" in short(name):
        with pytest.raises(UserError, match="the spec has 12 examples"):
            analyse(spec(), tmp_path / "run", {name: {**short(name), "images": 13}}, Execution())


@each
def test_defaults_make_an_analysis_with_a_title_and_meanings(name: str) -> None:
    assert make_analysis(name, {}).title
    assert (analyses.get(name).__doc__ or "").strip()
    assert all(option.meaning for option in options_of(analyses.get(name)).values())


def test_more_images_go_on_from_the_records_and_fewer_take_them(tmp_path: Path) -> None:
    made = spec("ddpm", data=DATA)

    def run(folder: str, **options: Any) -> list[str]:
        analyse(made, tmp_path / folder, {"compression": {**short("compression"), **options}})
        lines = (tmp_path / folder / "analyses" / "compression" / "records.jsonl").read_text().splitlines()
        return [json.loads(line)["unit"] for line in lines]

    def result(folder: str) -> bytes:
        return (tmp_path / folder / "analyses" / "compression" / "result.json").read_bytes()

    assert run("grown", images=8) == ["0-7"]
    few = result("grown")
    assert run("grown", images=10) == ["0-7", "8-9"]
    run("whole", images=10)
    assert result("grown") == result("whole")
    assert run("grown", images=8) == ["0-7", "8-9"]
    assert result("grown") == few
    assert run("grown", images=8, tapes=2) == ["0-7"]
    assert (tmp_path / "grown" / "analyses" / "compression.1.old").is_dir()


def test_recommendation_of_more_images_begins_anew() -> None:
    """Which settings it attacks depends on all images."""
    assert not hasattr(analyses.get("recommend"), "grows")


def test_unit_is_named_by_what_it_measures_and_its_images() -> None:
    assert str(Unit(range(8))) == "0-7"
    assert str(Unit(range(8, 9), "classifier")) == "classifier 8-8"


@pytest.mark.parametrize("name", ["distances", "law", "recommend"])
def test_analysis_of_a_diffusion_chain_refuses_another_purifier_before_any_work(name: str) -> None:
    made = subject(data=DATA)
    filtered = made._replace(parts=made.parts._replace(model=SimpleNamespace(purifier=torch.nn.AvgPool2d(3))))
    with pytest.raises(
        UserError, match=f"analysis '{name}' needs a diffusion purifier, and '.*' has no levels"
    ):
        make_analysis(name, short(name)).units(filtered)


def test_two_units_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = analyses.get("compression")
    monkeypatch.setattr(kind, "units", lambda *_: [Unit(range(8)), Unit(range(8))])
    with pytest.raises(UserError, match="analysis 'compression' has two units called '0-7'"):
        analyse(spec(), tmp_path / "run", {"compression": {}})


def test_more_images_than_examples_name_the_analysis(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="analysis 'compression': 999 images were asked for, but the spec has"
    ):
        analyse(spec(), tmp_path / "run", {"compression": {"images": 999}})


def test_columns_of_records_are_what_was_measured() -> None:
    noise, other = NoisePlan.of(0, [4, 5]), NoisePlan.of(0, [6])
    last = records(other, right=torch.tensor([True]), place=torch.tensor([[3.0, 1.0]]), name=["c"])
    first = records(noise, right=torch.tensor([True, False]), place=torch.ones(2, 2), name=["a", "b"])
    assert json.loads(json.dumps(first))[0] == {"id": 4, "right": True, "place": [1.0, 1.0], "name": "a"}
    found = columns({Unit(range(2, 3)): last, Unit(range(2)): first})
    assert found["id"].tolist() == [4, 5, 6]
    assert found["right"].tolist() == [True, False, True]
    assert found["place"].shape == (3, 2)
    assert found["name"].tolist() == ["a", "b", "c"]


def test_units_are_handed_back_with_their_fields() -> None:
    analysis = make_analysis("law", short("law"))
    found = measured(analysis, subject("ddpm", data=DATA))
    assert {unit.images for unit in found} == {range(8), range(8, 9)}
    assert {str(unit.of) for unit in found} == {
        "classifier",
        *(f"one_step t*={s['t_star']} S=20" for s in ONE_STEP),
    }
