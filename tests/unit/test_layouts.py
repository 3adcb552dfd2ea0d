"""Published files of full size, by names and shapes alone: recognised, and every tensor has its place."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit.foundation.checkpoints import Checkpoint
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import options_of
from dbpkit.models import opening
from dbpkit.models.layouts import Asked, layouts
from dbpkit.models.networks import networks
from dbpkit.models.sources import classifier_sources
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


def adm_reading(**options: Any) -> Any:
    """What the opener makes of a guided-diffusion network of these options."""
    with torch.device("meta"):
        network = networks.get("adm")(**options)
    content = shapes_only({name: tuple(t.shape) for name, t in network.state_dict().items()})
    asked, file = Asked({}), Path("weights.pt")
    name, layout, weights = opening.recognised(Checkpoint("torch zip", content), None, asked, file)
    return opening.read(layout, weights, asked, file, name)


ADM_64 = {
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_res_blocks": 3,
    "attention_resolutions": (2, 4, 8),
    "qkv_order": "blocks",
}


def test_guided_diffusion_of_64_pixels_is_read_with_its_cosine_schedule() -> None:
    reading = adm_reading(**ADM_64)

    assert reading.architecture.denoiser_options["schedule"] == {
        "beta_schedule": "cosine",
        "num_train_timesteps": 1000,
    }
    assert reading.architecture.options["qkv_order"] == "blocks"


def test_upsampler_of_guided_diffusion_is_refused() -> None:
    with pytest.raises(UserError, match="guided-diffusion upsampler"):
        adm_reading(**ADM_64, image_channels=6, learn_sigma=False)


def test_refusals_name_options_that_their_source_has() -> None:
    seen = 0
    for name in layouts:
        for source, options in re.findall(
            r"classifier = \{ name = '(\w+)', options = \{ (.*?) \} \}", layouts.get(name).refusal
        ):
            given = set(re.findall(r"(\w+) =", options))
            assert given <= options_of(classifier_sources.get(source)).keys(), name
            seen += 1
    assert seen >= 3
