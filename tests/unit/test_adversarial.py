"""Adversarial training: its points against a plain loop, and an update that the attack leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.training.adversarial import PGD, Attacked, adversaries
from dbpkit.training.loop import train
from dbpkit.training.objectives import Batch, Classification, make_objective
from tests.integration.test_training_safety import CPU, contents, spec
from tests.oracles import uniform

PLAIN: dict[str, Any] = {"shift": 0, "cutout": 0, "flip": False, "label_smoothing": 0.0}
PART = {"name": "pgd", "options": {"eps": "8/255", "steps": 3, "step_size": "4/255"}}


class Linear(nn.Module):
    """Logits that are linear in the pixels, with weights of both signs and none of 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform(3, 16, seed=9, low=-1, high=1))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Normed(nn.Module):
    """A classifier whose training and evaluation modes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, dtype=torch.float64)
        self.linear = Linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def batch_of(count: int = 6) -> Batch:
    noise = NoisePlan.of(3, range(20, 20 + count), "train", draw=1)
    return Batch(uniform(count, 1, 4, 4, seed=5), torch.arange(count) % 3, noise)


def moved(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    return PGD(**options).moved(Attacked(model, batch.x, batch.y, batch.noise))


def objective(**options: Any) -> Classification:
    made = make_objective("classification", {**PLAIN, "adversarial": PART, **options})
    assert isinstance(made, Classification)
    return made


def test_pgd_points_are_those_of_a_plain_loop() -> None:
    """Image by image, with the derivative by hand: softmax minus one-hot, times the weights."""
    model, batch = Linear(), batch_of()
    weight = model.weight.detach()
    eps, size = 0.1, 0.04
    x_adv = batch.x + eps * (2 * batch.noise.uniform("start", 0, batch.x) - 1)
    x_adv = x_adv.clamp(0, 1)
    for _ in range(4):
        error = (x_adv.flatten(1) @ weight.T).softmax(1) - functional.one_hot(batch.y, 3)
        x_adv = x_adv + size * (error @ weight).view_as(x_adv).sign()
        x_adv = torch.minimum(torch.maximum(x_adv, batch.x - eps), batch.x + eps).clamp(0, 1)
    got = moved(model, batch, eps=eps, steps=4, step_size=size)
    torch.testing.assert_close(got, x_adv, rtol=0, atol=1e-12)


def test_pgd_reaches_the_worst_corner_of_a_linear_classifier_of_two_classes() -> None:
    """Its gradient has one sign everywhere, so the worst point of the box is known."""
    model, batch = Linear(), batch_of()
    model.weight.data[2] = model.weight.data[0] - 50  # a third class that never counts
    batch = batch._replace(y=torch.zeros_like(batch.y))
    up = (model.weight[1] - model.weight[0]).detach().view(1, 1, 4, 4).sign()
    got = moved(model, batch, eps=0.05, steps=6, step_size=0.02)
    torch.testing.assert_close(got, (batch.x + 0.05 * up).clamp(0, 1), rtol=0, atol=1e-12)


def test_pgd_starts_at_random_by_example_and_not_by_place_in_the_batch() -> None:
    model, batch = Linear(), batch_of()
    whole = moved(model, batch, eps=0.1, steps=1, step_size=1e-6)
    assert float((whole - batch.x).abs().max()) <= 0.1 + 1e-12
    assert float((whole - batch.x).abs().mean()) > 0.02
    index = torch.tensor([4, 1])
    part = Batch(batch.x[index], batch.y[index], batch.noise.rows(index))
    torch.testing.assert_close(moved(model, part, eps=0.1, steps=1, step_size=1e-6), whole[index])


def test_loss_is_that_of_the_attacked_images_and_the_attack_leaves_no_trace() -> None:
    model, batch = Normed().train(), batch_of()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    loss = objective().loss(model, batch)
    assert all(bool((p.grad == 2).all()) for p in model.parameters() if p.grad is not None)
    assert int(model.norm.num_batches_tracked) == 1  # three more if the attack ran in train mode
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    loss.backward()

    fresh = Normed().train()
    x_adv = moved(fresh, batch, eps=8 / 255, steps=3, step_size=4 / 255)
    alone = functional.cross_entropy(fresh(x_adv), batch.y)
    alone.backward()
    torch.testing.assert_close(loss.detach(), alone.detach().float())
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(p.grad - 2, q.grad, rtol=1e-5, atol=1e-6)
    plain = functional.cross_entropy(Normed().train()(batch.x), batch.y)
    assert float(loss.detach()) > float(plain.detach()) + 1e-3


def test_attack_sees_the_augmented_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def moved(self: PGD, problem: Attacked) -> Tensor:
        seen.append(problem.x)
        return torch.zeros_like(problem.x)

    monkeypatch.setattr(PGD, "moved", moved)
    batch, model = batch_of(), Linear()
    loss = objective(flip=True).loss(model, batch)
    mirrored = batch.noise.uniform("augment", 0, torch.zeros(6, 5, dtype=torch.float64))[:, 0] < 0.5
    assert 0 < int(mirrored.sum()) < 6
    expected = torch.where(mirrored[:, None, None, None], batch.x.flip(-1), batch.x)
    torch.testing.assert_close(seen[0], expected)
    assert float(loss.detach()) == pytest.approx(float(torch.tensor(3.0).log()))  # of zeros: all logits 0


def test_gradient_that_is_not_finite_is_an_error_that_says_what_to_do() -> None:
    model = Linear()
    model.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite\. Lower optimiser\.lr"):
        moved(model, batch_of())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("pdg", "unknown adversary 'pdg'"),
        ({"name": "pgd", "options": {"steps": 0}}, "steps must be"),
        ({"name": "pgd", "options": {"eps": -1}}, "eps must be"),
        ({"name": "pgd", "options": {"size": 1}}, "has no option 'size'"),
    ],
)
def test_mistaken_adversary_is_found_before_training(part: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective("classification", {"adversarial": part})


def test_none_is_training_without_an_adversary_bit_for_bit() -> None:
    batch, loss = batch_of(), objective(adversarial=None).loss(Normed().train(), batch_of())
    plain = functional.cross_entropy(Normed().train()(batch.x).float(), batch.y)
    assert torch.equal(loss, plain)
    assert "pgd" in adversaries


def test_run_stopped_and_resumed_ends_with_the_same_bytes_and_its_card_says_the_attacked_accuracy(
    tmp_path: Path,
) -> None:
    table: dict[str, Any] = {"objective_options": {"shift": 1, "cutout": 2, "adversarial": PART}}

    def stop(done: int, *_: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = train(spec(**table), tmp_path / "whole", execution=CPU)
    with pytest.raises(KeyboardInterrupt):
        train(spec(**table), tmp_path / "run", stop, CPU)
    train(spec(**table), tmp_path / "run", execution=CPU)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    plain = train(spec(), tmp_path / "plain", execution=CPU)
    assert whole.sha256 != plain.sha256
    assert "adversarial_accuracy" not in plain.figures
    assert 0 <= whole.figures["adversarial_accuracy"] <= whole.figures["accuracy"]
    assert "attacked as in training" in (tmp_path / "whole" / "card.md").read_text()
