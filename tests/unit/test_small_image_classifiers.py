"""The field's classifiers of small images against answers of the originals, and against published keys."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.models.networks import (
    networks,
    preact_resnet18,
    resnet18_cifar,
    resnet50_cifar,
    wideresnet,
)
from tests.derivatives import assert_derivatives
from tests.reference import key_table, reference, row_gap

MODULES = {
    "cls_robustbench_standard_wrn": wideresnet,
    "cls_trades_subblock_wrn": wideresnet,
    "cls_bmsookim_wrn": wideresnet,
    "cls_dm_wrn": wideresnet,
    "cls_robustbench_resnet18": resnet18_cifar,
    "cls_robustbench_preact_resnet18": preact_resnet18,
    "cls_diffpure_resnet50": resnet50_cifar,
}

SINGLE = 1e-5
"""Row-relative rounding of float32."""

BETWEEN_KINKS = 1e-7
"""A step in which no rectifier of these networks turns on or off, on these images."""


def name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def network_of(file: str, **changes: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """The network that names and shapes alone describe, but for the normalisation; images and logits.

    It is filled as the opener fills it, from no memory.
    """
    found, module = reference(file), MODULES[file]
    options = module.options_from_shapes(shapes_of(found.state))
    if "mean" in found.inputs:
        options |= {name: tuple(found.inputs[name].tolist()) for name in ("mean", "std")}
    elif "mean" in found.config:
        options |= {name: tuple(found.config[name]) for name in ("mean", "std")}
    with torch.device("meta"):
        network = networks.get(name_of(module))(**{**options, **changes}).eval()
    state = module.own_names(found.state) if module is wideresnet else found.state
    network.load_state_dict(state, assign=True)
    return network, found.inputs["x"], found.outputs["y"]


@pytest.mark.parametrize("file", list(MODULES))
@torch.no_grad()
def test_classifier_answers_as_the_original(file: str) -> None:
    network, x, expected = network_of(file)
    assert row_gap(network(x), expected) < SINGLE


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("cls_robustbench_standard_wrn", {"padding": "after"}),
        ("cls_robustbench_standard_wrn", {"skip_from": "input"}),
        ("cls_robustbench_standard_wrn", {"stride_in": "conv2"}),
        ("cls_robustbench_standard_wrn", {"mean": (0.5,) * 3}),
        ("cls_bmsookim_wrn", {"stride_in": "conv1"}),
        ("cls_bmsookim_wrn", {"skip_from": "activated"}),
        ("cls_bmsookim_wrn", {"mean": None, "std": None}),
        ("cls_dm_wrn", {"padding": "both"}),
        ("cls_dm_wrn", {"activation": "relu"}),
        ("cls_dm_wrn", {"std": None}),
        ("cls_robustbench_preact_resnet18", {"out_shortcut": True}),
        ("cls_diffpure_resnet50", {"mean": None, "std": None}),
    ],
)
@torch.no_grad()
def test_other_convention_is_a_clear_mismatch(file: str, change: dict[str, Any]) -> None:
    """Each has the same keys and shapes."""
    network, x, expected = network_of(file, **change)
    assert row_gap(network(x), expected) > 1e-2


@pytest.mark.parametrize("file", list(MODULES))
def test_derivatives_are_those_of_central_differences(file: str) -> None:
    network, x, _ = network_of(file)
    assert_derivatives(network.double(), x[:1], step=BETWEEN_KINKS)


@pytest.mark.parametrize(
    ("table", "module", "parameters"),
    [
        ("robustbench_standard_wrn28_10", wideresnet, 36_479_194),
        ("wrn70_16_trades_style", wideresnet, 266_796_506),
        ("diffpure_wrn70_16_dropout", wideresnet, 266_796_506),
        ("bmsookim_wrn28_10_t7", wideresnet, 36_489_290),
        ("diffpure_resnet50_cifar", resnet50_cifar, 23_520_842),
    ],
)
def test_network_of_full_size_has_the_published_keys_in_their_order(
    table: str, module: ModuleType, parameters: int
) -> None:
    shapes = key_table(table)
    with torch.device("meta"):
        network = networks.get(name_of(module))(**module.options_from_shapes(shapes))
    expected = module.own_names(shapes) if module is wideresnet else shapes
    assert list(shapes_of(network.state_dict()).items()) == list(expected.items())
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_options_of_shapes_are_those_the_network_was_made_of() -> None:
    for module, options in (
        (wideresnet, {"depth": 16, "widen_factor": 2, "classes": 7, "image_channels": 1, "sub_block1": True}),
        (resnet18_cifar, {"channels": (4, 6, 8, 10), "blocks": (1, 2, 3, 1), "classes": 7}),
        (resnet50_cifar, {"channels": (4, 6, 8, 10), "blocks": (1, 2, 3, 1), "image_channels": 1}),
        (preact_resnet18, {"channels": (4, 6, 8, 10), "blocks": (1, 2, 3, 1), "bn_before_fc": True}),
    ):
        with torch.device("meta"):
            shapes = shapes_of(networks.get(name_of(module))(**options).state_dict())
        assert options.items() <= module.options_from_shapes(shapes).items()


def test_shapes_of_another_network_are_refused() -> None:
    """Residual networks on small images share most of their names."""
    made = {name: networks.get(name)(channels=(4, 4, 4, 4), blocks=(1, 1, 1, 1)) for name in
            ("resnet18_cifar", "resnet50_cifar", "preact_resnet18")}  # fmt: skip
    for module in (resnet18_cifar, resnet50_cifar, preact_resnet18, wideresnet):
        for name, network in made.items():
            if name != name_of(module):
                with pytest.raises(UserError, match=f"not of the network '{name_of(module)}'"):
                    module.options_from_shapes(shapes_of(network.state_dict()))


def test_norm_before_the_last_layer_is_followed_by_a_rectifier() -> None:
    """No reference file has one; the layers before are those of the network without it."""
    with torch.random.fork_rng():
        network = preact_resnet18.PreActResNet18(
            channels=(4, 4, 4, 4), blocks=(1, 1, 1, 1), bn_before_fc=True
        )
    assert network.bn is not None
    nn.init.constant_(network.bn.bias, -1e3)  # below 0 everywhere, so that nothing is left but a bias
    found = network.eval()(torch.full((2, 3, 8, 8), 0.5))
    assert torch.equal(found, network.linear.bias.expand(2, -1))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="depth 29 must be 6 n"):
        wideresnet.WideResNet(depth=29)
    with pytest.raises(UserError, match="four stages"):
        resnet18_cifar.ResNet18(channels=(4, 4))
    with pytest.raises(UserError, match="four stages"):
        preact_resnet18.PreActResNet18(blocks=(1,))
    one = wideresnet.WideResNet(depth=10, widen_factor=1, mean=(0.5,), std=(0.5,), image_channels=1)
    with pytest.raises(UserError, match="made for 1 channels, not 3"):
        one(torch.zeros(1, 3, 8, 8))
