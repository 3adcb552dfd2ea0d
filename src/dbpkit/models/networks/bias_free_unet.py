"""A U-Net without additive constants, which is not told the noise level: f(a x) = a f(x) for every a > 0."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.unet import UNet

TINY = 1e-20
"""Added to squares before a root, so that an image of zeros has a gradient; other squares are far larger."""


@networks.register("bias_free_unet")
class BiasFreeUNet(UNet):
    """The `UNet` of the same options without biases, and with a look at the image for the noise level.

    No layer adds a constant, the image is divided by its root mean square, and the answer is multiplied by
    it. So the answer scales with the image, and by Euler's theorem f(x) = J(x) x: it is a linear filter that
    adapts to the image. Where the `UNet` embeds the noise level it is told, this one embeds the mean absolute
    responses of 3 x 3 filters; a gain read off them stands where a preconditioned network is multiplied by
    the level.

    Args:
        image_channels: C of the image.
        channels: width of each resolution, the finest first.
        blocks: residual blocks of each resolution on the way down, and again on the way up; the
            coarsest resolution has them once.
        patch_size: side of the patches that are folded into channels before the first layer.
        embedding_size: width of the embedding.
        attention: whether the coarsest resolution ends with self-attention.

    Source:
        Mohan et al., ICLR 2020 (arXiv:1906.05478), sections 3 and 4: what a denoiser without additive
        constants is. Embedding and gain are this package's.
    """

    def __init__(
        self,
        image_channels: Count = 3,
        channels: tuple[Count, ...] = (96, 128),
        blocks: tuple[Count, ...] = (2, 3),
        patch_size: Count = 2,
        embedding_size: Count = 64,
        attention: bool = True,
    ) -> None:
        super().__init__(image_channels, channels, blocks, patch_size, embedding_size, attention)
        self.embed = _Responses(image_channels, channels[0], patch_size, embedding_size)  # type: ignore[assignment]
        self.gain = nn.Linear(embedding_size, 1, bias=False)
        nn.init.zeros_(self.gain.weight)
        for module in self.modules():
            if getattr(module, "bias", None) is not None:
                module.register_parameter("bias", None)
            if isinstance(module, nn.GroupNorm):
                module.eps = TINY

    def forward(self, x: Tensor, told: Any = None) -> Tensor:
        """Maps images (B, C, H, W) of any scale to (B, C, H, W).

        Raises:
            UserError: if H or W is not a multiple of ``side_multiple``, or it is told a level or a class.
        """
        if told is not None:
            raise UserError(
                "bias_free_unet is told neither noise level nor class. Use the adapter 'blind', no label."
            )
        exact = torch.promote_types(x.dtype, torch.float32)
        size = (x.to(exact).square().mean(dim=(1, 2, 3), keepdim=True) + TINY).sqrt()
        scaled = (x / size).to(x.dtype)
        gain = self.gain(self.embed(scaled)).to(exact).exp()[:, :, None, None]
        return (size * gain * super().forward(scaled, scaled)).to(x.dtype)


class _Responses(nn.Module):
    """Embeds images (B, C, H, W) by the mean absolute responses of learned filters: (B, size)."""

    def __init__(self, image_channels: int, filters: int, patch_size: int, size: int) -> None:
        super().__init__()
        self.fold = nn.PixelUnshuffle(patch_size)
        self.filters = nn.Conv2d(image_channels * patch_size**2, filters, 3, padding=1)
        self.mix = nn.Linear(filters, size)

    def forward(self, x: Tensor) -> Tensor:
        responses = self.filters(self.fold(x).contiguous(memory_format=torch.channels_last))
        return functional.silu(self.mix(responses.abs().mean(dim=(2, 3))))
