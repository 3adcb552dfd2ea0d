"""The conventions that the field's networks differ in, against plain loops."""

import math

import pytest
import torch
from torch import nn

from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.networks.conventions import CONVENTIONS, split_qkv, time_embedding, varied


@pytest.mark.parametrize("order", CONVENTIONS["time_order"])
@pytest.mark.parametrize("divisor", CONVENTIONS["time_divisor"])
def test_time_embedding_is_its_formula(order: str, divisor: str) -> None:
    size, t = 8, torch.tensor([0.0, 1.5, 999.0], dtype=torch.float64)
    found = time_embedding(t, size, order, divisor)  # type: ignore[arg-type]
    below = 4 if divisor == "half" else 3
    for row, time in enumerate(t.tolist()):
        angles = [time * 10_000.0 ** (-k / below) for k in range(4)]
        halves = [[math.sin(a) for a in angles], [math.cos(a) for a in angles]]
        first, second = halves if order == "sin_cos" else halves[::-1]
        torch.testing.assert_close(found[row], torch.tensor(first + second, dtype=torch.float64))


@pytest.mark.parametrize("order", CONVENTIONS["qkv_order"])
def test_split_qkv_finds_every_row(order: str) -> None:
    heads, width = 2, 3
    rows = torch.arange(3.0 * heads * width)[None, :, None].expand(1, -1, 2)
    parts = split_qkv(rows, heads, order)  # type: ignore[arg-type]
    for which, part in enumerate(parts):
        assert part.shape == (1, heads, 2, width)
        for head in range(heads):
            for channel in range(width):
                place = {
                    "heads": (head * 3 + which) * width + channel,
                    "blocks": (which * heads + head) * width + channel,
                    "interleaved": (head * width + channel) * 3 + which,
                }[order]
                assert part[0, head, :, channel].tolist() == [place, place]


class _Follows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.time_order = "sin_cos"


def test_varied_shares_weights_and_leaves_the_network_alone() -> None:
    network = nn.Sequential(_Follows(), nn.Linear(2, 2))
    other = varied(network, "time_order", "cos_sin")
    assert other is not None
    assert other[0].time_order == "cos_sin"
    assert network[0].time_order == "sin_cos"
    assert all(a is b for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert varied(network, "qkv_order", "heads") is None
    x = NoisePlan.of(0, [0, 1]).normal("probe", 0, torch.zeros(2, 2))
    torch.testing.assert_close(other[1](x), network[1](x))
