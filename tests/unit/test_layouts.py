"""Published files of full size, by names and shapes alone: recognised, and every tensor has its place."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from dbpkit.foundation.checkpoints import Checkpoint
from dbpkit.models import opening
from dbpkit.models.layouts import Asked
from tests.checkpoint_files import numbers, shapes_only
from tests.reference import key_table

FULL = {
    "scoresde_vp_cifar10_ddpmpp_deep_continuous": ("scoresde", 106_632_579),
    "scoresde_vp_cifar10_ddpmpp_continuous": ("scoresde", 61_804_419),
    "addt_ncsnpp_vp_deep": ("scoresde", 106_632_579),
    "edm_cifar10_uncond_vp": ("edm", 55_733_891),
    "edm_cifar10_cond_vp": ("edm", 55_735_299),
    "edm_cifar10_uncond_ve": ("edm", 56_397_827),
    "edm_imagenet64_cond_adm": ("edm", 295_899_267),
    "guided_diffusion_256_uncond": ("guided_diffusion", 552_814_086),
    "hao_ddpm_cifar10": ("ho_ddpm", 35_746_307),
    "bmsookim_wrn28_10_t7": ("wide_resnet_bmsookim", 36_489_290),
    "robustbench_standard_wrn28_10": ("wide_resnet", 36_479_194),
    "wrn70_16_trades_style": ("wide_resnet", 266_796_506),
    "diffpure_wrn70_16_dropout": ("wide_resnet", 266_796_506),
    "diffpure_resnet50_cifar": ("resnet50_cifar", 23_520_842),
}
"""Layout and count of all numbers of each published file, buffers included where the counts include them."""


@pytest.mark.parametrize("table", FULL)
def test_published_file_is_recognised_and_its_network_has_every_tensor(table: str) -> None:
    shapes, (expected, count) = key_table(table), FULL[table]
    content = shapes_only(shapes)
    for name, stored in content.items():
        stored.dtype = torch.int64 if name.endswith("num_batches_tracked") else stored.dtype
    checkpoint, asked, file = Checkpoint("torch zip", content), Asked({}), Path("weights.pth")

    name, layout, weights = opening.recognised(checkpoint, None, asked, file)
    reading = opening.read(layout, weights, asked, file, name)
    network = opening.empty_network(reading.architecture)

    own = {key: tuple(t.shape) for key, t in network.state_dict().items()}
    assert name == expected
    assert own == {key: tuple(t.shape) for key, t in reading.tensors.items()}
    assert all(t.is_meta for t in network.state_dict().values())
    assert numbers(own) + numbers({k: s for k, s in shapes.items() if k == "u"}) == numbers(shapes)
    counted = {k: s for k, s in shapes.items() if "running" not in k and "num_batches" not in k}
    assert count in (numbers(counted), numbers(shapes), numbers(shapes) - numbers(skipped(shapes)))


def skipped(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What is not trained: filters, frequencies and the table of levels."""
    return {k: s for k, s in shapes.items() if k.endswith(("resample_filter", ".freqs", "sigmas"))}


@pytest.mark.parametrize("deep", [True, False])
def test_nameless_averages_of_published_networks_are_recognised_by_their_shapes(deep: bool) -> None:
    table = "addt_ncsnpp_vp_deep" if deep else "scoresde_vp_cifar10_ddpmpp_continuous"
    shapes = {name: shape for name, shape in key_table(table).items() if name != "module.sigmas"}
    content = {"decay": 0.99, "shadow_params": list(shapes_only(shapes).values())}

    name, _, weights = opening.recognised(Checkpoint("torch zip", content), None, Asked({}), Path("ema.pth"))

    assert name == "scoresde"
    assert weights.shapes == {key.removeprefix("module."): shape for key, shape in shapes.items()}
