"""Squashing heads: found by what they do to the gradient, undone by the view; harmless ones left in peace.

The thing people get wrong: a test with one sigmoid. A head may be a module, a function, in place, in half
precision, or one of two that are averaged.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import dbpkit
from dbpkit import Linf, NoisePlan, UserError
from dbpkit.attacks import Target, make_attack
from dbpkit.checks import Probe
from dbpkit.checks.outputs import squashed_outputs
from dbpkit.models.heads import Unsquashed, heads_of, ranks_agree
from dbpkit.purification.classifier import Undefended
from dbpkit.purification.views import gradients

X = NoisePlan.of(0, range(4)).uniform("probe", 0, torch.zeros(4, 3, 4, 4))
PLAN = NoisePlan.of(0, range(4), "select")


class Headed(nn.Module):
    """Logits (B, 6) of known values, then a head: 4 for the label, -3 to 1 for the others."""

    def __init__(self, head: Callable[[Tensor], Tensor], factor: float = 1.0) -> None:
        super().__init__()
        self.head, self.factor = head, factor
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
        with torch.no_grad():
            self.body[1].weight.copy_(0.05 * torch.eye(6, 48))
            self.body[1].bias.copy_(torch.tensor([4.0, 1.0, -1.0, -2.0, -3.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.factor * self.body(x))


def in_place(z: Tensor) -> Tensor:
    return z.mul_(8).sigmoid_()


def found(model: nn.Module) -> list[tuple[str, str]]:
    labels = torch.zeros(4, dtype=torch.long)
    flags = squashed_outputs(Probe(Undefended(model), X, labels, PLAN, Linf(4 / 255)))
    return [(flag.name, flag.severity) for flag in flags]


@pytest.mark.parametrize(
    "head",
    [
        lambda z: (8 * z).sigmoid(),  # the derivative at 32 is exp(-32) = 1e-14, beside 0.0002 at 1
        lambda z: (4 * z).tanh(),
        lambda z: torch.erf(2 * z),
        functional.hardtanh,
        lambda z: z.clamp(-2, 2),
        lambda z: (8 * z).sigmoid().log(),
        lambda z: 10 * (8 * z).sigmoid() - 3,
        lambda z: (8 * z).half().sigmoid().float(),
        lambda z: ((8 * z).sigmoid() + (8 * z.flip(0)).sigmoid()) / 2,
        in_place,
    ],
)
def test_squashed_outputs_head_that_loses_the_label_is_an_error(head: Callable[[Tensor], Tensor]) -> None:
    assert found(Headed(head)) == [("squashed_outputs", "error")]


@pytest.mark.parametrize(
    "head",
    [
        torch.sigmoid,  # the derivative of the label is 0.018, those of the others 0.05 to 0.24
        torch.tanh,
        torch.atan,
        functional.softsign,
        lambda z: torch.relu(z - 1.5),  # the others have none
        lambda z: functional.relu6(z - 1.5),
        functional.logsigmoid,
    ],
)
def test_squashed_outputs_head_that_bends_the_gradient_warns(head: Callable[[Tensor], Tensor]) -> None:
    assert found(Headed(head)) == [("squashed_outputs", "warning")]


@pytest.mark.parametrize(
    "head",
    [
        lambda z: z,
        lambda z: z.log_softmax(1),
        lambda z: z.softmax(1),  # `probabilities` names it
        lambda z: 1e-3 * z,
        lambda z: 1e3 * z,  # `saturated_loss` names it
        lambda z: z / 100 + 7,
        lambda z: z - z.mean(1, keepdim=True),
        lambda z: functional.normalize(z, dim=1),
        lambda z: 30 * (z / 30).tanh(),  # soft caps far above the logits leave them as they are
        lambda z: z.clamp(-50, 50),
        lambda z: z.half().float(),
        lambda z: (z + z.flip(0)) / 2,
        lambda z: z.unflatten(1, (6, 1, 1)).clone().flatten(1),
    ],
)
def test_squashed_outputs_harmless_head_is_not_flagged(head: Callable[[Tensor], Tensor]) -> None:
    assert found(Headed(head)) == []


def test_squashed_outputs_names_the_module_and_the_ranges() -> None:
    model = nn.Sequential(Headed(lambda z: z, 8.0), nn.Sigmoid())
    labels = torch.zeros(4, dtype=torch.long)
    (flag,) = squashed_outputs(Probe(Undefended(model), X, labels, PLAN, Linf(4 / 255)))
    assert "For 4 of 4 images the label's derivative is lost in rounding" in flag.message
    assert "in 'classifier.1' (Sigmoid)" in flag.message
    assert 'gradient = "unsquashed"' in flag.message


def test_squashed_outputs_of_a_scripted_classifier_are_seen_at_their_ends() -> None:
    scripted = torch.jit.trace(Headed(lambda z: (9 * z).sigmoid()), X)
    assert found(scripted) == [("squashed_outputs", "error")]


def test_ranks_agree_ties_of_outputs_are_allowed_and_turned_orders_are_not() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]]).repeat(3, 1)
    outputs = torch.tensor([[0.1, 0.2, 0.3], [0.0, 1.0, 1.0], [0.2, 0.1, 0.3]])
    assert ranks_agree(values, outputs).tolist() == [True, True, False]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_unsquashed_returns_the_values_before_the_head_whatever_the_batch(size: int) -> None:
    for head in (torch.sigmoid, in_place, lambda z: (3 * z).tanh() / 2):
        view = Unsquashed(Headed(head))
        plain = Headed(lambda z: z)(X)
        slope = view(X)[:size] / plain[:size]
        assert torch.allclose(slope, slope[0, 0].expand_as(slope), rtol=1e-5)  # 1, 8 and 3
        leaf = X[:size].clone().requires_grad_()
        (grad,) = torch.autograd.grad(view(leaf).sum(), leaf)
        (expected,) = torch.autograd.grad(plain_sum(leaf), leaf)
        assert torch.allclose(grad, slope[0, 0].detach() * expected, rtol=1e-5)


def plain_sum(x: Tensor) -> Tensor:
    return Headed(lambda z: z)(x).sum()


@pytest.mark.parametrize("head", [lambda z: z, lambda z: z.log_softmax(1), lambda z: z / 100])
def test_unsquashed_leaves_logits_as_they_are(head: Callable[[Tensor], Tensor]) -> None:
    model = Headed(head)
    assert torch.equal(Unsquashed(model)(X), model(X))


def test_unsquashed_classifier_that_shows_nothing_says_so() -> None:
    scripted = torch.jit.trace(Headed(torch.sigmoid), X)
    with pytest.raises(UserError, match=r"sees no values before the classifier's outputs.*return its logits"):
        Unsquashed(scripted)(X)


def test_heads_of_a_model_without_gradient_are_none() -> None:
    assert heads_of(torch.no_grad()(lambda: Headed(torch.sigmoid)(X))) == []


def test_squashed_classifier_looks_robust_and_the_view_undoes_it() -> None:
    """With 32 images and 20 iterations: logits 15.6 %, sigmoid(8z) 34.4 %, the view 3.1 %."""
    classifier = dbpkit.load_classifier("embedded", {"mirror": False})
    data = dbpkit.load_dataset("embedded").select(slice(0, 16))
    squashed = Undefended(nn.Sequential(classifier, Scaled(8.0), nn.Sigmoid()))
    threat, noise = Linf(4 / 255), NoisePlan.of(0, range(16), "attack")
    attack = make_attack("pgd", {"iterations": 8, "eot": 1})

    def right(view: nn.Module) -> int:
        x_adv = attack(Target(view), data.x(), data.labels, threat=threat, noise=noise).x_adv
        logits = squashed(threat.project(data.x(), x_adv), noise=noise)
        return int((logits.argmax(1) == data.labels).sum())

    logits = right(Undefended(classifier))
    assert right(squashed) >= logits + 3
    assert right(gradients.get("unsquashed")(squashed)) <= logits


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return self.factor * z
