"""A U-Net of the diffusers library by its configuration, such as a paper-sized DDPM."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dbpkit.foundation.errors import unknown_name
from dbpkit.foundation.options import Count
from dbpkit.models.networks.registry import networks

CONFIGS: dict[str, dict[str, Any]] = {
    "ddpm-cifar10": {
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    }
}
"""Configurations that a training spec names. ``ddpm-cifar10``: Ho et al. 2020 (arXiv:2006.11239), appendix B,
35.7 M parameters, with the names that the published ``google/ddpm-cifar10-32`` has."""


@networks.register("diffusers")
def diffusers_unet(config: Mapping[str, Any], image_channels: Count = 3) -> nn.Module:
    """A diffusers ``UNet2DModel`` by its configuration, such as a paper-sized DDPM; for the ``vp`` denoiser.

    Args:
        config: keyword arguments of ``UNet2DModel``. A training spec may also name them: ``ddpm-cifar10``,
            or the path of a ``config.json`` or of the directory that holds it.
        image_channels: C of the image, unless the configuration says it.

    Raises:
        UserError: if diffusers is not installed or refuses the configuration.
    """
    from dbpkit.models.diffusers import build_unet

    return build_unet({"in_channels": image_channels, "out_channels": image_channels, **config})


def spelled_out(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a training spec's options with the configuration that they name, as a weights file holds them.

    Raises:
        UserError: if there is no configuration of that name, or the file is none.
    """
    config = options.get("config")
    if not isinstance(config, str):
        return dict(options)
    if config in CONFIGS:
        return {**options, "config": dict(CONFIGS[config])}
    if not config.endswith(".json") and "/" not in config:
        raise unknown_name("diffusers configuration", config, CONFIGS)
    from dbpkit.models.diffusers import read_config

    return {**options, "config": read_config(config)}


diffusers_unet.spelled_out = spelled_out  # type: ignore[attr-defined]  # training.start asks for it
