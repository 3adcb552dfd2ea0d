"""EDM's ``DhariwalUNet``: its form of ADM, class-conditional at 64 x 64 pixels in the published file.

The thing people get wrong: labels are added after the second layer of the embedding, without a factor, and
the embedding has cosines first and half as divisor, unlike `songunet`. The state dict is that of the file
without the preconditioner's ``model.``.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, CountOrNone, Counts, Share
from dbpkit.models.networks.conventions import QkvOrder
from dbpkit.models.networks.edm_blocks import EDMBlock, TimeFeatures, class_features, group_norm
from dbpkit.models.networks.edm_unet import EDMUNet, Plan, plan_from_shapes
from dbpkit.models.networks.layers import zero
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.shapes import Shapes, reads_shapes


@networks.register("dhariwal")
class DhariwalUNet(EDMUNet):
    """EDM's ADM: a U-Net whose blocks are scaled and shifted by the noise level, with heads of one width.

    Args:
        image_channels: C of the image.
        img_resolution: side of the images it was made for; it is part of the names in a file.
        model_channels: width that ``channel_mult`` multiplies.
        channel_mult: factor of each resolution, the finest first.
        channel_mult_emb: width of the noise-level embedding, in ``model_channels``.
        num_blocks: residual blocks of each resolution; one more on the way up.
        attn_resolutions: sides at which blocks have self-attention.
        channels_per_head: width of an attention head; no file says it.
        label_dim: classes; 0 for an unconditional network.
        augment_dim: augmentation labels; 0 for none.
        dropout: share dropped inside a block.
        qkv_order: how rows of ``qkv`` are read.
        out_channels: channels of the answer, twice the image's with a learned variance; None for as many as
            the image has.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), appendix F.1; Dhariwal & Nichol 2021 (arXiv:2105.05233).
    """

    def __init__(
        self,
        image_channels: Count = 3,
        img_resolution: Count = 64,
        model_channels: Count = 192,
        channel_mult: Counts = (1, 2, 3, 4),
        channel_mult_emb: Count = 4,
        num_blocks: Count = 3,
        attn_resolutions: tuple[Count, ...] = (32, 16, 8),
        channels_per_head: Count = 64,
        label_dim: CountOrNone = 0,
        augment_dim: CountOrNone = 0,
        dropout: Share = 0.0,
        qkv_order: QkvOrder = "interleaved",
        out_channels: Count | None = None,
    ) -> None:
        embedding, widths = model_channels * channel_mult_emb, [f * model_channels for f in channel_mult]
        block = partial(_block, embedding, channels_per_head, dropout=dropout, qkv_order=qkv_order)
        plan = Plan(
            "dhariwal", block, image_channels, widths[0], widths, num_blocks, img_resolution,
            attn_resolutions, attends_last_only=False,
        )  # fmt: skip
        super().__init__(plan)
        self.map_noise = TimeFeatures(model_channels, "cos_sin", "half")
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(label_dim, embedding, bias=False) if label_dim else None
        self.add_halves(plan)
        self.out_norm = group_norm(widths[0], 1e-5)
        self.out_conv = nn.Conv2d(widths[0], out_channels or image_channels, 3, padding=1)
        for made in self.modules():
            if isinstance(made, EDMBlock):
                zero(made.conv1)
                if made.heads:
                    zero(made.proj)
        zero(self.out_conv)

    def forward(
        self, x: Tensor, noise_label: Tensor, label: Tensor | None = None, *, augment: Tensor | None = None
    ) -> Tensor:
        """Maps scaled images (B, C, H, W) and noise labels (B,) to the raw answer (B, out_channels, H, W).

        Args:
            x: scaled images.
            noise_label: (B,) in the unit of the preconditioner.
            label: (B,) whole class indices, or None for zeros in the place of one class.
            augment: (B, augment_dim) augmentation labels, or None for zeros.

        Raises:
            UserError: if H or W does not fit, or labels are given that the network was not made for.
        """
        if (label is not None and self.map_label is None) or (
            augment is not None and self.map_augment is None
        ):
            what = "augmentation" if self.map_augment is None and augment is not None else "class"
            raise UserError(f"this dhariwal was not made for {what} labels. Leave them out.")
        times = noise_label.to(torch.promote_types(x.dtype, torch.float32))
        features = self.map_noise(times).to(x.dtype)
        if self.map_augment is not None and augment is not None:
            features = features + self.map_augment(augment.to(x.dtype))
        embedding = self.map_layer1(functional.silu(self.map_layer0(features)))
        if self.map_label is not None:
            embedding = embedding + class_features(self.map_label, label, embedding)
        x = self.walked(x, functional.silu(embedding))
        return self.out_conv(functional.silu(self.out_norm(x)))


def _block(
    embedding: int, per_head: int, inputs: int, outputs: int, attends: bool = False, **options: Any
) -> EDMBlock:
    """A block as ``DhariwalUNet`` has them."""
    heads = max(1, outputs // per_head) if attends else 0
    return EDMBlock(inputs, outputs, embedding, heads=heads, scales=True, **options)


@reads_shapes("dhariwal")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of a network from the shapes of its tensors, without ``model.``.

    The width of an attention head and dropout are in no file; the published network has 64 channels a head.

    Raises:
        UserError: if they are not of this network.
    """
    made = plan_from_shapes(shapes, shapes["map_layer0.weight"][1])
    out = shapes["out_conv.weight"][0]
    return {**made, "out_channels": None if out == made["image_channels"] else out}
