"""How good a denoiser is as a generative model: the Frechet distance of its images from real ones.

Models are compared on the same images and the same noise: a value is a function of the networks, the data,
the chain and the seed. The thing people get wrong: a value without its floor. Real images have a distance
from other real images too, which falls as their number grows, and only what lies above it is the model's
doing. And only Inception features make it an FID; distances of other features have other names and scales.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.data import Dataset
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.noise import NoisePlan, permutation
from dbpkit.foundation.registry import Registry, call_with_options
from dbpkit.foundation.types import Denoiser
from dbpkit.models.sources import load_classifier, state_sha256
from dbpkit.purification.diffusion import Purifier

feature_sources: Registry[Callable[..., "Features"]] = Registry("features")

INCEPTION_FEATURES = 2048
"""Width of the pooled Inception features that define the FID."""

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of inception-2015-12-05.pt, 95,607,719 bytes, as k-diffusion's evaluation.py checks it too."""

LARGEST_INCEPTION = 2**30
"""Bytes of the largest file that is taken for it."""

WHOLE_CHAIN = 1 - 1e-9
"""The t* with which every sampler's grid is its whole chain; the grids themselves exclude 1."""


class Features(NamedTuple):
    """A function from images to features.

    Attributes:
        extract: maps images (B, C, H, W) in [0, 1] to features (B, F).
        metric: what the Frechet distance of these features is called.
        about: where they come from, ready for JSON.
    """

    extract: Callable[[Tensor], Tensor]
    metric: str
    about: dict[str, Any]


class Statistics(NamedTuple):
    """Mean (F,) and covariance (F, F) of the features of ``images`` images, float64."""

    mean: Tensor
    covariance: Tensor
    images: int


@dataclass(frozen=True)
class Chain:
    """How images are generated.

    Attributes:
        t_star: diffusion time where the chain starts, in (0, 1]. At 1 it starts from noise alone and runs the
            sampler's whole grid; below, from real images that are noised to t*. A denoiser makes sense of
            noise levels only up to those it was trained on: t* = 0.3 for the embedded ones.
        sampler: registered name or import path.
        steps: S of the sampler's published grid, which counts the whole chain.
        options: keyword arguments of the sampler.
        grid: further keyword arguments of its grid.

    Raises:
        UserError: if ``t_star`` is out of range.
    """

    t_star: float
    sampler: str = "ddim"
    steps: int = 50
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.t_star <= 1:
            raise UserError(
                f"t_star {self.t_star} is outside (0, 1]. Use 1 to start from noise alone, or at most 0.3"
                " with the embedded denoisers."
            )

    @property
    def start(self) -> str:
        """What the chain starts from, in words."""
        return "noise" if self.t_star == 1 else f"real images noised to t* = {self.t_star:g}"


class Quality(NamedTuple):
    """The quality of a denoiser; ``_asdict()`` is ready for JSON.

    Attributes:
        metric: what ``value`` and ``floor`` are: ``"FID"``, or the Frechet distance of named features.
        value: distance of the generated images from the reference images; smaller is better.
        floor: distance of as many real images, those the chains belong to, from the reference images; None
            where the reference holds these very images.
        images: number of generated images, and of the real ones of the floor.
        reference_images: number of reference images.
        features: where the features come from, and their ``count``.
        start: what the chains started from, in words.
        chain: the `Chain`.
        seed: of the noise and of the choice of images.
        data: name and sha256 of the real images.
        reference: name and sha256 of the reference images; None if they are the other half of the data.
        denoiser_sha256: hash of the denoiser's tensors.
        warning: what a reader must know of the value, or None.
    """

    metric: str
    value: float
    floor: float | None
    images: int
    reference_images: int
    features: dict[str, Any]
    start: str
    chain: dict[str, Any]
    seed: int
    data: dict[str, str]
    reference: dict[str, str] | None
    denoiser_sha256: str
    warning: str | None


@torch.no_grad()
def quality(
    denoiser: Denoiser,
    data: Dataset,
    features: Features,
    chain: Chain,
    *,
    reference: Dataset | None = None,
    images: int | None = None,
    seed: int = 0,
    batch_size: int = 100,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Quality:
    """Measures how far a denoiser's images are from real ones.

    The data are shuffled by the seed. The first ``images`` of them start the chains, or lend them their ids
    where the chains start from noise alone. The next ``images``, or all of ``reference``, are the images that
    the generated ones are compared with. The floor compares the first with these in the same way.

    Args:
        denoiser: any `Denoiser`; a module is frozen and put in eval mode.
        data: real images.
        features: what the distance is of; see `make_features`.
        chain: how images are generated.
        reference: other images of the same shape. The published protocol has the training images as ``data``
            and as ``reference``, 50,000 images and t* = 1.
        images: number of images to generate, at least 2; None takes half of the data, or all of them if there
            is a reference.
        seed: of the noise (stream ``report``) and of the order of the data, in [0, 2**32).
        batch_size: images per call; changes results by rounding at most.
        device: where images are generated and features taken; a module is moved there.
        progress: called after every batch with images generated and images in all.

    Raises:
        UserError: if there are too few images, the shapes differ, a result is not finite, or real images
            would be compared with their own reconstructions.

    Source:
        Heusel et al. 2017 (arXiv:1706.08500); for the bias of few images, which differs between models, Chong
        & Forsyth 2020 (arXiv:1911.07023).
    """
    same = reference is not None and reference.sha256 == data.sha256
    if same and chain.t_star < 1:
        raise UserError(
            f"reference '{data.name}' holds the images that the chains start from, which would be compared"
            " with themselves. Leave reference out to compare halves, or give other images."
        )
    whole(batch_size, "batch_size", 1)
    start, real = _dealt(data, reference, images, seed)
    if isinstance(denoiser, nn.Module):
        denoiser.to(device)
    noise = NoisePlan.of(seed, start.ids, "report")

    def generated() -> Iterator[Tensor]:
        for index in torch.arange(len(start)).split(batch_size):
            yield generate(denoiser, start.x(index).to(device), chain, noise=noise.rows(index))
            progress(int(index[-1]) + 1, len(start))

    def originals(of: Dataset) -> Iterator[Tensor]:
        return (of.x(index).to(device) for index in torch.arange(len(of)).split(batch_size))

    target = feature_statistics(map(features.extract, originals(real)))
    made = feature_statistics(map(features.extract, generated()))
    floor = None if same else _distance(feature_statistics(map(features.extract, originals(start))), target)
    count, fewest = len(target.mean), min(len(start), len(real))
    return Quality(
        metric=features.metric,
        value=_distance(made, target),
        floor=floor,
        images=len(start),
        reference_images=len(real),
        features={**features.about, "count": count},
        start=chain.start,
        chain=asdict(chain),
        seed=seed,
        data=_named(data),
        reference=None if reference is None else _named(reference),
        denoiser_sha256=state_sha256(denoiser),
        warning=None if fewest > count else _TOO_FEW.format(fewest, count),
    )


@torch.no_grad()
def generate(denoiser: Denoiser, x: Tensor, chain: Chain, *, noise: NoisePlan) -> Tensor:
    """Generates one image for every row of the plan.

    Noise alone is sigma z around a zero image, sigma the first level of the sampler's whole grid. With a
    discrete grid of S steps that is time 1000 - 1000 / S, where sigma is above 100.

    Args:
        denoiser: any `Denoiser`; a module is frozen and put in eval mode.
        x: real images (B, C, H, W) in [0, 1] that are noised; with ``chain.t_star`` = 1 only their shape
            and type count.
        chain: how.
        noise: plan of the same B examples.

    Returns:
        Images (B, C, H, W), clipped to [0, 1].

    Raises:
        UserError: if an option is wrong, the sampler adds no noise to its image, or a pixel is not finite.

    Example:
        >>> from dbpkit import NoisePlan, load_embedded
        >>> denoiser, _ = load_embedded()
        >>> generate(denoiser, torch.zeros(1, 3, 32, 32), Chain(t_star=0.1), noise=NoisePlan.of(0, [0])).shape
        torch.Size([1, 3, 32, 32])
    """
    settings = {**asdict(chain), "t_star": min(chain.t_star, WHOLE_CHAIN)}
    purifier = Purifier(denoiser, **settings, clamp=True)
    if "forward" not in purifier.sampler.sites:
        raise UserError(
            f"sampler '{chain.sampler}' adds no noise to the image it starts from, so it generates nothing."
            " Use one such as 'ddim' or 'ddpm'."
        )
    grey = torch.full_like(x, 0.5)  # 0 in [-1, 1]
    made = purifier(grey if chain.t_star == 1 else x, noise=noise)
    if not bool(torch.isfinite(made).all()):
        raise UserError(
            f"the denoiser made pixels that are not finite, starting from {chain.start}. Start at a smaller"
            " t_star, within the noise levels it was trained on."
        )
    return made


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, computed in float64.

    |mean_a - mean_b|**2 + tr(A + B - 2 (A B)**(1/2)). The last trace is that of (A**(1/2) B A**(1/2))**(1/2),
    a symmetric matrix with the same eigenvalues; those that rounding makes negative are 0.

    Args:
        mean_a: (F,).
        cov_a: (F, F), symmetric and positive semi-definite; it may be singular.
        mean_b: (F,).
        cov_b: (F, F), likewise.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        UserError: if shapes do not fit or a value is not finite.

    Source:
        Heusel et al. 2017 (arXiv:1706.08500), eq. 6; Dowson & Landau 1982.
    """
    mean_a, cov_a, mean_b, cov_b = (t.double() for t in (mean_a, cov_a, mean_b, cov_b))
    size = mean_a.numel()
    shapes = [tuple(t.shape) for t in (mean_a, cov_a, mean_b, cov_b)]
    if shapes != [(size,), (size, size)] * 2:
        raise UserError(
            f"expected two means (F,) with covariances (F, F), got {shapes}. Use the same features."
        )
    if not all(bool(torch.isfinite(t).all()) for t in (mean_a, cov_a, mean_b, cov_b)):
        raise UserError(
            "the mean or covariance of the features is not finite. Check the network they come from and the"
            " images it is given."
        )
    values, vectors = _spectrum(cov_a)
    _spectrum(cov_b)
    root_a = vectors * values.sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    distance = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap)
    if not math.isfinite(distance):
        raise UserError(
            "the distance of the features is too large for a number. Check the network they come from."
        )
    return max(distance, 0.0)  # equal Gaussians may come out below 0 by rounding


def _spectrum(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those that rounding makes negative as 0, and eigenvectors of a covariance.

    Raises:
        UserError: if it is not symmetric, or an eigenvalue is further below 0 than rounding puts it.
    """
    scale = float(covariance.abs().max()) if covariance.numel() else 0.0
    if not torch.allclose(covariance, covariance.T, rtol=0, atol=1e-9 * scale):
        raise UserError("a covariance must be symmetric. Use feature_statistics to make it.")
    values, vectors = torch.linalg.eigh(covariance)
    if values.numel() and float(values.min()) < -1e-6 * scale * len(covariance):
        raise UserError(
            f"a covariance must have no negative eigenvalue, not {float(values.min()):g}. Use"
            " feature_statistics to make it."
        )
    return values.clamp(min=0), vectors


def feature_statistics(batches: Iterable[Tensor]) -> Statistics:
    """Mean and covariance (divisor N - 1) of features that come in batches (B, F), in float64.

    Raises:
        UserError: if a batch is not (B, F), or there are fewer than 2 images.

    Source:
        Chan, Golub & LeVeque 1983, pairwise update: no difference of large sums, so nothing cancels.
    """
    count = 0
    mean = scatter = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        if batch.ndim != 2:
            raise UserError(f"features must be (B, F), not {tuple(batch.shape)}. Flatten or pool them.")
        rows = batch.detach().cpu().double()
        if count and rows.shape[1] != len(mean):
            raise UserError(f"features of {rows.shape[1]} values follow features of {len(mean)}.")
        if not bool(torch.isfinite(rows).all()):
            raise UserError(
                f"features of image {count + int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])} are not"
                " finite. Check the network they come from and the images it is given."
            )
        total = count + len(rows)
        shift = rows.mean(dim=0) - mean
        centred = rows - rows.mean(dim=0)
        mean = mean + shift * len(rows) / total
        scatter = scatter + centred.T @ centred + torch.outer(shift, shift) * (count * len(rows) / total)
        count = total
    if count < 2:
        raise UserError(
            f"{count} images have no covariance. Use at least 2; more than features are sensible."
        )
    return Statistics(mean, scatter / (count - 1), count)


def make_features(name: str, options: Mapping[str, Any]) -> Features:
    """Builds features by registered name or import path; UserError if an option is wrong."""
    return call_with_options(feature_sources.resolve(name), options, f"features '{name}'")


@feature_sources.register("inception")
def inception(path: str, trust: bool = False) -> Features:
    """Inception features from the TorchScript file that published FIDs use; the distance is the FID.

    Pixels are rounded to 8 bits and grey images repeated to three channels; the network resizes them itself.

    Args:
        path: ``inception-2015-12-05.pt``, a network that takes uint8 images (B, 3, H, W) and returns
            (B, 2048) features when it is called with ``return_features=True``.
        trust: run another file too. TorchScript is a program: it can read and write files.

    Raises:
        UserError: if the file is missing, unreadable, another network, or not the published one without
            ``trust``.

    Source:
        Heusel et al. 2017 (arXiv:1706.08500); Karras et al. 2020 (arXiv:2006.06676), metrics of their code.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"Inception file '{path}' is missing. Download inception-2015-12-05.pt from the metrics of"
            " NVIDIA's stylegan2-ada-pytorch, and give its path."
        )
    content, sha256 = _inception_file(file, trust)
    try:
        network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(
            f"'{path}' is no TorchScript file ({' '.join(str(error).split())[:200]}). Download"
            " inception-2015-12-05.pt again."
        ) from error
    if "return_features" not in {argument.name for argument in network.forward.schema.arguments}:
        raise UserError(f"'{path}' does not take return_features. Give inception-2015-12-05.pt.")

    @torch.no_grad()
    def extract(x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise UserError(f"Inception features need images of 1 or 3 channels, not {x.shape[1]}.")
        pixels = (255 * x).round().to(torch.uint8).expand(-1, 3, -1, -1)
        made = network.to(x.device)(pixels, return_features=True)
        if made.shape != (len(x), INCEPTION_FEATURES):
            raise UserError(
                f"'{path}' returns features {tuple(made.shape)} where {(len(x), INCEPTION_FEATURES)} were"
                " expected. Give inception-2015-12-05.pt; with another network it would be no FID."
            )
        return made

    metric = "FID" if sha256 == INCEPTION_SHA256 else f"Frechet distance of the features of {file.name}"
    return Features(extract, metric, {"name": "inception", "sha256": sha256})


def _inception_file(file: Path, trust: bool) -> tuple[bytes, str]:
    """The bytes of a TorchScript file and their sha256, checked before anything in it can run."""
    size = file.stat().st_size
    if size > LARGEST_INCEPTION:
        raise UserError(f"'{file}' has {size} bytes, and inception-2015-12-05.pt has 95607719.")
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != INCEPTION_SHA256 and not trust:
        raise UserError(
            f"'{file}' is not the published inception-2015-12-05.pt: its sha256 is {sha256} where"
            f" {INCEPTION_SHA256} was expected. TorchScript can run code: download it again, or give --trust"
            " if you trust this file."
        )
    return content, sha256


@feature_sources.register("classifier")
def from_classifier(classifier: str = "embedded", options: Mapping[str, Any] | None = None) -> Features:
    """Penultimate features of a classifier; the distance is no FID.

    Args:
        classifier: registered classifier or import path.
        options: its keyword arguments. The embedded one's features are those of the image alone unless
            ``mirror`` is set: then of the image and its mirror image, added.
    """
    options = dict(options or {})
    if classifier == "embedded":
        options.setdefault("mirror", False)
    made = classifier_features(load_classifier(classifier, options), classifier)
    return made._replace(about={**made.about, "options": options})


def classifier_features(model: nn.Module, name: str) -> Features:
    """What the last ``nn.Linear`` of a classifier is given, as features.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits; put in eval mode.
        name: what to call it in results.

    Raises:
        UserError: if the model has no ``nn.Linear``.
    """
    linears = [module for module in model.eval().modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(
            f"classifier '{name}' has no nn.Linear to take features from. Use another classifier."
        )

    @torch.no_grad()
    def extract(x: Tensor) -> Tensor:
        model.to(x.device)
        given: list[Tensor] = []  # in order of use, which need not be that of the modules
        hooks = [m.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for m in linears]
        try:
            model(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not given:
            raise UserError(
                f"classifier '{name}' uses none of its nn.Linear layers, so they are given no features. Use"
                " another classifier."
            )
        return given[-1].flatten(1)

    about = {"name": "classifier", "classifier": name, "sha256": state_sha256(model)}
    return Features(extract, f"Frechet distance of {name} classifier features", about)


_TOO_FEW = (
    "{} images for {} features: the covariance is singular and the distance much too large. Compare it with"
    " its floor, and only with values of the same images."
)


def _dealt(
    data: Dataset, reference: Dataset | None, images: int | None, seed: int
) -> tuple[Dataset, Dataset]:
    """The images that chains belong to, and those that the generated ones are compared with."""
    if reference is not None and reference.shape != data.shape:
        raise UserError(
            f"images of data '{data.name}' are {data.shape} and those of reference '{reference.name}'"
            f" {reference.shape}. Use the same size for both."
        )
    most = len(data) // 2 if reference is None else len(data)
    count = most if images is None else images
    if not 2 <= count <= most:
        raise UserError(
            f"images {count} is outside 2 to {most}, the {len(data)} images of '{data.name}'"
            f"{' in two halves' if reference is None else ''}. Ask for fewer or give more data."
        )
    order = permutation(seed, len(data), 0)
    real = data.select(order[count : 2 * count]) if reference is None else reference
    return data.select(order[:count]), real


def _distance(a: Statistics, b: Statistics) -> float:
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def _named(data: Dataset) -> dict[str, str]:
    return {"name": data.name, "sha256": data.sha256}
