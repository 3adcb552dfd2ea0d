"""The state dicts of guided-diffusion, improved-diffusion and consistency models, which share their names.

Source: the layouts of openai/guided-diffusion, openai/improved-diffusion and openai/consistency_models (MIT).
"""

from collections.abc import Mapping
from typing import Any

from dbpkit.foundation.errors import UserError
from dbpkit.models.layouts.contents import Weights
from dbpkit.models.layouts.layout import Asked, Layout, Reading, discrete_schedule, layouts
from dbpkit.models.networks.shapes_adm import options_from_shapes
from dbpkit.models.weights import Architecture

MARKS = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.*", "out.2.weight")

SIDES: Mapping[tuple[float, ...], int] = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
    (1, 2, 3, 4): 64,
    (1, 2, 2, 2): 32,
}
"""Side of the images that the published networks of these multiples were made for."""

COSINE = ((192, (1, 2, 3, 4), 3),)
"""Model channels, multiples and residual blocks of guided-diffusion's network that was trained on the cosine
schedule, that of 64 x 64 images; from the flags in the README of openai/guided-diffusion."""


@layouts.register("guided_diffusion")
class GuidedDiffusion(Layout):
    """A bare state dict: guided-diffusion's ADM, with classes or without, or improved-diffusion's network."""

    title = "guided-diffusion"
    marks = MARKS

    def accepts(self, weights: Weights, content: Any) -> bool:
        """All but consistency models, whose attention has two-dimensional convolutions."""
        return not _is_flat(weights)

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A network that predicts noise at whole times, mostly with a learned variance beside it."""
        options, side = _options(weights, asked)
        if options["image_channels"] == 6 and not options["learn_sigma"]:
            raise UserError(
                "the file is a guided-diffusion upsampler: its network takes six channels, an image and a"
                " smaller one. Use the network without 'upsampler' in its name, which denoises images alone."
            )
        improved = not options["resblock_updown"]
        family = "improved-diffusion U-Net" if improved else "guided-diffusion ADM"
        vp: dict[str, Any] = {"prediction": "noise", "time": "rescaled" if improved else "discrete"}
        told = ["noise at index x 1000 / T" if improved else "noise at whole times"]
        if options["learn_sigma"]:
            vp["variance"] = "drop"
            told.append("learned variance dropped")
        kind = (options["model_channels"], tuple(options["channel_mult"]), options["num_res_blocks"])
        usual_steps = 4000 if improved and options["learn_sigma"] else 1000
        usual = "cosine" if usual_steps == 4000 or kind in COSINE else "linear"
        vp |= discrete_schedule(asked, usual, usual_steps)
        return _reading(weights, options, ("vp", vp), side, family, tuple(told), asked)


@layouts.register("consistency")
class Consistency(Layout):
    """A bare state dict of consistency models' network, which is called once."""

    title = "consistency models"
    marks = MARKS

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Networks whose attention has two-dimensional convolutions."""
        return _is_flat(weights)

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A network with the boundary scalings of consistency models."""
        options, side = _options(weights, asked)
        return _reading(
            weights, options, ("consistency", {}), side, "consistency model", ("x0 at 250 ln sigma",), asked
        )


def _is_flat(weights: Weights) -> bool:
    """Whether qkv convolutions are two-dimensional."""
    return any(name.endswith(".qkv.weight") and len(s) == 4 for name, s in weights.shapes.items())


def _options(weights: Weights, asked: Asked) -> tuple[dict[str, Any], int]:
    """The network's options from shapes and the side of its images; heads and qkv order may be said."""
    options = options_from_shapes(weights.shapes)
    multiples = tuple(options["channel_mult"])
    usual = SIDES.get(multiples, 8 * 2 ** (len(multiples) - 1))
    side = asked.guess("image_size", usual, f"images of {usual} x {usual}")
    said = asked.get("network") or {}
    heads = {name: said[name] for name in ("num_heads", "num_head_channels", "qkv_order") if name in said}
    if "num_heads" in heads and "num_head_channels" not in heads:
        heads["num_head_channels"] = None
    options |= heads
    if not heads:
        width = options["num_head_channels"]
        words = f"heads of {width} channels" if width else f"{options['num_heads']} heads"
        asked.guesses.append(f"{words}, qkv rows by {options['qkv_order']} (network)")
    return options, side


def _reading(
    weights: Weights,
    options: dict[str, Any],
    adapter: tuple[str, dict[str, Any]],
    side: int,
    family: str,
    conventions: tuple[str, ...],
    asked: Asked,
) -> Reading:
    """A reading with the label of a class-conditional network."""
    classes = options["num_classes"]
    if classes:
        adapter[1]["label"] = asked.guess("label", 0, f"class 0 of {classes} for every image")
        family += f" of {classes} classes"
    shape = (options["image_channels"], side, side)
    return Reading(
        Architecture("denoiser", "adm", options, *adapter, shape), weights.tensors, family, conventions
    )
