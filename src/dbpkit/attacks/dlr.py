"""Difference of logits ratio: losses that no scale of the logits can saturate.

The thing people get wrong: the ratio needs a third class, and its targeted form a fourth; with fewer the
denominator is the numerator, or made of logits that do not exist.
"""

from torch import Tensor

from dbpkit.attacks.loss import losses, margin
from dbpkit.foundation.errors import UserError

_TINY = 1e-12

REMEDIES = {
    "dlr": 'Give the attack loss = "ce" or "margin"; in autoattack, parts = ["apgd", "fab", "square"].',
    "dlr_targeted": 'Use apgd with loss = "margin"; in autoattack, parts = ["apgd", "fab", "square"].',
}
"""What to do with fewer classes; options that the attacks have."""


@losses.register("dlr")
def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio of logits (B, K) with labels (B,); (B,).

    (max other - z_y) / (z_1 - z_3) with z_1 >= z_2 >= z_3 the sorted logits: in [-1, 0] where classified
    correctly, positive where misclassified, and the same for shifted or scaled logits. It is above 1 where
    the label is not even among the three largest, without a bound.

    Raises:
        UserError: if there are fewer than 3 classes.

    Source:
        Croce & Hein 2020 (arXiv:2003.01690), eq. 6.
    """
    top = _largest(logits, 3, "dlr")
    return margin(logits, y) / (top[:, 0] - top[:, 2] + _TINY)


def dlr_targeted(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio towards a target class; (B,).

    (z_t - z_y) / (z_1 - (z_3 + z_4) / 2). No registered loss: those need only the label.

    Args:
        logits: (B, K).
        y: label and target class, (B, 2).

    Raises:
        UserError: if there are fewer than 4 classes.

    Source:
        Croce & Hein 2020 (arXiv:2003.01690), eq. 7.
    """
    top = _largest(logits, 4, "dlr_targeted")
    label, aim = logits.gather(1, y).unbind(dim=1)
    return (aim - label) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + _TINY)


def _largest(logits: Tensor, count: int, loss: str) -> Tensor:
    """The largest logits in falling order, (B, count)."""
    if logits.shape[1] < count:
        raise UserError(
            f"loss '{loss}' needs at least {count} classes, not {logits.shape[1]}. {REMEDIES[loss]}"
        )
    return logits.topk(count, dim=1).values
