"""State dicts of CIFAR classifiers: wide residual networks in four namings, and three other networks.

The thing people get wrong: the normalisation. Mostly it is not in the file, and a classifier without it is
right less often, and still often enough to look like one. A file's own comes first, then what its layout is
known for; pixels as they are otherwise.

Source: the layouts of RobustBench (MIT), bmsookim/wide-resnet.pytorch (MIT), DiffPure and ADDT (facts only).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from dbpkit.models.layouts.contents import Weights
from dbpkit.models.layouts.layout import Asked, Layout, Reading, layouts
from dbpkit.models.networks import preact_resnet18, resnet18_cifar, resnet50_cifar, wideresnet
from dbpkit.models.weights import Architecture


class Normalisation(NamedTuple):
    """What is subtracted from pixels in [0, 1], and what they are divided by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
"""DiffPure's and Gowal's, for CIFAR-10."""

BMSOOKIM = {
    10: Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    100: Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""bmsookim's, by number of classes."""


class _Classifier(Layout):
    """What these layouts have in common.

    Attributes:
        network: registered name.
        module: of the network, whose ``options_from_shapes`` reads a file's.
    """

    kind = "classifier"
    network: ClassVar[str]
    module: ClassVar[Any]

    def usual(self, options: Mapping[str, Any]) -> Normalisation | None:
        """The normalisation that files of this layout are known to need; None for none."""
        del options
        return None

    def named_here(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors under the network's own names."""
        return dict(tensors)

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """A classifier with its normalisation inside."""
        options = dict(self.module.options_from_shapes(weights.shapes))
        chosen, told = self._normalised(weights, options, asked)
        options |= {"mean": chosen and chosen.mean, "std": chosen and chosen.std}
        side = asked.get("image_size", 32)
        names = tuple(f"class {k}" for k in range(options["classes"]))
        shape = (options["image_channels"], side, side)
        described = Architecture("classifier", self.network, options, image_shape=shape, class_names=names)
        title = f"{self._title(options)} of {options['classes']} classes"
        return Reading(described, self.named_here(weights.tensors), title, (told,))

    def _title(self, options: Mapping[str, Any]) -> str:
        del options
        return self.title

    def _normalised(
        self, weights: Weights, options: Mapping[str, Any], asked: Asked
    ) -> tuple[Normalisation | None, str]:
        """The normalisation: the user's, the file's, or the layout's; with words of where it comes from."""
        mean, std = asked.get("mean"), asked.get("std")
        if mean is not None or std is not None:
            channels = options["image_channels"]
            found = Normalisation(_numbers(mean or [0.0] * channels), _numbers(std or [1.0] * channels))
            return found, f"normalised as asked, {_words(found)}"
        if stored := _stored(weights):
            return stored, f"normalised as in the file, {_words(stored)}"
        usual = self.usual(options)
        if usual is None:
            return None, "pixels in [0, 1] without normalisation, as usual for it (mean, std)"
        return usual, f"normalised as usual for it, {_words(usual)} (mean, std)"


@layouts.register("wide_resnet")
class WideResNetLayout(_Classifier):
    """Wide residual networks under RobustBench's names, which TRADES shares."""

    title = "RobustBench WRN"
    marks: ClassVar[tuple[str, ...]] = (
        "conv1.weight",
        "block1.layer.0.conv1.weight",
        "block3.layer.0.convShortcut.weight",
        "fc.weight",
    )
    network: ClassVar[str] = "wideresnet"
    module: ClassVar[Any] = wideresnet

    def _title(self, options: Mapping[str, Any]) -> str:
        family = "TRADES WRN" if options.get("sub_block1") else self.title
        return f"{family}-{options['depth']}-{options['widen_factor']}"

    def named_here(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors under RobustBench's names."""
        return wideresnet.own_names(tensors)


@layouts.register("wide_resnet_bmsookim")
class Bmsookim(WideResNetLayout):
    """bmsookim's wide residual networks: state dicts, and whole pickled modules (``.t7``)."""

    title = "bmsookim WRN"
    marks: ClassVar[tuple[str, ...]] = (
        "conv1.bias",
        "layer1.0.conv1.bias",
        "layer3.0.shortcut.0.bias",
        "linear.weight",
    )

    def usual(self, options: Mapping[str, Any]) -> Normalisation | None:
        """That of its training, by the number of classes."""
        return BMSOOKIM.get(options["classes"])


@layouts.register("wide_resnet_dm")
class Gowal(WideResNetLayout):
    """Wide residual networks with swish of Gowal et al. 2020, which RobustBench calls DMWideResNet."""

    title = "DM WRN"
    marks: ClassVar[tuple[str, ...]] = ("init_conv.weight", "layer.0.block.0.conv_0.weight", "logits.weight")

    def usual(self, options: Mapping[str, Any]) -> Normalisation | None:
        """That of the class, for CIFAR-10."""
        return CIFAR10 if options["classes"] == 10 else None


@layouts.register("preact_resnet18")
class PreActLayout(_Classifier):
    """RobustBench's PreActResNet-18."""

    title = "PreActResNet-18"
    marks: ClassVar[tuple[str, ...]] = (
        "conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.conv1.weight",
        "layer4.0.conv1.weight",
        "linear.weight",
    )
    network: ClassVar[str] = "preact_resnet18"
    module: ClassVar[Any] = preact_resnet18

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Networks without a norm after the first convolution."""
        return "bn1.weight" not in weights.tensors and "layer1.0.conv3.weight" not in weights.tensors


@layouts.register("resnet18")
class ResNet18Layout(_Classifier):
    """ResNet-18 and ResNet-34 on small images."""

    title = "ResNet-18 on small images"
    marks: ClassVar[tuple[str, ...]] = (
        "conv1.weight",
        "bn1.weight",
        "layer1.0.conv1.weight",
        "layer4.0.conv1.weight",
        "linear.weight",
    )
    network: ClassVar[str] = "resnet18_cifar"
    module: ClassVar[Any] = resnet18_cifar

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Networks without bottlenecks."""
        return "layer1.0.conv3.weight" not in weights.tensors


@layouts.register("resnet50_cifar")
class ResNet50Layout(_Classifier):
    """DiffPure's ResNet-50 on small images."""

    title = "ResNet-50 on small images"
    marks: ClassVar[tuple[str, ...]] = (
        "conv1.weight",
        "bn1.weight",
        "layer1.0.conv3.weight",
        "layer4.0.conv1.weight",
        "linear.weight",
    )
    network: ClassVar[str] = "resnet50_cifar"
    module: ClassVar[Any] = resnet50_cifar

    def usual(self, options: Mapping[str, Any]) -> Normalisation | None:
        """DiffPure's."""
        return CIFAR10 if options["classes"] == 10 else None


def _stored(weights: Weights) -> Normalisation | None:
    """The normalisation in a file, where a normaliser stands before the network."""
    by_kind = {name.rpartition(".")[2][0]: t for name, t in weights.aside.items()}
    if not {"m", "s"} <= by_kind.keys():
        return None
    mean, std = (tuple(by_kind[k].read().double().flatten().tolist()) for k in "ms")
    return Normalisation(mean, std) if len(mean) == len(std) and min(std, default=0) > 0 else None


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _words(found: Normalisation) -> str:
    mean, std = (" ".join(f"{v:.4g}" for v in values) for values in found)
    return f"mean {mean}, std {std}"
