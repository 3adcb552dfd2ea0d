"""The U-Net of Ho et al. 2020 by the options of its PyTorch port; the network is diffusers' ``UNet2DModel``.

The port's file fits under other names, which `ho_ddpm_to_diffusers` gives it. The thing people get wrong: its
levels of the way up are counted from the finest, diffusers' from the coarsest.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Counts, Share
from dbpkit.models.networks.layers import zero
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.shapes import Shapes, counted, reads_shapes, times

_IN_BLOCK = {"temb_proj": "time_emb_proj", "nin_shortcut": "conv_shortcut"}
_IN_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OF_2022 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LIBRARY = ("down_blocks.", "mid_block.", "up_blocks.", "time_embedding.")
_OUTSIDE = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
}


@networks.register("ho_ddpm")
def ho_ddpm(
    image_channels: Count = 3,
    ch: Count = 128,
    ch_mult: Counts = (1, 2, 2, 2),
    num_res_blocks: Count = 2,
    attn_resolutions: tuple[Count, ...] = (16,),
    resolution: Count = 32,
    dropout: Share = 0.0,
) -> nn.Module:
    """The DDPM of Ho et al. 2020 as diffusers' ``UNet2DModel``; for the ``vp`` denoiser.

    Unlike the library's own, residual branches and the last layer start at 0, as in the paper's code.

    Args:
        image_channels: C of the image.
        ch: width that ``ch_mult`` multiplies, a multiple of 32.
        ch_mult: factor of each resolution, the finest first.
        num_res_blocks: residual blocks of each resolution; one more on the way up.
        attn_resolutions: sides at which blocks have self-attention.
        resolution: side of the images it was made for.
        dropout: share dropped inside a block.

    Raises:
        UserError: if diffusers is not installed or refuses the configuration.

    Source:
        Ho et al. 2020 (arXiv:2006.11239), appendix B.
    """
    from dbpkit.models.diffusers import build_unet

    made = unet_config(image_channels, ch, ch_mult, num_res_blocks, attn_resolutions, resolution)
    network: Any = build_unet({**made, "dropout": dropout})
    from diffusers.models.attention_processor import Attention, AttnProcessor
    from diffusers.models.resnet import ResnetBlock2D

    for layer in network.modules():
        if isinstance(layer, Attention):  # written out: torch's fused attention has no second derivative
            layer.set_processor(AttnProcessor())
            layer.upcast_softmax = False  # it casts down to single precision from double
            zero(layer.to_out[0])
        if isinstance(layer, ResnetBlock2D):
            zero(layer.conv2)
    zero(network.conv_out)
    made_network: nn.Module = network
    return made_network


def unet_config(
    image_channels: int,
    ch: int,
    ch_mult: tuple[int, ...],
    num_res_blocks: int,
    attn_resolutions: tuple[int, ...],
    resolution: int,
) -> dict[str, Any]:
    """Returns what ``UNet2DModel`` is made of, for the options of `ho_ddpm`."""
    attends = [(resolution >> level) in attn_resolutions for level in range(len(ch_mult))]
    return {
        "sample_size": resolution,
        "in_channels": image_channels,
        "out_channels": image_channels,
        "block_out_channels": [ch * factor for factor in ch_mult],
        "layers_per_block": num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    }


def ho_ddpm_to_diffusers(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Renames the tensors of the PyTorch port, whose attention is of 1 x 1 convolutions, for ``UNet2DModel``.

    A state of diffusers itself stays as it is, but for the names that attention had in 2022.

    Args:
        state: the port's state dict or one of diffusers, without a wrapper's prefix.

    Returns:
        The configuration of the network, and its state under diffusers' names, in the order it had.

    Raises:
        UserError: if the tensors are not of this network.
    """
    options = options_from_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    levels = len(options["ch_mult"])
    renamed = {}
    for name, tensor in state.items():
        new = diffusers_name(name, levels)
        renamed[new] = tensor.flatten(1) if ".attentions." in new and tensor.ndim == 4 else tensor
    return unet_config(**options), renamed


def diffusers_name(name: str, levels: int) -> str:
    """Returns the name that diffusers has for a tensor of the port, or for one of its own of 2022.

    Raises:
        UserError: if it is neither.
    """
    stem, _, kind = name.rpartition(".")
    if stem.startswith(_LIBRARY) or stem in _OUTSIDE.values():
        before, _, layer = stem.rpartition(".")
        return f"{before}.{_OF_2022.get(layer, layer)}.{kind}" if ".attentions." in name else name
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    where, _, layer = stem.rpartition(".")
    if where in _OUTSIDE:
        return f"{_OUTSIDE[where]}.{_layer(layer, 'attn' in where)}.{kind}"
    if found := re.fullmatch(r"(down|up)\.(\d{1,4})\.(block|attn)\.(\d{1,4})\.(\w+)", stem):
        way, level, part, i, layer = found.groups()
        part = "attentions" if part == "attn" else "resnets"
        return f"{_place(way, level, levels)}.{part}.{i}.{_layer(layer, part == 'attentions')}.{kind}"
    if found := re.fullmatch(r"(down|up)\.(\d{1,4})\.(down|up)sample\.conv", stem):
        way, level, change = found.groups()
        return f"{_place(way, level, levels)}.{change}samplers.0.conv.{kind}"
    raise UserError(
        f"these tensors are not of the network 'ho_ddpm': '{name}' is unknown. Name the network it is."
    )


def _layer(name: str, in_attention: bool) -> str:
    return (_IN_ATTENTION if in_attention else _IN_BLOCK).get(name, name)


def _place(way: str, level: str, levels: int) -> str:
    return f"{way}_blocks.{level if way == 'down' else levels - 1 - int(level)}"


@reads_shapes("ho_ddpm")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of a network from names and shapes of the port's tensors, or of diffusers'.

    The side of the images is in no file: it is taken for 256 if there are six resolutions, as for CelebA-HQ,
    and for 32 otherwise. Attention is at the right resolutions either way. Shapes do not say either whether
    attention has several heads (diffusers' ``attention_head_dim``): this network has one. Dropout is in no
    file.

    Raises:
        UserError: if they are not of this network.
    """
    ch, image_channels = shapes["conv_in.weight"][:2]
    library = "time_embedding.linear_1.weight" in shapes
    level, block, attention = (
        ("down_blocks.{}", "resnets.{}", "attentions.0.") if library else ("down.{}", "block.{}", "attn.0.")
    )
    first = f"{level}.{block.format(0)}.conv1.weight"
    levels = counted(shapes, first)
    widths = [shapes[first.format(i)][0] for i in range(levels)]
    resolution = 256 if levels >= 6 else 32
    attended = [
        i for i in range(levels) if any(n.startswith(f"{level.format(i)}.{attention}") for n in shapes)
    ]
    return {
        "image_channels": image_channels,
        "ch": ch,
        "ch_mult": tuple(times(width, ch) for width in widths),
        "num_res_blocks": counted(shapes, f"{level.format(0)}.{block}.conv1.weight"),
        "attn_resolutions": tuple(resolution >> i for i in attended),
        "resolution": resolution,
    }
