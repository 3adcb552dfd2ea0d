"""EDM's pickles, training states and bare state dicts, and MeanFlow's checkpoints of the same network.

Source: the layouts of NVlabs/edm (facts only: names, classes, formulas of Karras et al. 2022,
arXiv:2206.00364) and Gsunshine/py-meanflow (Geng et al. 2025, arXiv:2505.13447).
"""

from collections.abc import Mapping
from typing import Any

from dbpkit.models.layouts.contents import Weights
from dbpkit.models.layouts.layout import Asked, Layout, Reading, layouts
from dbpkit.models.networks import dhariwal, songunet
from dbpkit.models.weights import Architecture

PRECONDITIONING: Mapping[str, tuple[str, str]] = {
    "EDMPrecond": ("edm", "EDM preconditioning"),
    "VPPrecond": ("vp_precond", "EDM's VP preconditioning"),
    "VEPrecond": ("ve_precond", "EDM's VE preconditioning"),
    "iDDPMPrecond": ("iddpm", "EDM's iDDPM preconditioning"),
}
"""Adapter and words for each class of the published preconditioners."""

STORED = ("channels_per_head",)
"""Stored arguments of a network that its shapes do not show."""


@layouts.register("edm")
class EDM(Layout):
    """EDM's SongUNet or DhariwalUNet, with the preconditioner's class where the file is a pickle."""

    title = "EDM"
    marks = ("map_layer0.weight", "map_layer1.weight", "enc.*_conv.weight", "dec.*_in0.*")

    def accepts(self, weights: Weights, content: Any) -> bool:
        """All but MeanFlow's."""
        return not _is_meanflow(weights)

    def trained(self, weights: Weights) -> list[str]:
        """Everything but constant filters and frequencies."""
        return [n for n in weights.tensors if not n.endswith((".resample_filter", ".freqs"))]

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A network under its own preconditioning, as EDM's where a bare state dict does not say which."""
        network, options = _network(weights)
        name = next((c for c in weights.classes.values() if c in PRECONDITIONING), None)
        if name is None:
            name = "iDDPMPrecond" if "u" in weights.aside else "EDMPrecond"
            if name == "EDMPrecond":
                asked.guess("preconditioning", None, "EDM preconditioning")
        adapter, told = PRECONDITIONING[name]
        if classes := options.get("label_dim"):
            asked.guess("label", None, f"no class of {classes}")
        family = {"songunet": "NCSN++" if options.get("embedding_type") == "fourier" else "DDPM++"}
        title = f"EDM {family.get(network, 'ADM')}{' of ' + str(classes) + ' classes' if classes else ''}"
        return _reading(weights, network, options, (adapter, {}), title, (told,))


@layouts.register("meanflow")
class MeanFlow(Layout):
    """MeanFlow's checkpoints: EDM's SongUNet, told two times, in several averages."""

    title = "MeanFlow"
    marks = EDM.marks

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Networks that are told two times."""
        return _is_meanflow(weights)

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A network that predicts the average velocity."""
        told = ("average velocity from t to 0",)
        return _reading(weights, *_network(weights), ("meanflow", {}), "MeanFlow SongUNet", told)


def _is_meanflow(weights: Weights) -> bool:
    """Whether the first layer takes the embeddings of two times, each twice as wide as the first level."""
    shapes = weights.shapes
    start = next((s for n, s in shapes.items() if n.startswith("enc.") and n.endswith("_conv.weight")), (0,))
    return shapes.get("map_layer0.weight", (0, 0))[1] == 4 * start[0] > 0


def _network(weights: Weights) -> tuple[str, dict[str, Any]]:
    """Name and options of the network, from shapes and stored arguments."""
    name, module = ("dhariwal", dhariwal) if "out_norm.weight" in weights.tensors else ("songunet", songunet)
    return name, dict(module.options_from_shapes(weights.shapes))


def _reading(
    weights: Weights,
    network: str,
    options: dict[str, Any],
    adapter: tuple[str, dict[str, Any]],
    title: str,
    conventions: tuple[str, ...],
) -> Reading:
    """A reading of the stored arguments too, where the file is a pickle."""
    stored = next((s for s in weights.settings.values() if "channels_per_head" in s), {})
    options |= {name: stored[name] for name in STORED if name in stored}
    side = options["img_resolution"]
    shape = (options["image_channels"], side, side)
    return Reading(
        Architecture("denoiser", network, options, *adapter, shape), weights.tensors, title, conventions
    )
