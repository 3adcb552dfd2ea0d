"""What a script hands over by mistake: each is one sentence that says what to do."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import (
    EvaluationSpec,
    Execution,
    FeatureDistance,
    RunDirectory,
    benchmark,
    check,
    evaluate,
    read_spec,
    summarise,
    train,
    trust,
)
from dbpkit.attacks import Target, attacks, make_attack
from dbpkit.attacks.pgd import pgd
from dbpkit.checks import Probe
from dbpkit.checks.model import untracked_randomness
from dbpkit.experiment.execution import check_execution
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.threats.pixels import L2, Linf
from dbpkit.training.spec import TrainingSpec
from tests.oracles import TinyClassifier, tiny_denoiser, uniform

X, Y, NOISE = uniform(2, 3, 4, 4), torch.tensor([0, 2]), NoisePlan.of(3, [4, 5])

OWN_ATTACKS = sorted(n for n in attacks if n not in ("art", "foolbox", "standard_autoattack"))

TRAINING = TrainingSpec(
    objective="classification",
    data="digits",
    test_data="digits",
    network="resnet9",
    optimiser={"updates": 1, "batch_size": 1, "lr": 0.1},
)


def tiny() -> PurifiedClassifier:
    return PurifiedClassifier(Purifier(tiny_denoiser(3), "one_step"), TinyClassifier(3))


def attack(x: Any = X, y: Any = Y, noise: Any = NOISE, **more: Any) -> Tensor:
    settings = {"target": tiny(), "threat": Linf(0.1), "iterations": 1, "eot": 1, **more}
    return pgd(x=x, y=y, noise=noise, **settings).x_adv


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": 255 * X}, r"attack 'pgd': pixels must be finite and in \[0, 1\].*Divide 8-bit values by 255"),
        ({"x": 2 * X - 1}, "undo any normalisation"),
        ({"x": X * torch.nan}, "spans nan to nan and is not finite"),
        ({"x": (255 * X).byte()}, r"not uint8, whose arithmetic wraps or rounds\. Use x\.float\(\) / 255"),
        ({"x": X[0]}, r"not \(3, 4, 4\)\. Add the batch with x\[None\]"),
        ({"x": X.permute(0, 2, 3, 1)}, r"channels last.*x\.permute\(0, 3, 1, 2\)"),
        ({"x": X[:0]}, "there are no pixels"),
        ({"x": X.numpy()}, r"not numpy\.ndarray\. Use torch\.from_numpy\(x\)\.float\(\)"),
        ({"x": list(X)}, r"not list\. Stack them into one"),
        ({"y": Y.float()}, r"labels must be int64, not float32\. Use y\.long\(\)"),
        ({"y": torch.eye(3)[Y]}, r"not \(2, 3\)\. Use y\.argmax\(dim=1\) if they are one-hot"),
        ({"y": Y[:, None]}, r"not \(2, 1\)\. Use y\[:, 0\]"),
        ({"y": Y[:1]}, "2 images came with 1 labels"),
        ({"y": Y + 1}, "the model has 3 classes, but the labels go up to 3"),
        ({"y": Y - 1}, r"labels must lie from 0 on; these span -1 to 1"),
        ({"noise": NOISE.rows([0])}, "a noise plan of 1 examples was used on a batch of 2"),
        ({"noise": 0}, r"noise must be a NoisePlan, not int\. Use NoisePlan\.of\(seed, ids\)"),
        ({"threat": 8 / 255}, r"threat must be a threat model such as Linf\(8 / 255\), not 0\.03"),
        ({"iterations": 2.5}, "iterations must be a whole number of at least 1, not 2.5"),
        ({"eot": True}, "eot must be a whole number of at least 1, not true"),
        ({"target": torch.jit.trace(TinyClassifier(3), X)}, r"takes no noise plan\. Wrap.*Undefended"),
        (
            {"target": Undefended(lambda x: TinyClassifier(3)(x) * torch.nan)},
            "logits that are not finite. Look",
        ),
        (
            {"target": Undefended(lambda x: {"logits": x})},
            r"must return logits \(2, K\).*2 images, got dict\. L",
        ),
        (
            {"target": lambda x, **_: (x, x)},
            r"must return logits \(2, K\).*, got tuple\. Let it return one tensor",
        ),
        (
            {"target": lambda x, **_: x.mean((1, 2, 3))},
            r"must return logits.*, got \(2,\) of float64",
        ),
        (
            {"target": lambda x, **_: x.mean((2, 3)).int()},
            r"must return logits.*, got \(2, 3\) of int32",
        ),
        ({"target": TinyClassifier(3)}, r"TinyClassifier takes no noise plan\. Wrap.*dbpkit\.Undefended"),
    ],
)
def test_attack_on_something_else_says_what_to_do(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attack(**changed)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_attack_without_gradients_around_it_is_the_same(context: Any) -> None:
    model, leaf = tiny(), X.clone().requires_grad_()
    expected = attack(target=model)
    with context():
        found = attack(target=model)
        assert torch.equal(
            attack(x=X + 0, target=model), expected
        )  # under inference mode these have no version
    assert torch.equal(found, expected)
    assert not attack(x=leaf).requires_grad
    assert not torch.equal(expected, X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linf(8), r"Linf: eps 8 exceeds the pixel range \[0, 1\]\. Did you mean 8/255\?"),
        (lambda: Linf(-1), "Linf: eps -1 is negative"),
        (lambda: Linf(float("nan")), "must be a finite number"),
        (lambda: Linf("8/255"), "must be a number.*write 8 / 255"),  # type: ignore[arg-type]
        (lambda: L2(300), r"L2: eps 300 turns most images into any other.*Did you mean 300/255\?"),
        (lambda: L2(float("inf")), "must be a finite number"),
        (lambda: NoisePlan.of(1.0, [0]), r"seed must be a whole number, not 1"),  # type: ignore[arg-type]
        (lambda: NoisePlan.of(True, [0]), "seed must be a whole number, not True"),
        (lambda: NoisePlan.of(2**32, [0]), r"seed 4294967296 is outside \[0, 2\*\*32\)"),
        (lambda: NOISE.at(2**31).repeat(2), "2 repetitions of draw 2147483648 go beyond the last draw"),
        (lambda: NOISE.repeat(0), "count of draws must be a whole number"),
        (
            lambda: NOISE.rows([2]),
            "rows of a noise plan of 2 examples are chosen by a flat list of positions",
        ),
        (lambda: tiny()(X[0], noise=NOISE), r"Add the batch with x\[None\]"),
        (lambda: tiny()(255 * X), r"pixels must be in \[0, 1\]; these span"),
        (lambda: tiny()(2 * X - 1), "Divide 8-bit values by 255 and undo any normalisation"),
        (lambda: tiny()(X, noise=NOISE.rows([0])), "a noise plan of 1 examples was used on a batch of 2"),
        (lambda: Undefended(TinyClassifier(3))((255 * X).byte()), "whose arithmetic wraps"),
        (
            lambda: Purifier(tiny_denoiser(), t_star=2),
            r"t_star must lie in \(0, 1\), or be an interval .* not 2",
        ),
        (lambda: Purifier(tiny_denoiser(), steps=0), "steps must be a whole number of at least 1, not 0"),
        (lambda: Purifier(None), "the denoiser must be callable"),  # type: ignore[arg-type]
        (lambda: PurifiedClassifier(TinyClassifier(3), tiny().purifier), "the classifier is a purifier"),
        (
            lambda: PurifiedClassifier("ddpm", TinyClassifier(3)),
            r"the purifier must be called as purifier\(x\)",
        ),
        (
            lambda: PurifiedClassifier(tiny().purifier, TinyClassifier(3), seed=0.5),
            "seed must be a whole number",
        ),
        (lambda: Target(tiny(), micro_batch=0), "micro_batch must be a whole number of at least 1"),
        (
            lambda: tiny().draws(X, noise=NOISE, count=0),
            "count of draws must be a whole number of at least 1",
        ),
        (lambda: tiny().bind(3), "bind: noise must be a NoisePlan"),  # type: ignore[arg-type]
        (lambda: Undefended(lambda x: (x, x))(X), r"must return logits \(2, K\).*got tuple"),
        (lambda: Undefended(nn.Identity())(X), r"return logits \(2, K\).*got \(2, 3, 4, 4\) of"),
        (lambda: PurifiedClassifier(tiny().purifier, lambda _: None)(X), r"must return logits.*got None"),
        (
            lambda: PurifiedClassifier(tiny().purifier, nn.Identity())(X[:1]),
            r"for 1 image, got \(1, 3, 4, 4\) of",
        ),
        (lambda: Purifier(lambda x, _: x[:1], "one_step")(X, noise=NOISE), "must return clean images"),
    ],
)
def test_part_or_call_with_a_wrong_argument_says_what_to_do(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_last_draw_of_a_plan_can_be_repeated() -> None:
    """Draws 2**32 - 2 and 2**32 - 1 are there, and differ."""
    plan = NOISE.at(2**31 - 1).repeat(2)
    assert plan.draw.tolist() == [2**32 - 2, 2**32 - 1] * 2
    z = plan.normal("forward", 0, torch.zeros(4, 3))
    assert not torch.equal(z[0], z[1])


def test_pixels_off_by_rounding_are_attacked_as_they_are() -> None:
    x = X.clone()
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -2.98e-8, 1 + 9e-7
    assert float((attack(x=x) - x).abs().max()) <= 0.1 + 1e-6
    with pytest.raises(UserError, match="image 0 spans"):
        attack(x=X.clone() - 1.1)


def test_identity_network_of_the_users_own_is_not_changed() -> None:
    assert torch.equal(Undefended(nn.Flatten())(X), X.flatten(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: evaluate({}, "run"),
            r"spec must be of type EvaluationSpec, not dict\. Make",
        ),
        (lambda: train(None, "run"), "spec must be of type TrainingSpec, not None"),
        (lambda: summarise("run"), r"'run' is no\w* .*run directory: it has no spec"),
        (lambda: read_spec(3, EvaluationSpec), "named by its path or its published name, not by 3"),
        (lambda: read_spec(".", EvaluationSpec), r"spec '\.' is a directory"),
        (lambda: RunDirectory(3), "a run directory is named by its path, not by 3"),
        (lambda: trust(3), "3 is not an import path"),
        (
            lambda: evaluate(EvaluationSpec(), "run", progress=3),
            "evaluate: progress must be a function.*, not 3",
        ),
        (lambda: benchmark(tiny(), (X, Y), progress=3), "benchmark: progress must be a function"),
        (lambda: train(TRAINING, 3), "a training run's directory is named by its path, not by 3"),
        (lambda: train(TRAINING, "run", progress=3), "train: progress must be a function"),
        (lambda: VPDenoiser(3), r"VPDenoiser: the network must be callable as network\(x, time\), not 3"),
        (lambda: EDMDenoiser(None), r"EDMDenoiser: the network must be .*x, noise_label\), not None"),
        (lambda: EDMDenoiser(nn.Identity(), "half"), "sigma_data must be a number, not 'half'"),
        (
            lambda: EvaluationSpec(seed=-1, sed=3),
            r"EvaluationSpec: .*seed = -1: .*unknown key 'sed'\. Did you",
        ),
        (lambda: EvaluationSpec(purifier={"steps": 0}), r"^EvaluationSpec: purifier\.steps = 0: "),
        (lambda: TrainingSpec(), r"^TrainingSpec: key 'objective' is missing; key 'data' is missing"),
        (lambda: FeatureDistance(1), "classifier must be of type Module, not int"),
    ],
)
def test_public_function_with_an_argument_of_another_kind_says_what_to_do(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_check_execution_without_one_is_the_usual_one() -> None:
    assert check_execution(None) == Execution()


@pytest.mark.parametrize("execution", [16, Execution(world=2)])
def test_check_execution_of_another_kind_or_of_several_processes_is_refused(execution: Any) -> None:
    with pytest.raises(UserError, match="execution"):
        check_execution(execution)


def test_check_of_a_model_whose_logits_are_nan_says_so_and_blames_no_randomness() -> None:
    with pytest.raises(UserError, match="logits that are not finite for each of 2 images"):
        check(lambda x: x.mean(dim=(2, 3)) * torch.nan, X, Y)


@pytest.mark.parametrize("name", OWN_ATTACKS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_attack_on_logits_that_are_not_finite_ends_instead_of_leaving_the_images(
    name: str, value: float
) -> None:
    """One image of a batch is enough."""
    model = TinyClassifier(3)
    broken = Undefended(lambda x: torch.cat([model(x[:-1]), model(x[-1:]) + value]))
    with pytest.raises(UserError, match="the model returned logits that are not finite"):
        make_attack(name)(broken, X, Y, threat=Linf(0.1), noise=NOISE)


def test_target_logits_and_gradient_of_a_model_that_overflows_raise_an_error_of_arithmetic() -> None:
    """An evaluation tells it from a wrong call by this kind: its record is of the example."""
    target = Target(Undefended(lambda x: 1e39 * x.mean(dim=(2, 3))))
    x = X.float()
    for ask in (lambda: target(x, noise=NOISE), lambda: target.gradient(x, Y, noise=NOISE)):
        with pytest.raises(FloatingPointError, match="half precision that overflows"):
            ask()


def test_untracked_randomness_nan_twice_is_none() -> None:
    def half_nan(x: Tensor, *, noise: NoisePlan) -> Tensor:
        return x.mean(dim=(2, 3)) * torch.tensor([[1.0], [torch.nan]])

    assert untracked_randomness(Probe(half_nan, X, Y, NOISE, Linf(0.1))) == []
    results = itertools.cycle([1.0, torch.nan])

    def turns(x: Tensor, *, noise: NoisePlan) -> Tensor:
        return x.mean(dim=(2, 3)) * next(results)

    (flag,) = untracked_randomness(Probe(turns, X, Y, NOISE, Linf(0.1)))
    assert flag.name == "untracked_randomness"
