"""How training images are augmented: every choice is a uniform number that the caller draws for the image."""

import torch
from torch import Tensor
from torch.nn import functional


def flipped(x: Tensor, u: Tensor) -> Tensor:
    """Images mirrored where u < 1/2."""
    return torch.where((u < 0.5)[:, None, None, None], x.flip(-1), x)


def shifted(x: Tensor, u: Tensor, v: Tensor, most: int) -> Tensor:
    """Images shifted by up to ``most`` pixels each way, borders reflected."""
    padded = functional.pad(x, (most,) * 4, mode="reflect")
    dy, dx = ((w * (2 * most + 1)).long() for w in (u, v))
    rows = dy[:, None] + torch.arange(x.shape[2], device=x.device)
    columns = dx[:, None] + torch.arange(x.shape[3], device=x.device)
    example = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def blanked(x: Tensor, u: Tensor, v: Tensor, side: int) -> Tensor:
    """Images with one square set to their own mean."""
    inside = []
    for w, size in ((u, x.shape[2]), (v, x.shape[3])):
        start = (w * (size + 1)).long() - side // 2
        position = torch.arange(size, device=x.device)[None] - start[:, None]
        inside.append((position >= 0) & (position < side))
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(square, x.mean(dim=(2, 3), keepdim=True), x)
