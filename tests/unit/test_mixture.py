"""A mixture: each image and draw is purified by one of its members, as by that member alone."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dbpkit import evaluate
from dbpkit.attacks import Target
from dbpkit.evaluation.cost import network_calls
from dbpkit.evaluation.counting import chain_calls
from dbpkit.experiment.knowledge import known
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import validate
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.ensemble import Ensemble
from dbpkit.purification.mixture import CHOICE, Mixture
from dbpkit.purification.purifier import gradient_note, make_purifier
from dbpkit.purification.views import gradients
from tests.oracles import GaussianDenoiser, TinyClassifier, tiny_denoiser, uniform
from tests.parts import TINY

CHAINS: list[dict[str, Any]] = [
    {"sampler": "one_step"},
    {"sampler": "ddpm", "steps": 20, "options": {"variance": "small"}},
    {"sampler": "ddim", "steps": 20, "t_star": [0.05, 0.15]},
]
NOISE = NoisePlan.of(1, range(12))
X = uniform(12, 1, 4, 4)


def mixed(**settings: Any) -> Mixture:
    return Mixture(tiny_denoiser(), CHAINS, **settings)


def test_mixture_rows_are_those_of_the_member_they_drew() -> None:
    mixture = mixed()
    choice = mixture.choice(NOISE, X)
    assert set(choice.tolist()) == {0, 1, 2}
    found = mixture(X, noise=NOISE)
    for b, k in enumerate(choice.tolist()):
        alone = Purifier(tiny_denoiser(), **CHAINS[k])(X[[b]], noise=NOISE.rows([b]))
        torch.testing.assert_close(found[[b]], alone, rtol=0, atol=1e-12)


def test_mixture_rows_do_not_depend_on_the_batch_to_the_bit() -> None:
    mixture = Mixture(GaussianDenoiser(), CHAINS)
    whole = mixture(X, noise=NOISE)
    for index in ([0], [11, 3], [1, 2, 4, 5, 7]):
        assert torch.equal(mixture(X[index], noise=NOISE.rows(index)), whole[index])


def test_mixture_gradient_with_replay_is_exact() -> None:
    mixture = mixed(memory_bytes=0)
    x = X[:6, :, :2, :2].clone().requires_grad_()
    plan = NOISE.rows(slice(0, 6))
    assert len(set(mixture.choice(plan, x.detach()).tolist())) > 1
    assert torch.autograd.gradcheck(lambda x: mixture(x, noise=plan), x, fast_mode=True)


@pytest.mark.parametrize(("weights", "shares"), [(None, [1, 1, 1]), ((1.0, 2.0, 5.0), [1, 2, 5])])
def test_mixture_members_are_drawn_as_often_as_weights_say(weights: Any, shares: list[int]) -> None:
    plan = NoisePlan.of(0, range(8)).repeat(500)
    choice = mixed(weights=weights).choice(plan, torch.zeros(4000, 1, 1, 1))
    expected = np.array(shares) / sum(shares) * 4000
    assert stats.chisquare(np.bincount(choice.numpy(), minlength=3), expected).pvalue > 0.001


def test_mixture_choice_is_noise_that_an_attacker_of_fixed_randomness_knows() -> None:
    mixture = mixed()
    assert mixture.sites == {"forward", "reverse", "level"}
    assert mixture.calls == 3
    attack, expected = NOISE.on("attack").in_lane(3).at(9), mixture(X, noise=NOISE)
    assert known["dw_both"].leaves_nothing_random(mixture.sites)
    assert torch.equal(mixture(X, noise=known["dw_both"].apply(attack, 0)), expected)
    assert torch.equal(
        mixture.choice(known["dw_fwd"].apply(attack, 0), X), mixture.choice(NOISE, X)
    )  # but the noise of the way back is the attacker's own
    assert not torch.equal(mixture(X, noise=known["dw_fwd"].apply(attack, 0)), expected)
    assert not torch.equal(mixture.choice(attack, X), mixture.choice(NOISE, X))


def test_mixture_mean_is_the_weighted_mean_of_its_members() -> None:
    """Of Gaussian data and one step: the mean Jacobian is that of theta over the members."""
    denoiser = GaussianDenoiser(0.0, 0.25)
    tables = [
        {"sampler": "one_step", "t_star": t, "options": {"clip": False}, "clamp": False} for t in (0.05, 0.2)
    ]
    mixture = Mixture(denoiser, tables, weights=(1.0, 3.0))
    plan = NoisePlan.of(0, [0]).repeat(4000)
    x = torch.full((4000, 1, 1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(mixture(x, noise=plan).sum(), x)
    low, high = (denoiser.theta(Purifier(denoiser, **t).sampler.levels[0]) for t in tables)
    expected = (low + 3 * high) / 4
    assert abs(float(slopes.mean()) - expected) < 4 * abs(low - high) * (3 / 16 / 4000) ** 0.5


def test_mixture_traces_and_has_a_surrogate() -> None:
    mixture = mixed()
    pure, deviation = mixture.traced(X, noise=NOISE)
    assert torch.equal(pure, mixture(X, noise=NOISE))
    for b, k in enumerate(mixture.choice(NOISE, X).tolist()):
        alone = Purifier(tiny_denoiser(), **CHAINS[k]).traced(X[[b]], noise=NOISE.rows([b]))[1]
        torch.testing.assert_close(deviation[[b]], alone, rtol=0, atol=1e-12)
    coarse = gradients.get("surrogate")(PurifiedClassifier(mixture, TinyClassifier()), steps=10).purifier
    assert [m.calls for m in coarse.members] == [1, 2, 2]
    plain = Mixture(tiny_denoiser(), [{"sampler": "one_step"}, {"name": "tests.unit.test_mixture:Brighter"}])
    assert [getattr(m, "calls", None) for m in plain.coarser(50).members] == [1, 0]
    with pytest.raises(UserError, match="a member of the mixture is none"):
        plain.traced(X, noise=NOISE)


def test_mixture_choice_has_noise_of_its_own() -> None:
    """A member that draws levels must not draw them by the number that chose it."""
    drawn: list[tuple[str, int]] = []

    class Told(NoisePlan):
        def _drawn(self, site: str, step: int, like: Any, kind: int) -> Any:
            drawn.append((site, step))
            return super()._drawn(site, step, like, kind)

    denoiser = GaussianDenoiser()
    for own in (
        {"sampler": "likelihood", "steps": 3},
        {"sampler": "multi_stage", "steps": 50, "options": {"inner": "likelihood", "rounds": [[1.0, 2]]}},
        {"sampler": "one_step", "t_star": [0.05, 0.15]},
    ):
        mixture = Mixture(denoiser, [own, {"sampler": "one_step"}], weights=(1e9, 1e-9))
        drawn.clear()
        mixture(X[:1], noise=Told(1, torch.tensor([0]), "attack", torch.tensor([0])))
        chose, *rest = drawn
        assert chose == ("level", CHOICE)
        assert ("level", 0 if own["sampler"] == "one_step" else 2) in rest
        assert chose not in rest


def test_mixture_says_which_gradient_is_not_exact_and_its_longest_members_calls() -> None:
    mixture = Mixture(GaussianDenoiser(), [{"sampler": "heun", "steps": 3}, {"name": "bit_depth"}])
    assert "rounding is taken for the identity" in gradient_note(mixture)
    assert gradient_note(mixed()) == ""
    model = PurifiedClassifier(mixture, TinyClassifier())
    for example in range(6):  # whichever member an image draws
        assert network_calls(model, X[:1], NoisePlan.of(0, [example])) == Target(model).calls == 5
    assert network_calls(Ensemble(model, 3), X[:1], NOISE.rows([0])) == Target(Ensemble(model, 3)).calls == 15
    assert chain_calls(Ensemble(model, 3), X[:1]) == 15


class Brighter(torch.nn.Module):
    """A filter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns brighter images."""
        return (1 + x) / 2


def test_mixture_of_a_spec_is_evaluated(tmp_path: Any) -> None:
    table = {
        **TINY,
        "purifier": {
            "name": "mixture",
            "options": {"members": [{"sampler": "ddpm", "steps": 50}, {"sampler": "ddim", "steps": 50}]},
        },
        "knowledge": ["white_box", "dw_both"],
        "draws": {"report": 2, "select": 2},
    }
    summary = evaluate(validate(table, EvaluationSpec, "mixture"), tmp_path / "run")
    assert {"white_box", "dw_both"} <= {row.name for row in summary.rows}
    assert "draws no noise" not in summary.sentence


@pytest.mark.parametrize(
    ("members", "weights", "said"),
    [
        ([{"sampler": "ddim"}], None, "at least two members"),
        ([{}, {}], (1.0,), "a mixture of 2 members has as many weights, not 1"),
        ([{}, "ddim"], None, "is a table such as"),
        ([{}, {"name": "mixture", "options": {"members": [{}, {}]}}], None, "is a mixture itself"),
        ([{}, {"name": "mixture", "members": [{}, {}]}], None, "has name and options only, not 'members'"),
        ([{}, {"sampler": "ddmp"}], None, "unknown sampler 'ddmp'"),
        ([{}, {"stepps": 3}], None, "has no option 'stepps'"),
    ],
)
def test_mixture_that_is_none_is_refused(members: Any, weights: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Mixture(tiny_denoiser(), members, weights=weights)


def test_mixture_weights_are_above_zero() -> None:
    with pytest.raises(UserError, match="weights must be a list with each entry a number above 0"):
        make_purifier("mixture", {"members": [{}, {}], "weights": [1, 0]}, denoiser=tiny_denoiser())


def test_mixture_target_averages_over_members() -> None:
    model = PurifiedClassifier(mixed(), TinyClassifier())
    grad, _, _ = Target(model).gradient(X, torch.zeros(12, dtype=torch.int64), noise=NOISE, eot=3)
    assert bool(grad.isfinite().all())
