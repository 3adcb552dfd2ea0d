"""One image file through a purifier: whole or in tiles, and back with its size, depth and opacity."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit.data.photographs import Photograph, read_photograph
from dbpkit.data.pictures import as_unit
from dbpkit.foundation.arrays import Array
from dbpkit.foundation.console import PICTURES
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.png import png_bytes, whole_numbers
from dbpkit.foundation.precision import EXACT, Precision, checked_precision, precise
from dbpkit.foundation.rows import free, is_out_of_memory
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.purifier import PurifiesImages
from dbpkit.purification.tiles import PlaneNoise, Tiling, checked_tiling, in_tiles, starts

log = logging.getLogger(PICTURES)

LEAST_TILE = 64
"""Sides of tiles that the network's own size does not go below: smaller ones are mostly overlap."""

UNKNOWN_TILE = 512
"""Side of the tiles of a network that does not say what it was made for."""

MOST_VALUES = 1 << 22
"""Values of an image that one plan of noise draws; larger ones take the noise of their places."""

_LUMA = (0.299, 0.587, 0.114)

Share = Callable[[float], None]


class PurifiesFiles:
    """Purifies files one by one; the purifier's channels are found out with the first that can be read.

    Args:
        purifier: any purifier.
        seed: seed of the noise.
        device: where it runs.
        precision: what its network computes in.
        tile: see `Tiling`.
        overlap: least number of pixels that tiles share; None takes a quarter of their side, at most 32.
    """

    def __init__(
        self,
        purifier: PurifiesImages,
        seed: int,
        device: torch.device,
        precision: Precision = EXACT,
        tile: Tiling = "auto",
        overlap: int | None = None,
    ) -> None:
        self.purifier = purifier
        self.seed = seed
        self.device = device
        self.precision = checked_precision(precision)
        self.channels: int | None = None
        self.tile = self._side(checked_tiling(tile))
        self.overlap = min(32, (self.tile or 0) // 4) if overlap is None else overlap
        if self.tile is not None:
            starts(self.tile, self.tile, self.overlap)  # refuses an overlap that is none

    @torch.no_grad()
    def __call__(self, path: Path, name: int, share: Share = lambda _: None) -> bytes:
        """Returns the purified image as a PNG file.

        Args:
            path: the file.
            name: number that its noise belongs to.
            share: told how much of the image is done.

        Raises:
            UserError: if it cannot be read or purified.
        """
        where = f"image '{path}'"
        photo = read_photograph(path, where)
        grey = photo.pixels.shape[0] == 1
        if self.channels is None:
            height, width = (min(n, self.tile or n) for n in photo.pixels.shape[1:])
            self.channels = image_channels(self._ask, (height, width), self.device)
        notes = [*self._tiles_of(photo), *photo.notes]
        if self.channels == 1 and not grey:
            photo = photo._replace(pixels=_as_grey(photo.pixels), profile=None)
            notes.append("made grey, because the network takes one channel")
        if notes:
            log.info("%s: %s.", path.name, "; ".join(notes))
        try:
            with precise(self.precision):
                pixels = self._purified(photo, NoisePlan.of(self.seed, [name]), where, share)
        except UserError as error:
            text = str(error)
            raise error if text.startswith(where) else UserError(f"{where}: {text}") from error
        if photo.alpha is not None:
            pixels = np.dstack([pixels, photo.alpha])
        return png_bytes(pixels, smallest=False, profile=photo.profile)

    def _tiles_of(self, photo: Photograph) -> list[str]:
        """In which tiles a photograph is purified, in words; nothing for one that is taken whole."""
        _, height, width = photo.pixels.shape
        if self.tile is None or max(height, width) <= self.tile:
            return []
        count = len(starts(height, self.tile, self.overlap)) * len(starts(width, self.tile, self.overlap))
        side = f"{min(self.tile, width)} x {min(self.tile, height)}"
        return [f"{width} x {height} pixels in {count} tiles of {side} that overlap by {self.overlap}"]

    def _purified(self, photo: Photograph, noise: NoisePlan, where: str, share: Share) -> Array:
        """The purified pixels (H, W) or (H, W, 3)."""
        _, height, width = photo.pixels.shape
        shape = (3 if self.channels != 1 else 1, height, width)
        made = np.empty((height, width) if len(photo.pixels) == 1 else (height, width, 3), _kind(photo))

        def keep(top: int, x: Tensor) -> None:
            if not bool(torch.isfinite(x).all()):
                raise UserError(f"{where}: the purified image is not finite.")
            x = x if len(photo.pixels) == len(x) else (x * x.new_tensor(_LUMA)[:, None, None]).sum(0, True)
            made[top : top + x.shape[1]] = whole_numbers(x.cpu(), photo.bits)
            share((top + x.shape[1]) / height)

        def read(top: int, bottom: int) -> Tensor:
            x = as_unit(torch.from_numpy(photo.pixels[:, top:bottom].copy()))
            return x.expand(shape[0], -1, -1)

        def purify(x: Tensor, noise: NoisePlan) -> Tensor:
            return self._called(x, noise, where).cpu()

        if self.tile is None or max(height, width) <= self.tile:
            if shape[0] * (height + 64) * (width + 64) > MOST_VALUES:
                noise = PlaneNoise.over(noise, [(0, 0)])
            keep(0, purify(read(0, height)[None], noise)[0])
            return made
        for top, rows in in_tiles(purify, read, shape, noise, tile=self.tile, overlap=self.overlap):
            keep(top, rows)
        return made

    def _called(self, x: Tensor, noise: NoisePlan, where: str) -> Tensor:
        try:
            return self.purifier(x.to(self.device), noise=noise)
        except RuntimeError as error:
            if is_out_of_memory(error):
                if len(x) > 1:  # the tiles are tried again in halves
                    raise
                free(error)
                raise UserError(
                    f"{where} of shape {tuple(x.shape[1:])} needs more memory than there is. Purify it in"
                    " smaller tiles, or take a device with more."
                ) from None
            network = "denoiser" if isinstance(self.purifier, Purifier) else "purifier"
            raise UserError(
                f"{where} of shape {tuple(x.shape[1:])} does not fit the {network} ({excerpt(error)})."
            ) from error

    def _side(self, tile: Tiling) -> int | None:
        """The side of tiles; None purifies every image whole."""
        chain = self.purifier if isinstance(self.purifier, Purifier) else None
        if tile == "whole" or (tile == "auto" and (chain is None or (chain.fit and chain.fit.resize))):
            return None
        if tile != "auto":
            return int(tile)
        made_for = _made_for(chain.denoiser) if chain is not None else None
        return UNKNOWN_TILE if made_for is None else max(LEAST_TILE, *made_for)

    def _ask(self, x: Tensor, sigma: Tensor) -> Tensor:
        """One call of the denoiser, or of a purifier without one."""
        if not isinstance(self.purifier, Purifier):
            return self.purifier(x, noise=NoisePlan.of(self.seed, [0]))
        x0 = self.purifier.denoiser(self.purifier.fitted(x), sigma)
        fit = self.purifier.fit
        return x0 if fit is None else fit.back(x0, (x.shape[-2], x.shape[-1]))


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


def _made_for(denoiser: Any) -> tuple[int, int] | None:
    """Height and width of the images that a denoiser was made for, if it says so."""
    size = getattr(denoiser, "sample_size", None)
    shape = getattr(getattr(denoiser, "architecture", None), "image_shape", None)
    found = size if size is not None else shape[-2:] if shape is not None else None
    return None if found is None else (int(found[0]), int(found[1]))


def _kind(photo: Photograph) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if photo.bits == 8 else np.uint16


def _as_grey(pixels: Array) -> Array:
    """Colours (3, H, W) uint8 as grey (1, H, W), rounded as Pillow does."""
    red, green, blue = pixels.astype(np.uint32)
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return np.asarray(grey.astype(np.uint8)[None])
