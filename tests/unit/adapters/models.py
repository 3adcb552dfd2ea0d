"""What every adapter is held to, and a model that refuses noise of another example."""

from typing import Any

import torch
from torch import Tensor, nn

from dbpkit import pgd
from dbpkit.attacks import AttackOutcome
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import ThreatModel
from tests.oracles import uniform

COUNT = 6

ITERATE = 1e-6
"""Agreement of two PGDs in pixels: float rounding. A sign that flips where the gradient is zero up to
rounding moves a pixel by two steps; there the two cannot agree, and the images here have no such pixel."""


class Aligned(nn.Module):
    """Refuses rows whose noise belongs to another image: pixel (0, 0) of example i is i / 8, give or take.

    Its logits depend on the example's noise, so that a wrong draw changes the attack as well. Attacks that
    leave the budget move the pixel too; for them ``refuses`` is off and only the logits tell.
    """

    sites = frozenset({"forward"})

    def __init__(self, *, refuses: bool = True, classes: int = 4, side: int = 4, sigma: float = 0.02) -> None:
        super().__init__()
        weight = uniform(classes, 1, side, side, seed=8, low=-1, high=1).float()
        weight -= weight.mean(dim=(1, 2, 3), keepdim=True)  # grey says nothing, so margins are small
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.refuses = refuses
        self.sigma = sigma

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        carried = (8 * x[:, 0, 0, 0].detach()).round().long()
        if self.refuses and not torch.equal(carried, noise.example_ids):
            raise AssertionError(f"images {carried.tolist()} met the noise of {noise.example_ids.tolist()}")
        z = torch.tanh(x + self.sigma * noise.normal("forward", 0, x))
        return torch.stack([(3 * w * z).flatten(1).sum(dim=1) for w in self.weight], dim=1)


def labelled_images(count: int = COUNT, side: int = 4) -> Tensor:
    """Float32 images that carry their number in a pixel; a budget of 0.05 cannot move it by half a step."""
    x = uniform(count, 1, side, side, low=0.4, high=0.6).float()
    x[:, 0, 0, 0] = torch.arange(count) / 8
    return x


class Taped(nn.Module):
    """A classifier whose noise is one fixed tape, looked up by example: frozen noise."""

    sites: frozenset[str] = frozenset()

    def __init__(self, model: nn.Module, tape: NoisePlan) -> None:
        super().__init__()
        self.model = model
        self.tape = tape

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        where = [self.tape.example_ids.tolist().index(i) for i in noise.example_ids.tolist()]
        return self.model(x, noise=self.tape.rows(where))


def assert_is_our_pgd(attack: Any, model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> None:
    """A library's PGD, started alike, ends where ours ends, and has moved as far as it may.

    Args:
        attack: the adapter, bound to what makes it PGD.
        options: threat, noise and iterations, which both take.
    """
    ours = pgd(model, x, y, eot=1, **options).x_adv
    theirs = attack(model, x, y, eot=1, **options).x_adv
    torch.testing.assert_close(theirs, ours, rtol=0, atol=ITERATE)
    threat: ThreatModel = options["threat"]
    reach = min(threat.eps, options["iterations"] * threat.default_step_size)
    assert float(threat.distance(x, theirs).min()) > 0.9 * reach


def assert_any_batch_gives_the_same(
    attack: Any, model: nn.Module, threat: ThreatModel, used: float, side: int = 4
) -> None:
    """However the batch is cut or ordered, images and claims are the same; a share of the budget is used."""
    x, noise = labelled_images(side=side), NoisePlan.of(0, range(COUNT), "attack")
    y = model(x, noise=noise).argmax(dim=1)  # right, so that there is something to attack

    def attacked(rows: Any) -> AttackOutcome:
        return attack(model, x[rows], y[rows], threat=threat, noise=noise.rows(rows))

    whole = attacked(slice(None))
    assert float(threat.distance(x, whole.x_adv).max()) > used * threat.eps
    for size in (1, 3):
        parts = [attacked(slice(i, i + size)) for i in range(0, COUNT, size)]
        assert torch.equal(torch.cat([p.x_adv for p in parts]), whole.x_adv)
        assert torch.equal(torch.cat([p.claimed for p in parts]), whole.claimed)
    order = torch.arange(COUNT - 1, -1, -1)
    assert torch.equal(attacked(order).x_adv[order], whole.x_adv)


def assert_claims_what_is_wrong(attack: Any, classifier: nn.Module, x: Tensor, y: Tensor) -> None:
    """Of a deterministic model: claimed exactly where the returned image is misclassified."""
    found = attack(Undefended(classifier), x, y, noise=NoisePlan.of(0, range(len(x)), "attack"), eot=1)
    wrong = classifier(found.x_adv).argmax(dim=1) != y
    assert int(wrong.sum()) > 0
    assert found.claimed.tolist() == wrong.tolist()
