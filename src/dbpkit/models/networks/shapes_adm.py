"""The options of an ``adm`` network, read off the names and shapes of its weights."""

import re
from collections.abc import Mapping
from typing import Any

from dbpkit.models.networks.shapes import Shapes, alien, reads_shapes

NEEDED = (
    "time_embed.0.weight",
    "input_blocks.0.0.weight",
    "input_blocks.1.0.in_layers.2.weight",
    "out.2.weight",
)
"""What every such network has."""

EXCEPTIONS: Mapping[tuple[int, tuple[float, ...], int], Mapping[str, Any]] = {
    (192, (1, 2, 3, 4), 3): {"qkv_order": "blocks"},
    (256, (1, 1, 2, 3, 4), 2): {"num_head_channels": None},
}
"""What guided-diffusion's ImageNet networks of 64 and of 128 pixels have otherwise than its others, by model
channels, multiples and residual blocks; from the flags in the README of openai/guided-diffusion."""


@reads_shapes("adm")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Recovers the options of a guided-diffusion network from its weights' names and shapes.

    What weights do not show is taken from the family. ``num_head_channels`` is 64 where residual blocks
    change the resolution (guided-diffusion, consistency models) and divides their widths, and there are 4
    heads where strided convolutions do (improved-diffusion). ``qkv_order`` is ``blocks`` where attention's
    convolutions are two-dimensional (consistency models) and ``heads`` elsewhere. The two published networks
    of which that is not true are in `EXCEPTIONS`. Replace these options where the network was trained
    otherwise. A network of one resolution shows neither way of changing it.

    Args:
        shapes: by name, such as ``input_blocks.0.0.weight``; tensors that are not the network's may be among
            them.

    Returns:
        Options of `ADM`, all that differ from its defaults or might.

    Raises:
        UserError: if these are not the weights of such a network.
    """
    if missing := [name for name in NEEDED if name not in shapes]:
        raise alien("adm", f"it has no '{missing[0]}'")
    up = _numbers(shapes, r"output_blocks\.(\d+)\.\d+\.conv\.weight")
    updown = _numbers(shapes, r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight")
    ends = sorted(up | updown)
    count = len(_numbers(shapes, r"output_blocks\.(\d+)\.0\.in_layers\.0\.weight"))
    levels = len(ends) + 1
    blocks, over = divmod(count, levels)
    firsts = [1 + level * blocks for level in range(levels)]  # a level has blocks - 1, and one that halves
    names = [f"input_blocks.{i}.0.in_layers.2.weight" for i in firsts]
    if over or blocks < 2 or (up and updown) or any(name not in shapes for name in names):
        raise alien("adm", f"its {count} blocks on the way up make no such network")
    model_channels = shapes[NEEDED[0]][1]
    widths = [shapes[name][0] for name in names]
    channels = shapes[NEEDED[1]][1]
    qkv = [shape for name, shape in shapes.items() if name.endswith(".qkv.weight")]
    flat = bool(qkv) and len(qkv[0]) == 4
    multiples = [_plain(width / model_channels) for width in widths]
    found = {
        "image_channels": channels,
        "model_channels": model_channels,
        "channel_mult": multiples,
        "num_res_blocks": blocks - 1,
        "attention_resolutions": [
            2**level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes
        ],
        "learn_sigma": shapes["out.2.weight"][0] == 2 * channels,
        "num_classes": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
        "num_heads": 4,
        "num_head_channels": None if up or any(w % 64 for w in widths) else 64,
        "resblock_updown": not up,
        "use_scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "qkv_order": "blocks" if flat else "heads",
        "qkv_dims": 2 if flat else 1,
    }
    return {**found, **EXCEPTIONS.get((model_channels, tuple(multiples), blocks - 1), {})}


def _numbers(shapes: Shapes, pattern: str) -> set[int]:
    """The numbers that names of a pattern have."""
    return {int(found[1]) for name in shapes if (found := re.fullmatch(pattern, name))}


def _plain(multiple: float) -> int | float:
    return int(multiple) if multiple == int(multiple) else multiple
