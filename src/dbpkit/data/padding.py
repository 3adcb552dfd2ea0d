"""The zero padding that small images need.

U-Nets halve the image two or three times, so 28 x 28 pixels have to become 32 x 32. Padding keeps every
original pixel; resizing does not.
"""

from torch import Tensor
from torch.nn import functional

from dbpkit.foundation.errors import UserError


def pad_to(images: Tensor, size: int | None, where: str) -> Tensor:
    """Zero-pads images (N, C, H, W) equally on opposite sides to (N, C, size, size).

    Args:
        images: of any type; the padding is the value 0, black.
        size: side to reach; None returns the images as they are.
        where: what the images are, for the error.

    Raises:
        UserError: if ``size`` is not a whole number, is smaller than an image, or leaves an odd margin.
    """
    if size is None:
        return images
    height, width = images.shape[-2:]
    fits = (
        isinstance(size, int)
        and size >= max(height, width)
        and not (size - height) % 2
        and not (size - width) % 2
    )
    if not fits:
        raise UserError(
            f"{where}: size {size!r} cannot be reached by padding {height} x {width} images equally "
            f"on all sides. Choose an integer such as {max(height, width) + 4}, or leave size out."
        )
    top, left = (size - height) // 2, (size - width) // 2
    return functional.pad(images, (left, left, top, top))
