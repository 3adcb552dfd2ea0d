"""The options of an ``ncsnpp`` network, read off the names and shapes of its weights."""

from typing import Any

from dbpkit.models.networks.shapes import Shapes, alien, reads_shapes

FIRST = "all_modules.0."
"""What the names of every such network have."""


@reads_shapes("ncsnpp")
def options_from_shapes(shapes: Shapes, image_size: int = 32) -> dict[str, Any]:
    """Recovers the options of a Score-SDE network from its weights' names and shapes.

    What weights do not show is taken from the family: a Fourier embedding means the published NCSN++, with
    sigma as its label, pixels in [0, 1] and the resampling filter; anything else DDPM++. Replace ``fir``,
    ``scale_by_sigma``, ``centered`` and ``skip_rescale`` where the network was trained otherwise.

    Args:
        shapes: by name, such as ``all_modules.2.weight``, without ``module.``; tensors that are not the
            network's may be among them.
        image_size: side of the images it was trained on, which its weights do not show.

    Returns:
        Options of `NCSNpp`, all that differ from its defaults or might.

    Raises:
        UserError: if these are not the weights of such a network.
    """
    kinds = _kinds(shapes)
    fourier = f"{FIRST}W" in shapes
    start = 3 if fourier else 2
    blocks = [(i, *kinds[i][1:]) for i in sorted(kinds) if kinds[i][0] == "residual"]
    resampling = [i for i, inputs, outputs, changed in blocks if changed and inputs == outputs]
    levels = len(resampling) // 2 + 1
    each, over = divmod(len(blocks) - 2 * (levels - 1) - 2 - levels, 2 * levels)
    starts = [start + 1, *(i + 1 for i in resampling[: levels - 1])]
    if len(resampling) % 2 or over or each < 1:
        raise alien("ncsnpp", f"its {len(blocks)} residual blocks make no such network")
    nf = shapes[f"all_modules.{start}.weight"][0]
    firsts = [next(b for b in blocks if b[0] >= i) for i in starts]
    widths = [outputs for _, _, outputs, _ in firsts]
    if wrong := [w for w in widths if w % nf]:
        raise alien("ncsnpp", f"a width of {wrong[0]} is no multiple of {nf}")
    attended = [kinds.get(b[0] + 1, ("",))[0] == "attention" for b in firsts]
    pyramid = any(kind[0] == "pyramid" for kind in kinds.values())
    return {
        "image_channels": shapes[f"all_modules.{start}.weight"][1],
        "image_size": image_size,
        "nf": nf,
        "ch_mult": [w // nf for w in widths],
        "num_res_blocks": each,
        "attn_resolutions": [image_size // 2**level for level in range(levels) if attended[level]],
        "embedding_type": "fourier" if fourier else "positional",
        "fir": pyramid,
        "progressive_input": "residual" if pyramid else "none",
        "scale_by_sigma": fourier,
        "centered": not fourier,
        "num_scales": shapes["sigmas"][0] if "sigmas" in shapes else 0,
    }


def _kinds(shapes: Shapes) -> dict[int, tuple[Any, ...]]:
    """What each numbered module is; of residual blocks also input and output channels and if they change."""
    if f"{FIRST}W" not in shapes and f"{FIRST}weight" not in shapes:
        raise alien("ncsnpp", f"it has no '{FIRST}weight'")
    kinds: dict[int, tuple[Any, ...]] = {}
    for name, shape in shapes.items():
        room, _, rest = name.partition(".")
        number, _, tensor = rest.partition(".")
        if room != "all_modules" or not number.isdecimal():
            continue
        if tensor == "Conv_0.weight" and len(shape) == 4:
            kinds[int(number)] = (
                "residual",
                shape[1],
                shape[0],
                f"all_modules.{number}.Conv_2.weight" in shapes,
            )
        elif tensor == "NIN_0.W":
            kinds[int(number)] = ("attention",)
        elif tensor == "Conv2d_0.weight":
            kinds[int(number)] = ("pyramid",)
    start = "all_modules.3.weight" if f"{FIRST}W" in shapes else "all_modules.2.weight"
    if len(shapes.get(start, ())) != 4 or not kinds:
        raise alien("ncsnpp", f"'{start}' is no convolution")
    return kinds
