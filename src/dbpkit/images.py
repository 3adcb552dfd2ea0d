"""Image files in, purified image files out.

The thing people get wrong: noise by position. Here an image's noise follows its file name, so the same file
is purified alike whatever stands beside it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dbpkit.data.dataset import path_id
from dbpkit.data.pictures import as_unit, read_picture
from dbpkit.errors import UserError
from dbpkit.evaluation.build import make_purifier
from dbpkit.evaluation.spec import PurifierSpec
from dbpkit.models import load_denoiser, source
from dbpkit.noise import NoisePlan


def read_image(path: str | Path, mode: str = "RGB") -> Tensor:
    """Reads an image file as (C, H, W) float32 in [0, 1]; see `dbpkit.data.pictures.read_picture`."""
    return as_unit(read_picture(path, mode=mode))


def write_image(path: Path, x: Tensor) -> None:
    """Writes an image (C, H, W) in [0, 1], rounded to 8 bits, as PNG."""
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(path, format="PNG")
    except OSError as error:
        raise UserError(
            f"cannot write '{path}' ({error.strerror or error}). Free space or choose another folder."
        ) from error


def purify_files(
    paths: Sequence[Path],
    out: Path,
    spec: PurifierSpec,
    denoiser: str = "embedded",
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> list[Path]:
    """Purifies image files one by one and writes ``<name>.png`` into a folder.

    Args:
        paths: image files of any size the denoiser accepts.
        out: folder for the results.
        spec: purifier settings.
        denoiser: registered name, import path, or a weights file.
        seed: seed of the noise.
        progress: called after every image.

    Returns:
        The files written.

    Raises:
        UserError: if two names collide, or, after every good image is written, if any could not be read.
    """
    names = [p.stem for p in paths]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(
            f"two images are called '{twice}': their results would overwrite each other. Purify"
            " them into two folders."
        )
    network = load_denoiser(*source(denoiser))
    mode = "L" if _channels(network) == 1 else "RGB"
    purifier = make_purifier(spec, network)
    written, problems = [], []
    for done, path in enumerate(paths, start=1):
        try:
            x = read_image(path, mode)[None]
            x_pure = _purified(purifier, x, NoisePlan.of(seed, [path_id(path.stem)]), path)
        except UserError as error:
            problems.append(str(error))
        else:
            target = Path(out) / f"{path.stem}.png"
            write_image(target, x_pure[0])
            written.append(target)
        progress(done / len(paths), path.name)
    if problems:
        raise UserError(
            f"{len(written)} of {len(paths)} images were purified into '{out}'; not: {' '.join(problems)}"
        )
    return written


@torch.no_grad()
def _purified(purifier: nn.Module, x: Tensor, noise: NoisePlan, path: Path) -> Tensor:
    try:
        return purifier(x, noise=noise)
    except RuntimeError as error:
        raise UserError(
            f"image '{path}' of shape {tuple(x.shape[1:])} does not fit the denoiser"
            f" ({str(error).splitlines()[0]})."
        ) from error


def _channels(network: Any) -> int | None:
    """Image channels of the package's own networks; None if unknown."""
    stem = getattr(getattr(network, "network", None), "image_channels", None)
    return int(stem) if stem is not None else None
