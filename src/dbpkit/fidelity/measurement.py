"""How good a denoiser is as a generative model: the distance of its images from real ones, and its floor.

Models are compared on the same images and the same noise: a value is a function of the networks, the data,
the chain and the seed. The thing people get wrong: a value without its floor. Real images have a distance
from other real images too, which falls as their number grows, and only what lies above it is the model's
doing.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.data import Dataset
from dbpkit.experiment.execution import checked_device
from dbpkit.fidelity.chain import Chain, generate
from dbpkit.fidelity.distance import Statistics, feature_statistics, frechet_distance
from dbpkit.fidelity.features import Features
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.noise import NoisePlan, permutation
from dbpkit.foundation.precision import EXACT, Precision, precise
from dbpkit.foundation.types import Denoiser
from dbpkit.models.sources import state_sha256


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
        precision: what networks computed in.
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
    precision: Precision = EXACT


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
    device: str | torch.device | None = None,
    precision: Precision = EXACT,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Quality:
    """Measures how far a denoiser's images are from real ones.

    The data are shuffled by the seed. The first ``images`` start the chains, or lend them their ids where
    these start from noise alone. The next ``images``, or all of ``reference``, are what generated ones are
    compared with. The floor compares the first with these in the same way.

    Args:
        denoiser: any `Denoiser`; a module is moved, frozen and put in eval mode.
        data: real images.
        features: what the distance is of; see `make_features`.
        chain: how images are generated.
        reference: other images of the same shape. Published values have the training images as this and as
            ``data``, 50,000 images and t* = 1.
        images: how many to generate, at least 2; None takes half of the data, or all if there is a reference.
        seed: of the noise (stream ``report``) and of the order of the data, in [0, 2**32).
        batch_size: images per call; changes results by rounding at most.
        device: where it is done; None is where the denoiser is, and ``"auto"`` a GPU if there is one.
        precision: what the denoiser computes in: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.
        progress: called after every batch with images generated and images in all.

    Returns:
        The distance, its floor, and all that they depend on.

    Raises:
        UserError: if images are too few or their own reconstructions, shapes differ, or a result is infinite.

    Source:
        Heusel et al. 2017; Chong & Forsyth 2020 (arXiv:1911.07023) for the bias of few images.
    """
    same = _are_same(data, reference, chain)
    start, real = _dealt(data, reference, images, seed)
    size, where = whole(batch_size, "batch_size", 1), checked_device(device or own_device(denoiser))
    gaussians = _Gaussians(features, size, where, precision)
    target = gaussians.of(real)
    made = gaussians.of_generated(denoiser, start, chain, seed, progress)
    return Quality(
        features.metric,
        value=_distance(made, target),
        floor=None if same else _distance(gaussians.of(start), target),
        images=len(start),
        reference_images=len(real),
        features={**features.about, "count": len(target.mean)},
        **_settings(denoiser, data, chain, seed, reference),
        warning=_warning(min(len(start), len(real)), len(target.mean)),
        precision=precision,
    )


class _Gaussians(NamedTuple):
    """Mean and covariance of the features of many images, batch by batch on one device."""

    features: Features
    batch_size: int
    device: torch.device
    precision: Precision

    def of(self, data: Dataset) -> Statistics:
        """Those of the images of a data set."""
        batches = torch.arange(len(data)).split(self.batch_size)
        with precise(EXACT):  # whatever images were made in
            return feature_statistics(self.features.extract(data.x(i).to(self.device)) for i in batches)

    def of_generated(
        self,
        denoiser: Denoiser,
        start: Dataset,
        chain: Chain,
        seed: int,
        progress: Callable[[int, int], None],
    ) -> Statistics:
        """Those of one generated image for each of a data set."""
        if isinstance(denoiser, nn.Module):
            denoiser.to(self.device)
        noise = NoisePlan.of(seed, start.ids, "report")

        def batches() -> Iterator[Tensor]:
            for index in torch.arange(len(start)).split(self.batch_size):
                x = start.x(index).to(self.device)
                with precise(self.precision):
                    made = generate(denoiser, x, chain, noise=noise.rows(index))
                yield made
                progress(int(index[-1]) + 1, len(start))

        with precise(EXACT):
            return feature_statistics(map(self.features.extract, batches()))


def _are_same(data: Dataset, reference: Dataset | None, chain: Chain) -> bool:
    """Whether the reference holds the very images of the data; UserError if chains start from them."""
    same = reference is not None and reference.sha256 == data.sha256
    if same and chain.t_star < 1:
        raise UserError(
            f"reference '{data.name}' holds the images that the chains start from, which would be compared"
            " with themselves. Leave reference out to compare halves, or give other images."
        )
    return same


def _settings(
    denoiser: Denoiser, data: Dataset, chain: Chain, seed: int, reference: Dataset | None
) -> dict[str, Any]:
    """What a quality is of, by name of its field."""
    return {
        "start": chain.start,
        "chain": chain.table(),
        "seed": seed,
        "data": _named(data),
        "reference": None if reference is None else _named(reference),
        "denoiser_sha256": state_sha256(denoiser),
    }


def _warning(images: int, features: int) -> str | None:
    """What a reader must know of so many images and features."""
    return None if images > features else _TOO_FEW.format(images, features)


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
