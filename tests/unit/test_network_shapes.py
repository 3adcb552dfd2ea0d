"""Options read off shapes that were tampered with: other options or one sentence, never another error."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dbpkit.foundation.errors import UserError
from dbpkit.models.networks import networks
from dbpkit.models.networks.shapes import Shapes

RESIDUAL = {"channels": (4, 4, 4, 4), "blocks": (1, 1, 1, 1)}

SMALL: dict[str, dict[str, Any]] = {
    "dhariwal": {"img_resolution": 8, "model_channels": 4, "channel_mult": (1, 2), "num_blocks": 1},
    "preact_resnet18": RESIDUAL,
    "resnet18_cifar": RESIDUAL,
    "resnet50_cifar": RESIDUAL,
    "songunet": {"img_resolution": 8, "model_channels": 4, "channel_mult": (1, 2), "num_blocks": 1},
    "wideresnet": {"depth": 10, "widen_factor": 1},
}


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = networks.get(name)(**SMALL[name])
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def tampered(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    """One tensor is missing, is a number, is empty or is larger."""
    for key, shape in shapes.items():
        yield {k: s for k, s in shapes.items() if k != key}
        for other in ((), (0,) * len(shape), tuple(n + 1 for n in shape)):
            yield {**shapes, key: other}
    yield {}
    yield {"enc.9x9_conv.weight": (), "layer1.0.conv1.weight": (), "bn1.weight": (1,)}


@pytest.mark.parametrize("name", list(SMALL))
def test_tampered_shapes_give_options_or_one_sentence(name: str) -> None:
    reads = importlib.import_module(f"dbpkit.models.networks.{name}").options_from_shapes
    assert SMALL[name].items() <= reads(shapes_of(name)).items()
    said = []
    for shapes in tampered(shapes_of(name)):
        try:
            reads(shapes)
        except UserError as error:  # any other is the defect looked for
            said.append(str(error))
    assert len(said) > 5
    assert all(f"not of the network '{name}'" in text and "\n" not in text for text in said)
