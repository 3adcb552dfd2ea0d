"""Thresholds against linear classifiers, caps against their integral, slopes against scipy."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import spearmanr

from dbpkit.analyses.analysis import Subject, Unit
from dbpkit.analyses.run import analyse, make_analysis
from dbpkit.analyses.thresholds import KINDS, Thresholds, cap_fraction, fit_slope
from dbpkit.analyses.tools.boundary import finite, first_change, margins
from dbpkit.experiment.build import build
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import validate
from tests.oracles import TinyClassifier, uniform

PARTS = {
    "data": "tests.parts:data",
    "classifier": "tests.parts:ChannelMean",
    "denoiser": "tests.parts:gaussian_denoiser",
    "purifier": {"sampler": "one_step"},
}
OPTIONS = {"images": 12, "iterations": 2, "longest": 2.0, "slices": 2, "samples": 8}
SIZE = 3 * 8 * 8


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> EvaluationSpec:
    monkeypatch.chdir(Path(__file__).parents[3])
    return validate(PARTS, EvaluationSpec, "tiny")


@pytest.fixture
def subject(spec: EvaluationSpec) -> Subject:
    return Subject(spec, build(spec))


def distance(x: torch.Tensor) -> torch.Tensor:
    """|w.x + b| / ||w|| of ChannelMean: the gap of two channel means over the norm of its gradient."""
    top = x.mean(dim=(2, 3)).topk(2).values
    return (top[:, 0] - top[:, 1]) / math.sqrt(2 / 64)


def test_scan_goes_on_where_no_image_is(subject: Subject) -> None:
    """A ray of length 60 in 192 pixels moves each by 4; outside an analysis such pixels are refused."""
    x, _, noise = subject.examples(range(2))
    eta = torch.ones_like(x) / math.sqrt(SIZE)
    found = first_change(lambda z: subject.logits(z, noise).argmax(1), x, eta, 60.0, 3)
    assert found.shape == (2,)
    with pytest.raises(UserError, match=r"pixels must be in \[0, 1\]"):
        subject.parts.model(x + 60 * eta, noise=noise)


def test_first_change_of_linear_classifier_is_its_distance() -> None:
    w, x = uniform(5, seed=1, low=-1), uniform(4, 5, 1, 1, seed=2)
    eta = -w / w.norm()
    found = first_change(
        lambda z: (z.flatten(1) @ w > -3).long(), x, eta.view(1, 5, 1, 1).expand_as(x), 10.0, 24, 30
    )
    assert torch.allclose(found, (x.flatten(1) @ w + 3) / w.norm(), rtol=1e-6)


def test_first_change_out_of_reach_is_infinite_and_recorded_as_null() -> None:
    x = torch.zeros(2, 1, 1, 1)
    found = first_change(lambda z: (z.flatten() > 3).long(), x, torch.ones_like(x), torch.tensor([2.0, 4.0]))
    assert finite(found)[0] is None
    assert found[1].item() == pytest.approx(3, abs=1e-3)


def test_first_change_takes_the_first_of_several() -> None:
    x = torch.zeros(1, 1, 1, 1)
    found = first_change(lambda z: (z.flatten() // 1).long() % 2, x, torch.ones_like(x), 4.0, 24, 20)
    assert found.item() == pytest.approx(1, abs=1e-4)


def test_margins_of_linear_classifier_are_exact_and_zero_where_wrong(subject: Subject) -> None:
    x, y, _ = subject.examples(slice(0, 6))
    found = margins(subject, x, torch.where(torch.arange(6) < 5, y, (y + 1) % 3))
    assert torch.allclose(found[:5], distance(x)[:5], rtol=1e-3)
    assert found[5] == 0


def test_margins_of_a_curved_classifier_are_the_shortest_way(subject: Subject) -> None:
    """No random direction of the same length may change the class: the margin is near minimal."""
    classifier = TinyClassifier(channels=3).float()
    parts = subject.parts._replace(
        undefended=type(subject.parts.undefended)(classifier),
        model=type(subject.parts.model)(subject.parts.model.purifier, classifier),
    )
    curved = subject._replace(parts=parts)
    x, _, noise = curved.examples(slice(0, 4))
    y = curved.classify(x).argmax(1)
    found = margins(curved, x, y, iterations=8)
    assert found.isfinite().all()
    for lane in range(20):
        z = noise.on("control").in_lane(lane).normal("probe", 0, x)
        step = 0.98 * found[:, None, None, None] * z / z.flatten(1).norm(dim=1)[:, None, None, None]
        assert torch.equal(curved.classify(x + step).argmax(1), y)


def test_margins_beyond_the_pixel_range_are_measured_and_not_refused(subject: Subject) -> None:
    """A confident classifier of few pixels: its linearised boundary lies where no image is."""

    class Confident(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gap = x.mean(dim=(1, 2, 3)) + 3
            return torch.stack([gap, -gap, 0 * gap - 100], dim=1)

    parts = subject.parts._replace(
        undefended=type(subject.parts.undefended)(Confident()),
        model=type(subject.parts.model)(subject.parts.model.purifier, Confident()),
    )
    x, _, _ = subject.examples(slice(0, 3))
    found = margins(subject._replace(parts=parts), x, torch.zeros(3, dtype=torch.long))
    exact = (x.mean(dim=(1, 2, 3)) + 3) * math.sqrt(SIZE)
    assert torch.allclose(found, exact, rtol=1e-3)


@pytest.mark.parametrize("dimensions", [2, 5, 192, 3072])
@pytest.mark.parametrize("height", [0.0, 0.01, 0.02, 0.1, 0.5, 0.95])
def test_cap_fraction_is_the_integral_of_the_slices(dimensions: int, height: float) -> None:
    """A slice of the ball at height t has the volume of a (d - 1)-ball of radius sqrt(1 - t^2)."""

    def volume(low: float) -> float:
        """Beyond ``low``, as far as a slice has more than exp(-40) of the first one's volume."""
        width = min(10 / math.sqrt(dimensions - 1), 40 / (dimensions - 1) / max(low, 1e-9))
        first = (dimensions - 1) / 2 * math.log1p(-low * low)

        def slices(t: float) -> float:
            return math.exp((dimensions - 1) / 2 * math.log1p(-t * t) - first)

        end = min(math.nextafter(1, 0), low + width)
        return math.exp(first) * quad(slices, low, end, epsabs=0, limit=200)[0]

    expected = volume(height) / (2 * volume(0))
    assert cap_fraction(height, dimensions) == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_cap_fraction_of_a_plane_outside_the_ball_is_zero() -> None:
    assert cap_fraction(1.3, 10) == 0


def test_fit_slope_is_the_maximum_of_the_likelihood() -> None:
    s = uniform(400, seed=3, low=-2, high=2).numpy()
    hit = (uniform(400, seed=4).numpy() < 1 / (1 + np.exp(-5.9 * (s - 1)))).astype(float)

    def loss(k: float) -> float:
        return float(np.logaddexp(0, np.where(hit == 1, -1, 1) * k * (s - 1)).sum())

    best = minimize_scalar(loss, bounds=(0.1, 50), method="bounded").x
    assert fit_slope(s, hit) == pytest.approx(best, abs=0.01)
    assert 4 < fit_slope(s, hit) < 9


def test_fit_slope_of_a_perfect_step_is_the_steepest() -> None:
    s = np.linspace(-2, 2, 50)
    assert fit_slope(s, (s > 1).astype(float)) == pytest.approx(100, abs=1e-3)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluationSpec]:
    spec = validate(PARTS, EvaluationSpec, "tiny")
    out = tmp_path_factory.mktemp("thresholds") / "run"
    analyse(spec, out, {"thresholds": OPTIONS})
    return out, spec


def records(out: Path) -> list[dict]:
    lines = (out / "analyses/thresholds/records.jsonl").read_text().splitlines()
    return [record for line in lines for record in json.loads(line)["measured"]]


def test_thresholds_of_linear_classifier_and_purifier_have_closed_forms(done, subject: Subject) -> None:
    """Everything is linear: the system's threshold is the anchor's over theta, in the same direction."""
    out, _ = done
    x, _, noise = subject.examples(slice(0, 12))
    anchor = subject.purify(x, noise)
    sigma = float(subject.parts.model.purifier.sampler.levels[0])
    theta = 0.05 / (0.05 + sigma**2)
    found = {kind: torch.tensor([r[kind] or torch.inf for r in records(out)]) for kind in KINDS}
    # PGD follows the cross-entropy, whose direction also weighs the third class: never less than the distance
    for kind, expected in (
        (KINDS[0], distance(x)),
        (KINDS[1], distance(anchor)),
        (KINDS[2], distance(anchor) / theta),
    ):
        assert (found[kind] >= 0.99 * expected).all()
        assert (found[kind] <= 1.35 * expected).all()
    rates = torch.tensor([r["attack_rate"] for r in records(out)])
    assert torch.allclose(rates, torch.full_like(rates, theta), rtol=2e-3)


def test_conclusion_names_numbers_claims_and_the_censored(done) -> None:
    result = Thresholds(**OPTIONS).conclude({Unit(range(12)): records(done[0])})
    by_name = {n.name: n for n in result.numbers}
    assert by_name["psychometric slope k of the classifier, in distance / threshold"].published == 5.9106
    pair = np.array([[r[KINDS[1]], r[KINDS[2]]] for r in records(done[0])], dtype=float)
    pair[np.isnan(pair)] = OPTIONS["longest"]
    number = by_name[f"Spearman, {KINDS[1]} and {KINDS[2]}"]
    assert number.value == pytest.approx(spearmanr(*pair.T).statistic, abs=1e-12)
    assert number._replace(needs=1).holds == (True if number.low > 0 else False if number.high < 0 else None)
    cut = [{**r, KINDS[2]: None} for r in records(done[0])]
    censored = Thresholds(**OPTIONS).conclude({Unit(range(12)): cut})
    assert "at least 2.00" in censored.sentences[0]
    assert (
        "12 of 12 beyond 2" in next(n for n in censored.numbers if n.name == f"threshold, {KINDS[2]}").method
    )
    assert censored == Thresholds(**OPTIONS).conclude({Unit(range(12)): cut})


def test_conclusion_without_any_change_of_class_has_no_slope(done) -> None:
    cut = [{**r, **dict.fromkeys(KINDS), "slices": None} for r in records(done[0])]
    names = [n.name for n in Thresholds(**OPTIONS).conclude({Unit(range(12)): cut}).numbers]
    assert not any("slope" in name or "Spearman" in name for name in names)


def test_thresholds_resume_without_repeating_units(done, monkeypatch: pytest.MonkeyPatch) -> None:
    out, spec = done
    path = out / "analyses/thresholds"
    whole = (path / "result.json").read_bytes()
    first, *_ = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(first)
    units = []
    measure = Thresholds.measure
    monkeypatch.setattr(
        Thresholds, "measure", lambda s, subject, u: units.append(u) or measure(s, subject, u)
    )
    analyse(spec, out, {"thresholds": OPTIONS})
    assert units == [Unit(range(8, 12))]
    assert (path / "result.json").read_bytes() == whole


def test_thresholds_do_not_depend_on_micro_batch(done, tmp_path: Path) -> None:
    out, spec = done
    other = tmp_path / "run"
    analyse(spec, other, {"thresholds": OPTIONS}, Execution(micro_batch=5))
    for a, b in zip(records(out), records(other), strict=True):
        for kind in KINDS:
            assert b[kind] == pytest.approx(a[kind], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images must be a whole number of at least 1, not 0"),
        ({"norm": "l1"}, "norm must be 'l2' or 'linf', not 'l1'"),
        ({"longest": 0}, "longest must be a number above 0, not 0"),
        ({"lenght": 1}, "has no option 'lenght'"),
    ],
)
def test_thresholds_refuse_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("thresholds", options)
