"""Classes of averaged draws, as a record lists them under a protocol that averages."""

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
    draws = logits.shape[1]
    if not averages or draws == 1:
        return [None] * len(logits)
    values = logits.double()
    values = values.softmax(dim=2) if averages == "softmax" else values
    found: list[list[int]] = [[] for _ in range(len(logits))]
    for size in sizes(draws):
        groups = values[:, : draws // size * size].unflatten(1, (-1, size))
        for own, classes in zip(found, groups.mean(dim=2).argmax(dim=2).tolist(), strict=True):
            own += classes
    return [*found]
