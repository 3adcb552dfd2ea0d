"""Classes of averaged draws, as a record lists them under a protocol that averages."""

import torch
from torch import Tensor

from dbpkit.results.ensembles import sizes


def ensemble_classes(logits: Tensor, averages: str) -> list[list[int] | None]:
    """Returns what groups of draws answer, for each image; None where nothing is averaged.

    Args:
        logits: of R draws, (B, R, K).
        averages: ``"logits"``, ``"softmax"``, or empty for nothing.

    Returns:
        The classes of each image in the order of `dbpkit.results.ensembles`; a draw of one is no group.
    """
    means = ensemble_means(logits, averages)
    return [None] * len(logits) if means is None else means.argmax(dim=2).tolist()


def ensemble_means(logits: Tensor, averages: str) -> Tensor | None:
    """Returns the averages of all groups of draws (B, groups, K) in that order; None where there are none."""
    draws = logits.shape[1]
    if not averages or draws == 1:
        return None
    values = logits.double()
    values = values.softmax(dim=2) if averages == "softmax" else values
    groups = [values[:, : draws // s * s].unflatten(1, (-1, s)).mean(dim=2) for s in sizes(draws)]
    return torch.cat(groups, dim=1)
