"""State dicts of diffusers' ``UNet2DModel``, old names and new, and the port of Ho et al.'s DDPM.

Source: the layouts of google/ddpm-cifar10-32 and its kind, pesser/pytorch_diffusion and SDEdit.
"""

import re
from collections.abc import Mapping
from typing import Any

from dbpkit.foundation.checkpoints import Stored
from dbpkit.foundation.errors import UserError
from dbpkit.models.layouts.contents import Weights
from dbpkit.models.layouts.layout import Asked, Layout, Reading, Shapes, discrete_schedule, layouts
from dbpkit.models.networks.ho_ddpm import diffusers_name, options_from_shapes, unet_config
from dbpkit.models.weights import Architecture

OLD_NAMES: Mapping[str, str] = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
"""Names that attention had in files of 2022, and has now."""

SIDES: Mapping[tuple[int, ...], int] = {
    (1, 2, 2, 2): 32,
    (1, 1, 2, 2, 4, 4): 256,
}
"""Side of the images that the published networks of these multiples were made for."""


@layouts.register("diffusers")
class UNet2D(Layout):
    """The bare state dict of a ``UNet2DModel``, its configuration read from shapes."""

    title = "diffusers UNet2DModel"
    marks = ("time_embedding.linear_1.weight", "conv_in.weight", "down_blocks.*", "conv_norm_out.weight")

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Networks without text: those attend to nothing but the image."""
        return not any(".attn2." in name for name in weights.tensors)

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A network of the kind of google/ddpm-*: predicts noise at whole times of the linear schedule."""
        tensors = {_new_name(name): t for name, t in weights.tensors.items()}
        tensors = {name: _flat(name, t) for name, t in tensors.items()}
        config, side = _config({n: tuple(t.shape) for n, t in tensors.items()}, asked)
        said = asked.guess("network", {}, "other settings as those of google/ddpm-cifar10-32") or {}
        asked.options.pop("network", None)  # they are settings of the configuration, not of what makes it
        return _reading(tensors, {**config, **said}, side, "diffusers UNet2DModel", asked)


@layouts.register("ho_ddpm")
class HoDDPM(Layout):
    """The PyTorch port of Ho et al.'s DDPM, which is a ``UNet2DModel`` under other names."""

    title = "Ho et al.'s DDPM"
    marks = ("temb.dense.0.weight", "conv_in.weight", "down.0.block.0.conv1.weight", "mid.attn_1.q.weight")

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A network that predicts noise at whole times of the linear schedule."""
        levels = len(options_from_shapes(weights.shapes)["ch_mult"])
        renamed = {diffusers_name(name, levels): t for name, t in weights.tensors.items()}
        tensors = {name: _flat(name, t) for name, t in renamed.items()}
        config, side = _config({n: tuple(t.shape) for n, t in tensors.items()}, asked)
        return _reading(tensors, config, side, "Ho et al.'s DDPM", asked)


def _new_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _flat(name: str, tensor: Stored) -> Any:
    """Attention's weights as matrices; a 1 x 1 convolution is one."""
    if re.fullmatch(r".*\.attentions\.\d+\.to_\w+(\.0)?\.weight", name) and tuple(tensor.shape[2:]) == (1, 1):
        return Squeezed(tensor)
    return tensor


class Squeezed:
    """A stored 1 x 1 convolution as the matrix that it is."""

    def __init__(self, stored: Stored) -> None:
        self.stored, self.dtype, self.shape = stored, stored.dtype, tuple(stored.shape[:2])

    def read(self) -> Any:
        """Reads it as a tensor (out, in)."""
        return self.stored.read()[:, :, 0, 0]


def _config(shapes: Shapes, asked: Asked) -> tuple[dict[str, Any], int]:
    """What ``UNet2DModel`` is made of, by the shapes of its tensors."""
    levels = len({n.split(".")[1] for n in shapes if n.startswith("down_blocks.")})
    each = len({n.split(".")[3] for n in shapes if n.startswith("down_blocks.0.resnets.")})
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)]
    attends = [f"down_blocks.{i}.attentions.0.group_norm.weight" in shapes for i in range(levels)]
    channels, out = shapes["conv_in.weight"][1], shapes["conv_out.weight"][0]
    multiples = tuple(w // widths[0] for w in widths)
    usual = SIDES.get(multiples, 8 * 2 ** (levels - 1))
    side = asked.guess("image_size", usual, f"images of {usual} x {usual}")
    if any(n.startswith("class_embedding") for n in shapes):
        raise UserError("a class-conditional UNet2DModel needs its config.json: give its directory.")
    config = unet_config(channels, widths[0], multiples, each, (), side)
    config |= {
        "out_channels": out,
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
    }
    return config, side


def _reading(
    tensors: Mapping[str, Any], config: dict[str, Any], side: int, title: str, asked: Asked
) -> Reading:
    vp: dict[str, Any] = {"prediction": "noise", "time": "discrete"}
    if config["out_channels"] == 2 * config["in_channels"]:
        vp["variance"] = "drop"
    vp |= discrete_schedule(asked)
    shape = (config["in_channels"], side, side)
    described = Architecture("denoiser", "diffusers", {"config": config}, "vp", vp, shape)
    return Reading(described, tensors, title, ("noise at whole times",))
