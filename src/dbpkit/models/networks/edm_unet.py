"""The U-Net that both networks of EDM are: its blocks by their published names, and the walk through them.

A skip is kept after the first convolution, after every block and after every halving; an image pyramid, where
there is one, is added to what a halving returned.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.models.networks.edm_blocks import EDMBlock, ResampledConv
from dbpkit.models.networks.layers import checked_sides
from dbpkit.models.networks.shapes import Shapes, counted, times

MakeBlock = Callable[..., EDMBlock]


class Plan(NamedTuple):
    """What a U-Net of EDM is built from.

    Attributes:
        name: of the network, for errors.
        block: makes a block of (inputs, outputs), with ``attends`` and ``resample`` as keywords.
        image_channels: C of the image.
        first: width after the first convolution.
        widths: of each resolution, the finest first.
        num_blocks: of each resolution; one more on the way up.
        side: of the finest resolution.
        attended: sides at which blocks have self-attention.
        attends_last_only: whether, on the way up, only the last block of such a resolution has it.
        pyramid: taps of the image pyramid's filter, or None for no pyramid.
    """

    name: str
    block: MakeBlock
    image_channels: int
    first: int
    widths: Sequence[int]
    num_blocks: int
    side: int
    attended: Sequence[int]
    attends_last_only: bool
    pyramid: Sequence[float] | None = None


def encoder(plan: Plan) -> tuple[nn.ModuleDict, list[int]]:
    """The way down by name, and the widths of the skips it leaves."""
    found: dict[str, nn.Module] = {}
    c, aux, skips = plan.first, plan.image_channels, [plan.first]
    for level, width in enumerate(plan.widths):
        side = plan.side >> level
        if level == 0:
            found[f"{side}x{side}_conv"] = nn.Conv2d(plan.image_channels, plan.first, 3, padding=1)
        else:
            found[f"{side}x{side}_down"] = plan.block(c, c, resample="down")
            skips.append(c)
        if level and plan.pyramid is not None:
            made = ResampledConv(aux, c, 3, "down", plan.pyramid, conv_first=True)
            found[f"{side}x{side}_aux_residual"], aux = made, c
        for i in range(plan.num_blocks):
            found[f"{side}x{side}_block{i}"] = plan.block(c, width, attends=side in plan.attended)
            skips.append(c := width)
    return nn.ModuleDict(found), skips


def decoder(plan: Plan, skips: list[int]) -> nn.ModuleDict:
    """The way up by name; its blocks take the skips, the last first."""
    found: dict[str, nn.Module] = {}
    c, skips = plan.widths[-1], list(skips)
    for level, width in reversed(list(enumerate(plan.widths))):
        side = plan.side >> level
        if level == len(plan.widths) - 1:
            found[f"{side}x{side}_in0"] = plan.block(c, c, attends=True)
            found[f"{side}x{side}_in1"] = plan.block(c, c)
        else:
            found[f"{side}x{side}_up"] = plan.block(c, c, resample="up")
        for i in range(plan.num_blocks + 1):
            attends = side in plan.attended and (i == plan.num_blocks or not plan.attends_last_only)
            found[f"{side}x{side}_block{i}"] = plan.block(c + skips.pop(), width, attends=attends)
            c = width
    return nn.ModuleDict(found)


class EDMUNet(nn.Module):
    """The walk through both halves; networks add what is before and after it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        if plan.side % (multiple := 2 ** (len(plan.widths) - 1)):
            raise UserError(
                f"{plan.name}: img_resolution {plan.side} must be a multiple of {multiple}, as"
                f" channel_mult has {len(plan.widths)} resolutions."
            )
        self.name, self.side_multiple, self.image_channels = plan.name, multiple, plan.image_channels

    def add_halves(self, plan: Plan) -> None:
        """Makes both halves; after the layers of the embedding, as files have them in this order."""
        self.enc, skips = encoder(plan)
        self.dec = decoder(plan, skips)

    def walked(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps scaled images (B, C, H, W) and an embedding to features (B, width, H, W).

        Raises:
            UserError: if H or W is not a multiple of ``side_multiple``.
        """
        checked_sides(self.name, x, self.side_multiple)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
                continue
            x = layer(x, embedding) if isinstance(layer, EDMBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            if isinstance(layer, EDMBlock):
                x = layer(x, embedding)
        return x


def plan_from_shapes(shapes: Shapes, model_channels: int) -> dict[str, Any]:
    """Options that both networks have, from the shapes of a file's tensors."""
    found = [m for name in shapes if (m := re.fullmatch(r"enc\.(\d+)x\1_(?:conv|down\.conv1)\.weight", name))]
    sides = sorted({int(m[1]) for m in found}, reverse=True)
    side = sides[0]
    image_channels = shapes[f"enc.{side}x{side}_conv.weight"][1]
    widths = [shapes[f"enc.{s}x{s}_block0.conv0.weight"][0] for s in sides]
    label, augment = shapes.get("map_label.weight"), shapes.get("map_augment.weight")
    return {
        "image_channels": image_channels,
        "img_resolution": side,
        "model_channels": model_channels,
        "channel_mult": tuple(times(w, model_channels) for w in widths),
        "channel_mult_emb": times(shapes["map_layer1.weight"][0], model_channels),
        "num_blocks": counted(shapes, f"enc.{side}x{side}_block{{}}.conv0.weight"),
        "attn_resolutions": tuple(s for s in sides if f"enc.{s}x{s}_block0.qkv.weight" in shapes),
        "label_dim": label[1] if label else 0,
        "augment_dim": augment[1] if augment else 0,
    }
