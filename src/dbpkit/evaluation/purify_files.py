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
from dbpkit.evaluation.photographs import PurifiesFiles
from dbpkit.evaluation.photographs import image_channels as image_channels
from dbpkit.experiment.build import make_purifier
from dbpkit.experiment.execution import AUTO, checked_device
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.image_folder import ImageFolder
from dbpkit.foundation.png import eight_bits, png_bytes
from dbpkit.foundation.precision import EXACT, Precision
from dbpkit.models.networks.layers import placed
from dbpkit.models.sources import load_denoiser, source
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.purifier import PurifiesImages, takes_denoiser
from dbpkit.purification.tiles import Tiling
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
    tile: Tiling = "auto",
    overlap: int | None = None,
) -> list[Path]:
    """Purifies image files one by one and writes ``<name>.png`` into a folder.

    What this function did not write is never overwritten; a second call replaces what the first one wrote.
    Whatever goes wrong with one image, the others are written.

    An image keeps its size, upright, its opacity, its colour profile, grey, and 16 bits of grey. Margins are
    added where the network does not divide its sides, and cut off again. Large images are purified in tiles
    that fade into each other (`dbpkit.purification.tiles`).

    Args:
        paths: image files.
        out: folder for the results.
        spec: purifier settings.
        denoiser: registered name, import path, or a weights file; loaded for a purifier that has one.
        seed: seed of the noise.
        progress: called after every image.
        options: of the denoiser's source.
        device: where the network runs; None or ``"auto"`` is a GPU if there is one.
        overwrite: whether other files of the results' names are replaced too; the images given never are.
        precision: what the network computes in: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.
        tile: side of tiles; ``"auto"`` is the network's own size, at least 64, for larger images, unless the
            spec resizes them or there is no network; ``"whole"`` is no tiles.
        overlap: least number of pixels that tiles share; None takes a quarter of their side, at most 32.

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
    one = PurifiesFiles(purifier, seed, where, precision, tile, overlap)
    written, problems = _each(one, targets, folder, progress)
    if problems:
        raise UserError(
            f"{len(written)} of {len(paths)} images were purified into '{out}'; not: {' '.join(problems)}"
        )
    return written


def _each(
    one: PurifiesFiles, targets: Mapping[Path, Path], folder: ImageFolder, progress: Progress
) -> tuple[list[Path], list[str]]:
    """Purifies image after image; the files written, and what went wrong with others."""
    written: list[Path] = []
    problems: list[str] = []
    for done, (path, target) in enumerate(targets.items()):

        def share(part: float, done: int = done, path: Path = path) -> None:
            if part < 1:
                progress((done + part) / len(targets), path.name)

        try:
            folder.write(target, one(path, path_id(path.stem), share))
        except UserError as error:
            problems.append(str(error))
        except Exception as error:  # of the user's own denoiser or sampler, or of memory: the others go on
            problems.append(f"image '{path}' failed ({type(error).__name__}: {excerpt(error)}).")
        else:
            written.append(target)
        progress((done + 1) / len(targets), path.name)
    return written, problems


def _purifier(
    spec: PurifierSpec, denoiser: str, options: Mapping[str, Any], where: torch.device
) -> PurifiesImages:
    """Makes the purifier, around the denoiser if it has one, on a device."""
    network = None
    if takes_denoiser(spec.name):
        name, own = source(denoiser)
        network = load_denoiser(name, {**own, **options})
        network = placed(network, where)
    fitting = spec if spec.pad is not None else spec.model_copy(update={"pad": "auto"})
    purifier = make_purifier(fitting, network)
    placed(purifier, where)
    return purifier


def chain_flags(purifier: PurifiesImages, spec: PurifierSpec) -> list[Flag]:
    """Flags of a diffusion chain's levels and steps; a filter has none."""
    if not isinstance(purifier, Purifier):
        return []
    return [
        *outside_trained_levels(purifier.denoiser, [purifier.sampler.highest]),
        *suspicious_grid(spec.sampler, purifier.calls, purifier.sampler),
    ]
