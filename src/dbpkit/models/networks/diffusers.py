"""A U-Net of the diffusers library by its configuration, such as a paper-sized DDPM."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dbpkit.foundation.options import Count
from dbpkit.models.networks.registry import networks


@networks.register("diffusers")
def diffusers_unet(config: Mapping[str, Any], image_channels: Count = 3) -> nn.Module:
    """A diffusers ``UNet2DModel`` by its configuration, such as a paper-sized DDPM; for the ``vp`` denoiser.

    Args:
        config: keyword arguments of ``UNet2DModel``.
        image_channels: C of the image, unless the configuration says it.

    Raises:
        UserError: if diffusers is not installed or refuses the configuration.
    """
    from dbpkit.models.diffusers import build_unet

    return build_unet({"in_channels": image_channels, "out_channels": image_channels, **config})
