"""Where the class changes: along a direction, and at the nearest boundary of the classifier alone.

Where no change was found the length is infinity, which is larger than every length that was looked at; it is
recorded as null.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dbpkit.analyses.analysis import Subject
from dbpkit.analyses.tools.directions import TINY, along, lengths
from dbpkit.attacks import Target
from dbpkit.foundation.inputs import pixels_anywhere
from dbpkit.foundation.noise import NoisePlan


def first_change(
    classify: Callable[[Tensor], Tensor],
    x: Tensor,
    direction: Tensor,
    longest: Tensor | float,
    points: int = 24,
    bisections: int = 10,
) -> Tensor:
    """Length at which the class first changes on the way from ``x`` along a direction.

    The way is scanned at lengths that grow quadratically, so that near changes are resolved best; the first
    interval with a change is then halved. A class that comes and goes between two points is not seen.

    Args:
        classify: gives the classes (B,) of images (B, C, H, W), deterministic.
        x: images (B, C, H, W); the way may leave [0, 1].
        direction: unit directions (B, C, H, W).
        longest: where the scan ends, a number or (B,), in pixel units.
        points: of the scan.
        bisections: halvings; the length is exact to ``2 longest / points / 2**bisections``.

    Returns:
        Euclidean lengths (B,); infinity where the class does not change up to ``longest``.
    """
    start = classify(x)
    ends = torch.as_tensor(longest, dtype=x.dtype, device=x.device).expand(len(x))
    low, high = torch.zeros_like(ends), torch.full_like(ends, torch.inf)
    for j in range(1, points + 1):
        length = ends * (j / points) ** 2
        changed = classify(x + along(length, direction)) != start
        searching = high.isinf()
        high = torch.where(searching & changed, length, high)
        low = torch.where(searching & ~changed, length, low)
        if not high.isinf().any():
            break
    found = high.isfinite()
    for _ in range(bisections if bool(found.any()) else 0):
        middle = torch.where(found, (low + high) / 2, low)
        changed = classify(x + along(middle, direction)) != start
        high = torch.where(found & changed, middle, high)
        low = torch.where(found & ~changed, middle, low)
    return high


def margins(subject: Subject, x: Tensor, y: Tensor, iterations: int = 5) -> Tensor:
    """Minimal adversarial distance of the classifier alone, from above; its gradient is used, no purifier's.

    The margin between the label and its best rival is linearised at the iterate, and the image itself is
    projected onto that boundary, which is the next iterate; at the end the class change along the
    direction found is measured. Exact for a linear classifier of two classes.

    Args:
        subject: gives the classifier and the micro-batch.
        x: images (B, C, H, W).
        y: labels (B,).
        iterations: linearisations, one gradient each.

    Returns:
        Euclidean distances (B,) in pixel units, not confined to [0, 1]; 0 where ``x`` is misclassified,
        infinity where no boundary was found.

    Source:
        Moosavi-Dezfooli et al. 2016 (arXiv:1511.04599), with the projection of the original point of Croce &
        Hein 2020 (arXiv:1907.02044), eq. 6.
    """
    target = Target(subject.alone, subject.limit)
    unused = NoisePlan.of(0, torch.arange(len(x)))
    delta = torch.zeros_like(x)
    with pixels_anywhere():
        for _ in range(iterations):
            grad, value, _ = target.gradient(x + delta, y, noise=unused, loss="margin")
            step = ((grad * delta).flatten(1).sum(dim=1) - value) / lengths(grad).square().clamp_min(TINY)
            delta = step[:, None, None, None] * grad
    far = lengths(delta).clamp_min(TINY)
    distance = first_change(
        lambda x: subject.classify(x).argmax(1), x, delta / far[:, None, None, None], 2 * far, 8, 12
    )
    return torch.where(subject.classify(x).argmax(1) == y, distance, 0.0)


def finite(values: Tensor) -> list[float | None]:
    """Numbers (B,) ready for JSON, None where infinite."""
    return [None if v == float("inf") else v for v in values.tolist()]
