"""A model that refuses noise of another example, for the tests of the adapters."""

import torch
from torch import Tensor, nn

from dbpkit.foundation.noise import NoisePlan
from tests.oracles import uniform

COUNT = 6


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
