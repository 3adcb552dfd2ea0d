"""The ladder against closed forms of an affine purifier, and its arithmetic against numbers made by hand."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from dbpkit.analyses.analysis import PurifierError, Unit
from dbpkit.analyses.ladder import Ladder
from dbpkit.analyses.run import make_analysis
from dbpkit.analyses.tools.rungs import CHAIN, FILTER, NOISE, NOTHING, ONE, OTHER, Rung, climbed, ladder
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.errors import UserError
from dbpkit.purification import Purifier
from dbpkit.purification.filters import BPDA_LIKE
from tests.docs.pages import ROOT
from tests.unit.analyses import linear, stubs
from tests.unit.analyses.linear import SIGMA, VARIANCE

DATA = {"name": "tests.unit.analyses.linear:images", "options": {"side": 4}}
OWN = "tests.unit.analyses.test_ladder:sharper"


def sharper() -> Any:
    """The ideal denoiser of data that vary more."""
    return linear.gaussian(4 * VARIANCE)


def rungs(subject: Any, **options: Any) -> list[Rung]:
    return [u.of for u in Ladder(images=1, **options).units(subject)]


def test_default_rungs_go_from_the_classifier_to_the_chain() -> None:
    found = rungs(linear.subject("ddpm", data=DATA))
    assert [r.role for r in found] == [NOTHING, NOISE, FILTER, ONE, CHAIN]
    assert [r.role for r in rungs(linear.subject("one_step", data=DATA))] == [NOTHING, NOISE, FILTER, ONE]


def test_every_rung_starts_from_the_same_noise() -> None:
    """A one-call rung is the affine map of the noisy image that the rung with noise alone shows."""
    subject = linear.subject("ddpm", data=DATA)
    x, _, noise = subject.examples(range(4))
    by_role = {r.role: climbed(subject, r) for r in rungs(subject)}
    noisy = by_role[NOISE].purify(x, noise)
    one = by_role[ONE].parts.model.purifier
    assert isinstance(one, Purifier)
    assert one.sampler.levels[0] == pytest.approx(SIGMA, rel=1e-4)
    theta = VARIANCE / (VARIANCE + SIGMA**2)
    inside = (noisy > 0) & (noisy < 1)  # noise alone is clipped to pixels
    expected = theta * noisy + (1 - theta) / 2
    assert torch.allclose(one(x, noise=noise)[inside], expected[inside], atol=1e-5)
    assert float(inside.double().mean()) > 0.9


def test_fixed_accuracy_of_one_call_is_that_of_the_linear_optimum() -> None:
    """With the noise known the model is linear: PGD reaches the corner, and a margin says who falls."""
    subject = linear.subject("one_step", data=DATA, threat={"eps": "0.009"})
    table = [{"sampler": "one_step", "t_star": 0.1, "steps": 50, "options": {"clip": False}, "clamp": False}]
    analysis = Ladder(images=12, draws=4, tapes=1, iterations=20, rungs=[{"name": "identity"}, *table])
    measured = stubs.measure_all(analysis, subject)
    one = {r["id"]: r for unit, found in measured.items() if unit.of.role == ONE for r in found}
    x, y, noise = subject.examples(range(12))
    means = subject.purify(x, noise).mean(dim=(2, 3))
    theta = VARIANCE / (VARIANCE + SIGMA**2)
    own = means.gather(1, y[:, None])
    others = means.scatter(1, y[:, None], -torch.inf).amax(dim=1, keepdim=True)
    stands = ((own - others)[:, 0] > 2 * theta * 0.009).tolist()
    assert [one[i]["fixed"] == 1.0 for i in noise.example_ids.tolist()] == stands
    assert 0 < sum(stands) < 12


def test_rung_without_noise_is_the_same_whoever_attacks() -> None:
    subject = linear.subject("ddpm", data=DATA)
    measured = stubs.measure_all(Ladder(images=6, draws=3, iterations=3), subject)
    alone = [r for unit, found in measured.items() if unit.of.role == NOTHING for r in found]
    assert all(r["white_box"] == r["fixed"] for r in alone)
    assert {r["clean"] for r in alone} <= {0.0, 1.0}


def test_own_denoiser_of_a_rung_is_used() -> None:
    subject = linear.subject("ddpm", data=DATA)
    one = {"sampler": "one_step", "t_star": 0.1, "steps": 50}
    own, other = ladder(subject, [one, {**one, "denoiser": OWN, "label": "sharper"}])
    assert (own.role, other.role, other.name) == (ONE, OTHER, "sharper")
    assert climbed(subject, other).parts.model.purifier.denoiser.variance == 4 * VARIANCE
    assert climbed(subject, own).parts.model.purifier.denoiser.variance == VARIANCE


def test_filter_with_another_gradient_says_so_in_every_table() -> None:
    subject = linear.subject("ddpm", data=DATA)
    _, found = rungs(subject, rungs=[{"name": "identity"}, {"name": "bit_depth"}])
    assert found.name == f"bit_depth ({BPDA_LIKE})"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [{"name": "noise_only", "options": {"t_star": 0.05}}, {"sampler": "one_step", "t_star": 0.1}],
            r"compares at equal noise, and 'noise_only t_star=0.05' starts at level 0.17",
        ),
        ([{"name": "identity"}], "ladder compares rungs. Give at least two of them"),
        ([{"name": "identity"}, {"name": "identity"}], "rungs: 'identity' is listed twice"),
        ([{"name": "identity"}, {"name": "idntity"}], "unknown purifier 'idntity'. Did you mean 'identity'"),
        ([{"name": "identity"}, 3], "rungs must be a list with each entry a table"),
        ([{"name": "identity"}, {"name": "noise_only", "denoiser": 3}], r"rungs\[1\]"),
    ],
)
def test_ladder_that_cannot_be_climbed_is_refused_before_any_work(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rungs(linear.subject("ddpm", data=DATA), rungs=given)


def test_spec_without_a_chain_needs_rungs() -> None:
    subject = linear.subject("ddpm", data=DATA)
    filtered = climbed(subject, ladder(subject, [{"name": "identity"}, {"name": "median"}])[1])
    with pytest.raises(PurifierError, match="analysis 'ladder' needs a diffusion purifier"):
        rungs(filtered)


ROLES = {"alone": NOTHING, "noise": NOISE, "median": FILTER, "blind": OTHER, "one": ONE, "chain": CHAIN}


def concluded(**white: list[float]) -> Any:
    """A conclusion of made-up records, two units a rung; clean is 1 and fixed half of the white box."""
    measured = {}
    for name, right in white.items():
        rung = Rung(name, ROLES[name], PurifierSpec())
        for part in (range(2, len(right)), range(2)):
            measured[Unit(part, rung)] = [
                {"id": i, "clean": 1.0, "white_box": right[i], "fixed": right[i] / 2} for i in part
            ]
    return stubs.numbers(Ladder().conclude(measured))


def test_each_rung_is_compared_with_the_one_below_image_by_image() -> None:
    noise, one = [0.0, 0.5, 0.0, 0.5], [1.0, 0.5, 0.0, 0.5]
    found = concluded(
        alone=[0.0] * 4,
        noise=noise,
        median=[1.0, 1.0, 0.0, 0.5],
        blind=[1.0, 0.5, 0.0, 0.0],
        one=one,
        chain=one,
    )
    expected = {
        "white box: noise (noise minus alone)": 0.25,
        "white box: denoising (blind minus noise)": 0.125,
        "white box: the spec's denoiser instead of the other one (one minus blind)": 0.125,
        "white box: diffusion (chain minus one)": 0.0,
        "white box: a filter (median minus noise)": 0.375,
        "all noise known: noise (noise minus alone)": 0.125,
        "without an attack: diffusion (chain minus one)": 0.0,
        "white box, median": 0.625,
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected)
    differences = [n for name, n in found.items() if " minus " in name]
    assert all(n.low < n.value < n.high and n.examples == 4 for n in differences)


def test_parts_add_up_to_the_chain() -> None:
    generator = np.random.default_rng(0)  # noqa: TID251 - made-up accuracies
    white = {name: generator.integers(0, 11, 50) / 10 for name in ("alone", "noise", "one", "chain")}
    found = concluded(**{name: values.tolist() for name, values in white.items()})
    parts = [n.value for name, n in found.items() if name.startswith("white box: ")]
    assert sum(parts) == pytest.approx(white["chain"].mean() - white["alone"].mean())


@pytest.mark.parametrize(("chain", "holds"), [(1.0, True), (0.0, False), (0.5, None)])
def test_claim_that_the_chain_is_worth_more_is_judged_by_the_interval(
    chain: float, holds: bool | None
) -> None:
    found = concluded(noise=[0.0] * 40, one=[0.5] * 40, chain=[chain] * 40)
    assert found["white box: diffusion (chain minus one)"].holds is holds
    assert found["without an attack: diffusion (chain minus one)"].holds is None


def test_drawn_start_needs_rungs_of_its_own() -> None:
    subject = linear.subject(
        "ddpm", data=DATA, purifier={"sampler": "ddpm", "steps": 50, "t_star": [0.05, 0.15]}
    )
    with pytest.raises(UserError, match="'ladder' compares purifiers at one noise level"):
        rungs(subject)


def test_bad_option_says_what_is_expected() -> None:
    with pytest.raises(UserError, match="'ladder': eot must be a whole number of at least 1"):
        make_analysis("ladder", {"eot": 0})


def test_finding_quotes_the_recorded_accuracies() -> None:
    found = json.loads((ROOT / "benchmarks/results/ladder.json").read_text())["t_star 0.1"]
    text = (ROOT / "docs/evidence/findings.md").read_text(encoding="utf-8")
    quoted = 0
    for name, ends in found["numbers"].items():
        if " minus " not in name:
            value, low, high = (100 * end for end in ends)
            quoted += f"{value:.1f} ({low:.1f} to {high:.1f})" in text
    assert found["images"] == 128
    assert quoted == len([n for n in found["numbers"] if " minus " not in n]) == 18
