"""Image files in, purified image files out.

The thing people get wrong: noise by position. Here an image's noise follows its file name, so the same file
is purified alike whatever stands beside it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dbpkit.checks.levels import outside_trained_levels, suspicious_grid
from dbpkit.data.dataset import path_id
from dbpkit.data.pictures import Mode, as_unit, read_picture
from dbpkit.experiment.build import make_purifier
from dbpkit.experiment.execution import AUTO, checked_device
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.image_folder import ImageFolder
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.png import eight_bits, png_bytes
from dbpkit.foundation.precision import EXACT, Precision, checked_precision, precise
from dbpkit.foundation.rows import free, is_out_of_memory
from dbpkit.models.networks.layers import placed
from dbpkit.models.sources import load_denoiser, source
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.purifier import PurifiesImages, takes_denoiser
from dbpkit.results.flags import Flag

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]


def read_image(path: str | Path, mode: Mode = "RGB") -> Tensor:
    """Reads an image file as (C, H, W) float32 in [0, 1]; see `dbpkit.data.pictures.read_picture`."""
    return as_unit(read_picture(path, mode=mode))


def as_png(x: Tensor, where: str = "image") -> bytes:
    """Returns an image (C, H, W) of 1 or 3 channels in [0, 1], rounded to 8 bits, as a PNG file.

    Raises:
        UserError: if it has other channels, or a pixel is not finite.
    """
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise UserError(f"{where}: an image of 1 or 3 channels is expected, not {tuple(x.shape)}.")
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"{where}: the purified image is not finite.")
    return png_bytes(eight_bits(x.detach().cpu()), smallest=False)


def purify_files(
    paths: Sequence[Path],
    out: Path,
    spec: PurifierSpec,
    denoiser: str = "embedded",
    seed: int = 0,
    progress: Progress = lambda *_: None,
    *,
    options: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    precision: Precision = EXACT,
) -> list[Path]:
    """Purifies image files one by one and writes ``<name>.png`` into a folder.

    What this function did not write is never overwritten; a second call replaces what the first one wrote.
    Whatever goes wrong with one image, the others are written.

    Args:
        paths: image files of any size the denoiser accepts.
        out: folder for the results.
        spec: purifier settings.
        denoiser: registered name, import path, or a weights file; loaded for a purifier that has one.
        seed: seed of the noise.
        progress: called after every image.
        options: of the denoiser's source.
        device: where the network runs; None or ``"auto"`` is a GPU if there is one.
        overwrite: whether other files of the results' names are replaced too; the images given never are.
        precision: what the network computes in: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.

    Returns:
        The files written.

    Raises:
        UserError: if two names collide or a result would replace another file, before the first image; or,
            after every good image is written, if any failed.
    """
    folder = ImageFolder(Path(out))
    targets = folder.targets(paths, overwrite)
    where = checked_device(device or AUTO)
    purifier = _purifier(spec, denoiser, options or {}, where)
    for flag in chain_flags(purifier, spec):
        log.warning("%s", flag.message)
    one = _One(purifier, seed, where, precision)
    written, problems = [], []
    for done, (path, target) in enumerate(targets.items(), start=1):
        try:
            folder.write(target, one(path))
        except UserError as error:
            problems.append(str(error))
        except Exception as error:  # of the user's own denoiser or sampler, or of memory: the others go on
            problems.append(f"image '{path}' failed ({type(error).__name__}: {excerpt(error)}).")
        else:
            written.append(target)
        progress(done / len(targets), path.name)
    if problems:
        raise UserError(
            f"{len(written)} of {len(paths)} images were purified into '{out}'; not: {' '.join(problems)}"
        )
    return written


def _purifier(
    spec: PurifierSpec, denoiser: str, options: Mapping[str, Any], where: torch.device
) -> PurifiesImages:
    """Makes the purifier, around the denoiser if it has one, on a device."""
    network = None
    if takes_denoiser(spec.name):
        name, own = source(denoiser)
        network = load_denoiser(name, {**own, **options})
        network = placed(network, where)
    purifier = make_purifier(spec, network)
    placed(purifier, where)
    return purifier


def chain_flags(purifier: PurifiesImages, spec: PurifierSpec) -> list[Flag]:
    """Flags of a diffusion chain's levels and steps; a filter has none."""
    if not isinstance(purifier, Purifier):
        return []
    return [
        *outside_trained_levels(purifier.denoiser, purifier.sampler.levels),
        *suspicious_grid(spec.sampler, purifier.calls),
    ]


class _One:
    """Purifies one file; the purifier's channels are found out with the first that can be read."""

    def __init__(
        self, purifier: PurifiesImages, seed: int, device: torch.device, precision: Precision = EXACT
    ) -> None:
        self.purifier = purifier
        self.seed = seed
        self.device = device
        self.precision = checked_precision(precision)
        self.mode: Mode = "RGB"
        self.asked = False

    @torch.no_grad()
    def __call__(self, path: Path) -> bytes:
        with precise(self.precision):
            return self._png(path)

    def _png(self, path: Path) -> bytes:
        x = read_picture(path, mode=self.mode)
        if not self.asked and self._takes_grey(x):
            self.mode = "L"
            x = read_picture(path, mode="L")
        x = as_unit(x)[None].to(self.device)
        try:
            x_pure = self.purifier(x, noise=NoisePlan.of(self.seed, [path_id(path.stem)]))
        except RuntimeError as error:
            if is_out_of_memory(error):
                free(error)
                raise UserError(
                    f"image '{path}' of shape {tuple(x.shape[1:])} needs more memory than there is. Make it"
                    " smaller, or take a device with more."
                ) from None
            raise UserError(
                f"image '{path}' of shape {tuple(x.shape[1:])} does not fit the {self._network}"
                f" ({excerpt(error)})."
            ) from error
        except UserError as error:
            raise UserError(f"image '{path}': {error}") from error
        return as_png(x_pure[0], f"image '{path}'")

    def _takes_grey(self, x: Tensor) -> bool:
        """Whether the network takes images of one channel; asked again while no size fits it."""
        channels = image_channels(self._ask, (x.shape[1], x.shape[2]), self.device)
        self.asked = channels is not None
        return channels == 1

    def _ask(self, x: Tensor, sigma: Tensor) -> Tensor:
        """One call of the denoiser, or of a purifier without one."""
        if isinstance(self.purifier, Purifier):
            return self.purifier.denoiser(x, sigma)
        return self.purifier(x, noise=NoisePlan.of(self.seed, [0]))

    @property
    def _network(self) -> str:
        return "denoiser" if isinstance(self.purifier, Purifier) else "purifier"


@torch.no_grad()
def image_channels(denoiser: Any, size: tuple[int, int], device: torch.device | None = None) -> int | None:
    """Returns the channels, 1 or 3, of the images that a denoiser takes, or None if it takes neither.

    It is asked with a black image of 3 channels and with one of 1; one that takes both gets 3.

    Args:
        denoiser: any `dbpkit.foundation.types.Denoiser`.
        size: height and width to ask with.
        device: where it runs.
    """
    for channels in (3, 1):
        x = torch.zeros(1, channels, *size, device=device)
        try:
            x0 = denoiser(x, torch.ones((), device=device))
        except Exception:  # a network says in its own way that it does not take this
            continue
        if isinstance(x0, Tensor) and x0.shape == x.shape:
            return channels
    return None
