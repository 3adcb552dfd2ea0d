"""Score-SDE's NCSN++ and DDPM++: its own checkpoints, ADDT's and ADBM's bare copies, and FlowPure's lists.

Source: the layouts of yang-song/score_sde_pytorch (Apache-2.0), LYMDLUT/ADDT, LixiaoTHU/ADBM and FlowPure.
"""

from collections.abc import Mapping
from typing import Any

from dbpkit.models.layouts.contents import Weights
from dbpkit.models.layouts.layout import Asked, Layout, Reading, layouts
from dbpkit.models.networks.ncsnpp import NCSNpp
from dbpkit.models.networks.shapes_ncsnpp import options_from_shapes
from dbpkit.models.weights import Architecture

PUBLISHED: tuple[dict[str, Any], ...] = ({"num_res_blocks": 8}, {"num_res_blocks": 4}, {"num_res_blocks": 2})
"""Options of published networks, by which averaged weights without any names are recognised."""


@layouts.register("scoresde")
class ScoreSDE(Layout):
    """Score-SDE's networks: ``model`` has the names, ``ema`` the averaged weights as a list without names.

    A file of tensors alone (ADDT's ``diffusion_model.pt``, ``net.pth``) and one of the averaged list alone
    (its ``ema_net.pth``) are taken too.
    """

    title = "Score-SDE"
    marks = ("all_modules.*", "all_modules.*.GroupNorm_0.weight", "all_modules.*.NIN_0.W")
    untrained = r"sigmas|all_modules\.0\.W"

    def accepts(self, weights: Weights, content: Any) -> bool:
        """All but FlowPure's."""
        return not _is_list(content)

    def named(self, nameless: Weights) -> Weights | None:
        """Names by a published network whose trained parameters have just these shapes."""
        import torch

        for options in PUBLISHED:
            with torch.device("meta"):
                network = NCSNpp(**options)
            own = dict(network.named_parameters())
            shadow = nameless.nameless
            if [tuple(t.shape) for t in own.values()] == [tuple(t.shape) for t in shadow]:
                return nameless._replace(tensors=dict(zip(own, shadow, strict=True)), nameless=())
        return None

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A VP network that predicts noise at 999 t, or a VE network, which divides by sigma itself."""
        side = asked.guess("image_size", 32, "images of 32 x 32")
        options = _options(weights, side)
        name = _name(options)
        adapter: tuple[str, dict[str, Any]]
        if options.get("embedding_type") == "fourier":
            adapter, told = ("ve", {}), ("score at sigma, images in [0, 1] inside",)
            name = f"{name}, VE"
        else:
            adapter = ("vp", {"prediction": "noise", "time": "continuous", "time_scale": 999.0})
            told, name = ("noise at 999 t",), f"{name}, VP"
        return _reading(weights, options, adapter, side, name, told)


@layouts.register("flowpure")
class FlowPure(ScoreSDE):
    """FlowPure's flows: a list of the state dicts of a Score-SDE network and of its optimiser."""

    title = "FlowPure"

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Lists only."""
        return _is_list(content)

    def named(self, nameless: Weights) -> Weights | None:
        """None: its files have names."""
        return None

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A network that predicts a velocity at the flow's own time."""
        side = asked.guess("image_size", 32, "images of 32 x 32")
        options = _options(weights, side)
        title = _name(options).replace("Score-SDE", "FlowPure")
        noise = asked.guess("sigma_max", 0.3, "noise of 0.3 in training")
        flow = ("flow", {"path": "additive", "clean_at": 1, "sigma_max": noise})
        return _reading(weights, options, flow, side, title, ("velocity at t in [0, 1], clean at 1",))


def _is_list(content: Any) -> bool:
    return isinstance(content, list | tuple)


def _options(weights: Weights, side: int) -> dict[str, Any]:
    """The network's options from shapes, for images of a side."""
    return options_from_shapes(weights.shapes, side)


def _name(options: Mapping[str, Any]) -> str:
    """What the field calls a network of these options."""
    family = "NCSN++" if options.get("embedding_type") == "fourier" else "DDPM++"
    deep = options["num_res_blocks"] >= 8
    return f"Score-SDE {family}{' (deep)' if deep else ''}"


def _reading(
    weights: Weights,
    options: Mapping[str, Any],
    adapter: tuple[str, Mapping[str, Any]],
    side: int,
    title: str,
    conventions: tuple[str, ...],
) -> Reading:
    channels = options.get("image_channels", 3)
    described = Architecture("denoiser", "ncsnpp", options, *adapter, (channels, side, side))
    return Reading(described, weights.tensors, title, conventions)
