"""The conventions next to a denoiser's own: the same weights read in the other ways that fit their shapes.

A network's file does not say whether it wants pixels in [0, 1], which half of a time embedding is the sine,
or what it predicts; each reading returns images. Which of them is right, only the error tells:
`dbpkit.checks.conventions`. The thing people get wrong: a scale that is put right on one side only. So input,
noise level and output are varied one by one and together.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.types import Denoiser
from dbpkit.models.denoisers import Adapter, EDMDenoiser, FlowDenoiser, VPDenoiser, reinterpreted
from dbpkit.models.networks.conventions import CONVENTIONS, varied
from dbpkit.models.schedule import vp_time

OTHER_LEVELS = (0.5, 0.7, 1.4, 2.0)
"""Factors on the level that the network is told."""

LEAST_INDEX = 100.0
"""Factor of continuous times below which a time is no index, and 1 more or less no next one."""

PREDICTIONS = ("noise", "v", "x0", "score")

EMBEDDINGS: dict[str, tuple[Any, ...]] = {
    "flip_sin_to_cos": (False, True),
    "downscale_freq_shift": (0, 1),
}
"""Attributes of diffusers' time embedding, which it reads at every call."""


STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Means and deviations of colour channels that classifiers are given."""

Classifier = Callable[[Tensor], Tensor]


class Neighbour(NamedTuple):
    """A denoiser of the same weights under another convention.

    Attributes:
        name: short and unique among a denoiser's neighbours, such as ``prediction v``.
        reading: what is done otherwise, to follow "if": "its output is read as v".
        denoiser: the other reading.
        coarse: whether the mistake is common and large enough to be looked for before every run.
    """

    name: str
    reading: str
    denoiser: Denoiser
    coarse: bool = False


def neighbours(denoiser: Denoiser) -> list[Neighbour]:
    """Returns the neighbours of a denoiser of this package or of any other; its weights are shared.

    Args:
        denoiser: a foreign one is varied by what it is given and returns, and by the attributes of its
            modules that name a convention of `dbpkit.models.networks.conventions` or of diffusers' embedding.
    """
    found = [*_ranges(denoiser), *_levels(denoiser)]
    if isinstance(denoiser, VPDenoiser):
        found += [*_predictions(denoiser), *_vp_times(denoiser)]
    if isinstance(denoiser, FlowDenoiser):
        found += _flows(denoiser)
    if isinstance(denoiser, EDMDenoiser):
        found += _edm_times(denoiser)
    if getattr(denoiser, "label", None) is not None:
        found.append(Neighbour("label none", "it is given no class label", changed(denoiser, label=None)))
    if isinstance(denoiser, nn.Module):
        found += _embeddings(denoiser)
    return found


def changed(denoiser: Any, **changes: Any) -> Any:
    """Returns a denoiser with other attributes; its networks and weights are the same objects."""
    other = copy.copy(denoiser)
    if isinstance(other, nn.Module):
        other._modules = dict(other._modules)  # a copy shares it, and would replace the original's network
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def rescaled(
    denoiser: Denoiser,
    scale: float = 1.0,
    shift: float = 0.0,
    level: float = 1.0,
    out: tuple[float, float] = (1.0, 0.0),
) -> Denoiser:
    """Returns x, sigma -> a D(scale x + shift, level sigma) + b, for ``out`` = (a, b)."""

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        return out[0] * denoiser(scale * x + shift, level * sigma) + out[1]

    return estimate


def told(denoiser: Denoiser, factor: float) -> Denoiser:
    """Returns a denoiser that is told ``factor`` times the level, its noise estimate taken at the true one.

    With z(s) = (u - D(u, s)) / s the estimate u - sigma z(s) has its least error at s = sigma, unless the
    network has other times or scales.
    """

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        return x - (x - denoiser(x, factor * sigma)) / factor

    return estimate


def _ranges(denoiser: Denoiser) -> Iterator[Neighbour]:
    """Another range of pixels, on both sides or on one."""
    to_unit, to_signed = (0.5, 0.5), (2.0, -1.0)
    yield Neighbour(
        "range 0 1",
        "it is given (x + 1) / 2 at half the noise level and its output y is read as 2 y - 1: its pixels are"
        " in [0, 1]",
        rescaled(denoiser, *to_unit, 0.5, to_signed),
        coarse=True,
    )
    yield Neighbour(
        "range -1 1",
        "it is given 2 x - 1 at twice the noise level and its output y is read as (y + 1) / 2: its wrapper"
        " converts pixels once too often",
        rescaled(denoiser, *to_signed, 2.0, to_unit),
        coarse=True,
    )
    yield Neighbour(
        "input halved",
        "it is given x / 2 at half the noise level and its output is doubled",
        rescaled(denoiser, 0.5, 0.0, 0.5, (2.0, 0.0)),
    )
    yield Neighbour(
        "input doubled",
        "it is given 2 x at twice the noise level and its output is halved",
        rescaled(denoiser, 2.0, 0.0, 2.0, (0.5, 0.0)),
    )
    yield Neighbour(
        "output 0 1",
        "its output y is read as 2 y - 1: it returns pixels in [0, 1]",
        rescaled(denoiser, out=to_signed),
        coarse=True,
    )
    yield Neighbour(
        "output -1 1", "its output y is read as (y + 1) / 2", rescaled(denoiser, out=to_unit), coarse=True
    )
    yield Neighbour(
        "input 0 1",
        "it is given (x + 1) / 2 at half the noise level, and its output stays as it is",
        rescaled(denoiser, *to_unit, 0.5),
        coarse=True,
    )
    yield Neighbour(
        "input -1 1",
        "it is given 2 x - 1 at twice the noise level, and its output stays as it is",
        rescaled(denoiser, *to_signed, 2.0),
    )


def _levels(denoiser: Denoiser) -> Iterator[Neighbour]:
    """Another noise level than the one that is meant."""
    for factor in OTHER_LEVELS:
        reading = f"it is told {factor:g} times the noise level: its schedule is another one"
        yield Neighbour(f"level {factor:g}", reading, told(denoiser, factor), coarse=True)
    for factor, unit in ((0.5, "[0, 1]"), (2.0, "[-1, 1]")):
        reading = f"its noise level is {factor:g} times this one: the level of pixels in {unit}"
        yield Neighbour(f"sigma {factor:g}", reading, rescaled(denoiser, level=factor), coarse=True)


def _with(
    denoiser: Adapter, name: str, reading: str, coarse: bool = False, **changes: Any
) -> list[Neighbour]:
    """The neighbour with other arguments of its adapter; none where it is the same or refused."""
    if all(getattr(denoiser, key, None) == value for key, value in changes.items()):
        return []
    try:
        return [Neighbour(name, reading, reinterpreted(denoiser, **changes), coarse)]
    except UserError:  # continuous times of a schedule that has none
        return []


def _predictions(denoiser: VPDenoiser) -> Iterator[Neighbour]:
    """The same output read as another prediction."""
    for kind in PREDICTIONS:
        reading = f'its output is read as prediction = "{kind}"'
        yield from _with(denoiser, f"prediction {kind}", reading, True, prediction=kind)


def _vp_times(denoiser: VPDenoiser) -> Iterator[Neighbour]:
    """Another unit of time, another schedule, and the next index."""
    index = 'it is given indices, time = "discrete"'
    yield from _with(denoiser, "time index", index, time="discrete")
    for scale in (999.0, 1.0):
        reading = f'it is given continuous times, time = "continuous" with time_scale = {scale:g}'
        yield from _with(denoiser, f"time {scale:g} t", reading, time="continuous", time_scale=scale)
    logarithm = "its time is ln(sigma) / 4"
    yield Neighbour("time ln", logarithm, changed(denoiser, _times=lambda sigma: sigma.log() / 4))
    other = "cosine" if denoiser.schedule.is_default else "linear"
    reading = f'its schedule is "{other}"'
    yield from _with(denoiser, f"schedule {other}", reading, time="discrete", schedule=other)
    if denoiser.time == "continuous" and denoiser.time_scale < LEAST_INDEX:
        return
    for step, which in ((1.0, "after"), (-1.0, "before")):
        shift = denoiser.time_shift + step
        yield from _with(denoiser, f"time {step:+g}", f"its time is the one {which} this", time_shift=shift)
    for rule in ("nearest", "floor") if denoiser.time != "continuous" else ():
        yield from _with(
            denoiser, f"index {rule}", f'its index is found by time_index = "{rule}"', time_index=rule
        )


def _flows(denoiser: FlowDenoiser) -> Iterator[Neighbour]:
    """The other end of the path, and the other path."""
    ends = {0: 1, 1: 0}
    clean = ends[denoiser.clean_at]
    yield from _with(denoiser, f"clean at {clean}", f"its path is clean at {clean}", clean_at=clean)
    for path in ("linear", "additive"):
        yield from _with(denoiser, f"path {path}", f"its path is {path}", path=path)


def _edm_times(denoiser: EDMDenoiser) -> Iterator[Neighbour]:
    """Other functions of the noise level than ln(sigma) / 4."""
    units: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "time ln": ("its time is ln(sigma)", lambda label: 4 * label),
        "time sigma": ("its time is sigma", lambda label: (4 * label).exp()),
        "time 999 t": (
            "its time is 999 times that of the VP chain",
            lambda label: 999 * vp_time((4 * label).exp()),
        ),
    }  # fmt: skip
    for name, (reading, unit) in units.items():
        yield Neighbour(name, reading, changed(denoiser, network=_Retimed(denoiser.network, unit)))


class _Retimed(nn.Module):
    """A network that is told a function of its time."""

    def __init__(self, network: nn.Module, unit: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.unit = network, unit

    def forward(self, x: Tensor, time: Tensor) -> Any:
        """Passes the call on."""
        return self.network(x, self.unit(time))


def _embeddings(denoiser: nn.Module) -> Iterator[Neighbour]:
    """Other orders of sine and cosine, of their frequencies, and of the rows of a qkv convolution."""
    own: dict[str, Any] = {}
    for name in (*CONVENTIONS, *EMBEDDINGS):
        of_modules = [vars(m)[name] for m in denoiser.modules() if name in vars(m)]
        own |= {name: of_modules[0]} if of_modules else {}
    for name, is_set in own.items():
        for value in {**CONVENTIONS, **EMBEDDINGS}[name]:
            if value != is_set:
                yield from _varied(denoiser, {name: value})
    for pair in (("time_order", "time_divisor"), tuple(EMBEDDINGS)):
        if own.keys() >= set(pair):  # layouts that differ in both are mixed up
            values = {**CONVENTIONS, **EMBEDDINGS}
            yield from _varied(denoiser, {n: next(v for v in values[n] if v != own[n]) for n in pair})


def _varied(denoiser: nn.Module, changes: dict[str, Any]) -> list[Neighbour]:
    """The neighbour with other attributes of its modules; none if a module of the user's cannot be copied."""
    try:
        other: Any = denoiser
        for name, value in changes.items():
            other = varied(other, name, value)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return []
    said = {n: f'"{v}"' if isinstance(v, str) else str(v).lower() for n, v in changes.items()}
    reading = " and ".join(f"its {name} is {value}" for name, value in said.items())
    return [Neighbour(" ".join(f"{name} {value}" for name, value in changes.items()), reading, other)]


def classifier_neighbours(classifier: Classifier, channels: int = 3) -> list[tuple[str, Classifier]]:
    """Returns the other ways to prepare pixels for a classifier, each with what is done, to follow "if".

    Args:
        classifier: maps images (B, C, H, W) in [0, 1] to logits.
        channels: C; colours are varied only where there are three.
    """
    found = [
        ("it is given pixels in [-1, 1]", _prepared(classifier, 2.0, -1.0)),
        ("it is given (x + 1) / 2", _prepared(classifier, 0.5, 0.5)),
        ("it is given pixels from 0 to 255", _prepared(classifier, 255.0, 0.0)),
        ("it is given pixels divided by 255", _prepared(classifier, 1 / 255, 0.0)),
    ]
    if channels != 3:
        return found
    found.append(("its channels are in reverse order", lambda x: classifier(x.flip(1))))
    for name, (mean, deviation) in STATISTICS.items():
        m, s = torch.tensor(mean)[:, None, None], torch.tensor(deviation)[:, None, None]
        given = f"pixels are normalised by the mean and deviation of {name}"
        twice = f"normalisation by the mean and deviation of {name} is undone, as if it were done twice"
        found += [(given, _prepared(classifier, 1 / s, -m / s)), (twice, _prepared(classifier, s, m))]
    return found


def _prepared(classifier: Classifier, scale: Any, shift: Any) -> Classifier:
    """A classifier of other pixels, channel by channel."""

    def classify(x: Tensor) -> Tensor:
        a, b = (v.to(x) if isinstance(v, Tensor) else v for v in (scale, shift))
        return classifier(a * x + b)

    return classify
