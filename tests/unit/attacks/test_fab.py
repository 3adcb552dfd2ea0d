"""FAB: projections against scipy's optimisers, linear classifiers in closed form, pyautoattack's iterates."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dbpkit.attacks import Target, make_attack
from dbpkit.attacks.fab import fab, logit_difference, nearest_on_plane
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, make_threat
from tests.oracles import NoisyClassifier, TinyClassifier, uniform

scipy_optimize = pytest.importorskip("scipy.optimize")

ROUND_OFF = 1e-12
"""Float64 arithmetic on values of order one."""
SOLVER = 1e-7
"""What scipy's solvers promise."""
SHAPE = (3, 2, 2)
each_norm = pytest.mark.parametrize("norm", ["linf", "l2"])


def linear_model(weight: Tensor, bias: Tensor) -> nn.Module:
    """A linear classifier of images from rows of weights."""
    layer = nn.Linear(weight.shape[1], len(weight), dtype=torch.float64)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return Undefended(nn.Sequential(nn.Flatten(), layer))


# ------------------------------------------------------------------ projections


def nearest_by_linear_program(x: np.ndarray, w: np.ndarray, rise: float) -> float | None:
    """The smallest t with |d| <= t, w . d = rise and x + d in [0, 1]; None if there is none."""
    n = len(x)
    found = scipy_optimize.linprog(
        c=[*np.zeros(n), 1.0],
        A_ub=np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]]),
        b_ub=np.zeros(2 * n),
        A_eq=[[*w, 0.0]],
        b_eq=[rise],
        bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
    )
    return found.fun if found.success else None


def nearest_by_quadratic_program(x: np.ndarray, w: np.ndarray, rise: float) -> np.ndarray:
    """The shortest d with w . d = rise and x + d in [0, 1], by sequential quadratic programming."""
    found = scipy_optimize.minimize(
        lambda d: 0.5 * d @ d,
        x0=np.clip(rise * w / (w @ w), -x, 1 - x),
        jac=lambda d: d,
        method="SLSQP",
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={"type": "eq", "fun": lambda d: w @ d - rise, "jac": lambda _: w},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert found.success
    return found.x


def planes() -> tuple[Tensor, Tensor, Tensor]:
    """Images, some of their pixels on a bound, normals, and rises from none to nearly the most possible."""
    x = uniform(40, *SHAPE)
    x[::3] = x[::3].round()
    w = uniform(40, *SHAPE, seed=1, low=-1, high=1)
    w[::5, 0] = 0
    most = torch.where(w > 0, w * (1 - x), -w * x).flatten(1).sum(dim=1)
    least = torch.where(w > 0, -w * x, w * (1 - x)).flatten(1).sum(dim=1)
    share = uniform(40, seed=2)
    share[0], share[1] = 0.0, 0.999
    return x, w, torch.where(torch.arange(40) % 2 == 0, share * most, share * least)


def test_nearest_on_plane_linf_is_the_linear_programs() -> None:
    x, w, rise = planes()
    found = nearest_on_plane(x, w, rise, Linf(0.1))
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    torch.testing.assert_close((w * (found - x)).flatten(1).sum(dim=1), rise, rtol=0, atol=ROUND_OFF)
    sizes = (found - x).abs().flatten(1).amax(dim=1)
    for b in range(40):
        expected = nearest_by_linear_program(x[b].flatten().numpy(), w[b].flatten().numpy(), float(rise[b]))
        assert float(sizes[b]) == pytest.approx(expected, abs=SOLVER)


def test_nearest_on_plane_l2_is_the_quadratic_programs() -> None:
    x, w, rise = planes()
    found = nearest_on_plane(x, w, rise, L2(0.1))
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    torch.testing.assert_close((w * (found - x)).flatten(1).sum(dim=1), rise, rtol=0, atol=ROUND_OFF)
    for b in range(40):
        expected = nearest_by_quadratic_program(
            x[b].flatten().numpy(), w[b].flatten().numpy(), float(rise[b])
        )
        d = (found[b] - x[b]).flatten().numpy()
        assert float(np.linalg.norm(d)) == pytest.approx(float(np.linalg.norm(expected)), abs=SOLVER)
        assert d == pytest.approx(expected, abs=1e-4)  # near the optimum the norm is flat in d


@each_norm
def test_nearest_on_plane_far_from_the_bounds_is_the_closed_form(norm: str) -> None:
    """Linf: rise / |w|_1 along the sign; L2: rise w / |w|^2."""
    x, w = torch.full((5, *SHAPE), 0.5, dtype=torch.float64), uniform(5, *SHAPE, seed=1, low=-1, high=1)
    rise = uniform(5, seed=2, low=-0.1, high=0.1)
    flat, amount = w.flatten(1), rise[:, None]
    expected = {
        "linf": amount * flat.sign() / flat.abs().sum(dim=1, keepdim=True),
        "l2": amount * flat / flat.square().sum(dim=1, keepdim=True),
    }[norm]
    found = nearest_on_plane(x, w, rise, make_threat(norm, 0.1))
    torch.testing.assert_close((found - x).flatten(1), expected, rtol=0, atol=ROUND_OFF)


@each_norm
def test_nearest_on_plane_out_of_reach_is_the_corner(norm: str) -> None:
    x, w = uniform(4, *SHAPE), uniform(4, *SHAPE, seed=1, low=-1, high=1)
    threat, much = make_threat(norm, 0.1), torch.full((4,), 100.0, dtype=torch.float64)
    corner = (w > 0).double()
    torch.testing.assert_close(nearest_on_plane(x, w, much, threat), corner, rtol=0, atol=ROUND_OFF)
    torch.testing.assert_close(nearest_on_plane(x, w, -much, threat), 1 - corner, rtol=0, atol=ROUND_OFF)


@each_norm
def test_nearest_on_plane_without_a_gradient_stays(norm: str) -> None:
    x = uniform(2, *SHAPE)
    found = nearest_on_plane(x, torch.zeros_like(x), torch.tensor([0.5, 0.0]), make_threat(norm, 0.1))
    assert torch.equal(found, x)


def test_logit_difference_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 9.0], [1.0, 4.0, 9.0]])
    assert logit_difference(logits, torch.tensor([[0, 2], [2, 1]])).tolist() == [8.0, -5.0]


# ------------------------------------------------------------------ linear classifiers


def smallest_of_the_search(iterations: int, alpha_max: float, eta: float, beta: float) -> float:
    """The search on a linear classifier, where all happens on one ray; lengths in units of the distance."""
    r, smallest = 0.0, math.inf
    for _ in range(iterations):
        alpha = min(abs(1 - r) / (abs(1 - r) + 1), alpha_max)
        r = (1 - alpha) * (r + eta * (1 - r)) + alpha * eta
        if r > 1:
            smallest, r = min(smallest, r), beta * r
    return smallest


@each_norm
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_fab_linear_classifier_is_the_closed_form_distance(norm: str, iterations: int) -> None:
    """|f| / |w| in the dual norm, times what the overshoot and the backward steps of the search leave."""
    weight = uniform(2, 12, seed=3, low=-1, high=1)
    x = uniform(6, *SHAPE, low=0.45, high=0.55)
    w, bias = weight[1] - weight[0], torch.zeros(2, dtype=torch.float64)
    model = linear_model(weight, bias)
    f = x.flatten(1) @ w
    y = (f > 0).long()
    found = fab(
        model,
        x,
        y,
        threat=make_threat(norm, 1.0),
        noise=NoisePlan.of(0, range(6)),
        iterations=iterations,
        eot=2,
    )
    unit = {"linf": w.sign() / w.abs().sum(), "l2": w / w.square().sum()}[norm]
    nearest = x - (f[:, None] * unit).reshape(x.shape)
    assert 0 < float(nearest.min()) < float(nearest.max()) < 1
    factor = smallest_of_the_search(iterations, 0.1, 1.05, 0.9)
    assert 1 < factor <= 1.05
    torch.testing.assert_close(found.x_adv, x + factor * (nearest - x), rtol=0, atol=1e-10)
    assert bool((model(found.x_adv).argmax(dim=1) != y).all())


@each_norm
def test_fab_linear_classifier_at_the_pixel_range_is_the_optimisers_distance(norm: str) -> None:
    """Pixels on their bounds: the distance of the linear or quadratic program, overshot by less than 1 %."""
    weight = uniform(3, 12, seed=3, low=-1, high=1)
    bias = torch.tensor([0.0, 0.3, -0.3], dtype=torch.float64)
    x, model = uniform(8, *SHAPE, seed=5).round(), linear_model(weight, bias)
    logits = model(x)
    y, threat = logits.argmax(dim=1), make_threat(norm, {"linf": 1.0, "l2": 3.5}[norm])
    found = fab(model, x, y, threat=threat, noise=NoisePlan.of(0, range(8)), iterations=30, eot=2)
    assert bool((model(found.x_adv).argmax(dim=1) != y).all())
    for b in range(8):
        image, distances = x[b].flatten().numpy(), []
        for other in {0, 1, 2} - {int(y[b])}:
            w = (weight[other] - weight[y[b]]).numpy()
            rise = float(logits[b, y[b]] - logits[b, other])
            if nearest_by_linear_program(image, w, rise) is None:
                continue
            if norm == "linf":
                distances.append(nearest_by_linear_program(image, w, rise))
            else:
                distances.append(float(np.linalg.norm(nearest_by_quadratic_program(image, w, rise))))
        size = float(threat.distance(x[b : b + 1], found.x_adv[b : b + 1])[0])
        assert min(distances) - SOLVER <= size <= 1.01 * min(distances)


@each_norm
def test_fab_breaks_exactly_the_images_nearer_than_the_budget(norm: str) -> None:
    """With the median distance as the budget, half of the images break, the nearer half."""
    weight = uniform(2, 12, seed=3, low=-1, high=1)
    x, w = uniform(11, *SHAPE, low=0.4, high=0.6), weight[1] - weight[0]
    model = linear_model(weight, torch.zeros(2, dtype=torch.float64))
    f = x.flatten(1) @ w
    distance = f.abs() / {"linf": w.abs().sum(), "l2": w.norm()}[norm]
    order = distance.argsort()
    eps = float(distance[order[5:7]].mean())
    assert float(distance[order[5]]) * 1.006 < eps
    y, noise = (f > 0).long(), NoisePlan.of(0, range(11))
    found = fab(model, x, y, threat=make_threat(norm, eps), noise=noise, iterations=5, eot=1)
    broken = model(found.x_adv).argmax(dim=1) != y
    assert set(broken.nonzero()[:, 0].tolist()) == set(order[:6].tolist())
    assert float(make_threat(norm, eps).distance(x, found.x_adv).max()) <= eps + ROUND_OFF


# ------------------------------------------------------------------ pyautoattack


@each_norm
def test_fab_agrees_with_pyautoattack_to_the_iterate(norm: str) -> None:
    """One target, no restart: no randomness is left, so both find the same images, in float32."""
    reference = pytest.importorskip("pyautoattack.fab_pt")
    classifier = TinyClassifier(channels=3).float().requires_grad_(False)
    x = uniform(16, 3, 6, 6).float()
    y = classifier(x).argmax(dim=1)
    attack = reference.FABAttack_PT(
        classifier, norm={"linf": "Linf", "l2": "L2"}[norm], n_iter=15, eps=1.0, targeted=True, device="cpu"
    )
    attack.target_class = 2
    theirs = attack.attack_single_run(x, y, use_rand_start=False, is_targeted=True)
    threat = make_threat(norm, 1.0 if norm == "linf" else 10.0)
    ours = fab(
        Undefended(classifier),
        x,
        y,
        threat=threat,
        noise=NoisePlan.of(0, range(16)),
        iterations=15,
        n_targets=1,
        eot=2,
    ).x_adv
    moved = threat.distance(x, theirs) > 0
    assert int(moved.sum()) >= 8
    torch.testing.assert_close(ours[moved], theirs[moved], rtol=0, atol=1e-4)  # float32, 15 iterations deep


# ------------------------------------------------------------------ the search


def tiny(count: int = 12, eps: float = 0.05) -> dict[str, Any]:
    """A small nonlinear classifier, images it gets right, a budget and noise."""
    classifier, x = TinyClassifier(), uniform(count, 1, 6, 6)
    return {
        "x": x,
        "y": classifier(x).argmax(dim=1),
        "threat": Linf(eps),
        "noise": NoisePlan.of(0, range(20, 20 + count), "attack"),
    }


def test_fab_misclassified_image_comes_back_as_it_is() -> None:
    setting, classifier = tiny(), TinyClassifier()
    setting["y"] = (setting["y"] + 1) % 3
    target = Target(Undefended(classifier))
    found = fab(target, **setting, eot=1)
    assert torch.equal(found.x_adv, setting["x"])
    assert set(target.forward_passes.values()) == {3}  # clean, one gradient, one judgement
    assert bool((found.grad_norm > 0).all())


def test_fab_single_draw_ends_an_example_within_the_budget() -> None:
    classifier, setting = TinyClassifier(), tiny(eps=0.08)
    target = Target(Undefended(classifier))
    found = fab(target, **setting, eot=1, iterations=10, n_targets=2, n_restarts=2)
    right = classifier(found.x_adv).argmax(dim=1) == setting["y"]
    spent = torch.tensor([target.forward_passes[i] for i in range(20, 32)])
    ended = spent < 1 + 2 * 10 * 2 * 2
    assert 0 < int(ended.sum()) < 12
    assert not bool((ended & right).any())
    assert bool((found.loss[ended, -1] > 0).all())
    assert bool((found.loss[:, 0] < 0).all())


def test_fab_more_draws_of_a_deterministic_model_find_what_one_finds() -> None:
    """The expected boundary of a model that is not random is its boundary; the search is the same."""
    setting = tiny(eps=1.0)
    model = Undefended(TinyClassifier())
    one = fab(model, **{**setting, "threat": Linf(1e-9)}, eot=1, iterations=6, n_targets=1)
    three = fab(model, **setting, eot=3, iterations=6, n_targets=1)
    torch.testing.assert_close(one.loss, three.loss, rtol=0, atol=ROUND_OFF)
    torch.testing.assert_close(one.grad_norm, three.grad_norm, rtol=0, atol=ROUND_OFF)


class TwoWalls(nn.Module):
    """Right inside two walls of two pixels: one at 0.2, whose side is seen first, and one at 0.05."""

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        del noise
        far = 0.1 - 0.5 * (x[:, 0, 0, 0] - 0.5)
        near = 0.2 - 4 * (x[:, 0, 0, 1] - 0.5)
        right = torch.minimum(far, near)
        return torch.stack([right, 0 * right], dim=1)


@each_norm
def test_fab_restarts_find_a_nearer_boundary(norm: str) -> None:
    """The gradient at the image leads to the far wall; random images within half the budget see the other."""
    x, y = torch.full((4, 1, 1, 2), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    threat, noise = make_threat(norm, 0.3), NoisePlan.of(0, range(4))
    for n_restarts, wall in ((1, 0.2), (20, 0.05)):
        found = fab(TwoWalls(), x, y, threat=threat, noise=noise, iterations=8, n_restarts=n_restarts, eot=2)
        sizes = threat.distance(x, found.x_adv)
        assert bool((sizes > wall).all())
        assert bool((sizes < 1.05 * wall).all())


class Witness(NoisyClassifier):
    """Notes which draws were used with and without a gradient, in order."""

    def __init__(self) -> None:
        super().__init__(TinyClassifier())
        self.used: list[tuple[bool, int]] = []

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        graded = torch.is_grad_enabled() and x.requires_grad
        self.used += [(graded, draw) for draw in noise.draw.tolist()]
        return super().forward(x, noise=noise)


def test_fab_every_step_takes_two_blocks_of_new_draws() -> None:
    setting, model = tiny(1), Witness()
    fab(model, **setting, eot=3, iterations=2, n_targets=2, n_restarts=2)
    draws = [draw for _, draw in model.used]
    assert draws == list(range(3 * (1 + 2 * 8)))
    assert [graded for graded, _ in model.used[::3]] == [False, *[True, False] * 8]


@each_norm
@pytest.mark.parametrize("options", [{"eot": 2}, {"eot": 1}, {"eot": 1, "n_restarts": 2}])
def test_fab_any_batch_gives_the_same_images_and_paths(norm: str, options: dict[str, Any]) -> None:
    setting = tiny(9)
    model = Undefended(TinyClassifier()) if options["eot"] == 1 else NoisyClassifier(TinyClassifier())
    x, y, noise = setting["x"], setting["y"], setting["noise"]
    y[0] = (y[0] + 1) % 3
    run, threat = (
        make_attack("fab", {"iterations": 4, **options}),
        make_threat(norm, 0.05 if norm == "linf" else 0.3),
    )
    whole = run(model, x, y, threat=threat, noise=noise)
    for cuts in (torch.arange(9).flip(0).split(9), torch.arange(9).split(1), torch.arange(9).split(4)):
        parts = [run(model, x[c], y[c], threat=threat, noise=noise.rows(c)) for c in cuts]
        index = torch.cat(cuts)
        for field in ("x_adv", "loss", "grad_norm"):
            found = torch.cat([getattr(part, field) for part in parts])
            torch.testing.assert_close(found, getattr(whole, field)[index], rtol=0, atol=1e-9)


def test_fab_shows_iterates_within_the_budget() -> None:
    setting, seen = tiny(3, eps=0.01), []
    target = Target(Undefended(TinyClassifier()))
    target.visit = lambda image, noise: seen.append((image, noise.example_ids.tolist()))
    fab(target, **setting, eot=1, iterations=3, n_targets=1)
    assert seen
    for image, ids in seen:
        x = setting["x"][[i - 20 for i in ids]]
        assert float((image - x).abs().max()) <= 0.01 + ROUND_OFF


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("option", ["iterations", "n_targets", "n_restarts", "eot"])
def test_fab_count_below_one_raises(option: str) -> None:
    with pytest.raises(UserError, match=f"attack 'fab': {option} must be a whole number of at least 1"):
        fab(Undefended(TinyClassifier()), **tiny(1), **{option: 0})


@pytest.mark.parametrize("options", [{"alpha_max": 1.5}, {"eta": 0.9}, {"beta": 1.0}, {"beta": 0.0}])
def test_fab_option_out_of_range_raises(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"attack 'fab': {next(iter(options))} must be a number"):
        fab(Undefended(TinyClassifier()), **tiny(1), **options)
