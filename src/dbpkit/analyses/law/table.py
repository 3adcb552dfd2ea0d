"""The law's records as a table: one line for each purifier, from all images or from resamples of them.

The interval of a number of several purifiers resamples the images that all of them share, so the table is
made of images until their weights are known.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.tools.configurations import Setting, per_image
from dbpkit.foundation.errors import UserError

CLASSIFIER = "classifier"
"""Units that measure the margin of the classifier at the images themselves."""

_PER_BUDGET = ("survived", "length", "attack_rate")


class Table(NamedTuple):
    """Averages over images by purifier: N of them, E budgets, and a leading axis B where resampled.

    Attributes:
        settings: of the purifiers.
        images: examples behind each.
        eps: budgets in pixel units, (E,).
        lengths: typical Euclidean length of a perturbation of each budget, (N, E).
        rate: compression rate, (N,).
        right: accuracy at the anchors, (N,).
        attacked: accuracy under attack, (N, E).
        predicted: by the formula with ``rate``, (N, E).
        attack_rate: compression rate along the attack's perturbations, (N,); nan if none was made.
        informed: by the formula with ``attack_rate`` and the length of the attack's perturbations, (N, E).
        margins: all margins at the anchors, infinity for none found.
    """

    settings: list[Setting]
    images: int
    eps: list[float]
    lengths: np.ndarray
    rate: np.ndarray
    right: np.ndarray
    attacked: np.ndarray
    predicted: np.ndarray
    attack_rate: np.ndarray
    informed: np.ndarray
    margins: np.ndarray


class Purifier(NamedTuple):
    """One purifier's records by image (n), tape (T) and budget (E).

    Attributes:
        lengths: typical, of a perturbation of each budget, (n, E).
        right: 1 where the anchor is classified correctly, (n, T).
        margin: of the classifier at the anchor, infinity for none found, (n, T).
        rate: compression rate, (n, T).
        survived: 1 where the attack failed, (n, T, E).
        attack_rate: rate along the attack's perturbation, nan where there was none, (n, T, E).
        stretch: its length over the typical one, nan where there was none, (n, T, E).
    """

    lengths: np.ndarray
    right: np.ndarray
    margin: np.ndarray
    rate: np.ndarray
    survived: np.ndarray
    attack_rate: np.ndarray
    stretch: np.ndarray

    def averaged(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        """Columns ``rate`` to ``informed`` of a table, by weights of the images (B, n)."""
        rate = weights @ self.rate.mean(axis=1)
        attack_rate, stretch = (self._tried(weights, values) for values in (self.attack_rate, self.stretch))
        return (
            rate,
            weights @ self.right.mean(axis=1),
            np.einsum("bn,nte->be", weights, self.survived) / self.survived.shape[1],
            self._formula(weights, rate[:, None]),
            attack_rate,
            self._formula(weights, (attack_rate * stretch)[:, None]),
        )

    def _tried(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Weighted means (B,) over the attacks that were made."""
        counts = weights @ np.isfinite(values).sum(axis=(1, 2))
        sums = weights @ np.nansum(values, axis=(1, 2))
        return np.divide(sums, counts, out=np.full(len(weights), np.nan), where=counts > 0)

    def _formula(self, weights: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Predicted accuracy (B, E): right at the anchor, with a margin above ``rate`` (B, 1) times length.

        Source:
            Reconstruction from Liu & Wei 2025; see `dbpkit.analyses.tools.configurations.predicted`.
        """
        found = np.empty((len(rate), self.lengths.shape[1]))
        for e, lengths in enumerate(self.lengths.T):
            stands = (self.margin > (rate * lengths)[:, :, None]) * self.right  # (B, n, T)
            found[:, e] = (weights * stands.mean(axis=2)).sum(axis=1)
        return found


def purifiers(measured: Mapping[Unit, Any]) -> dict[Setting, Purifier]:
    """The records by purifier, over the images that all of them have; UserError if budgets do not match."""
    groups: dict[Setting, dict[range, Any]] = {}
    for unit, found in measured.items():
        if isinstance(unit.of, Setting):
            groups.setdefault(unit.of, {})[unit.images] = found
    batches = [b for b in next(iter(groups.values())) if all(b in own for own in groups.values())]
    if not batches:
        raise UserError("the law's purifiers have no image in common. Run 'dbpkit analyse' to its end first.")
    eps = next(iter(groups.values()))[batches[0]]["eps"]
    if any(found["eps"] != eps for own in groups.values() for found in own.values()):
        raise UserError("the records of the law have different budgets. Combine runs with dbpkit law.")
    batches.sort(key=lambda batch: batch.start)
    return {setting: _purifier([own[b] for b in batches]) for setting, own in groups.items()}


def tabulate(measured: Mapping[Unit, Any], weights: np.ndarray | None = None) -> Table:
    """Averages the records over tapes and images.

    Args:
        measured: records of one run by unit.
        weights: of the images, (B, n), for a table with a leading axis B; None for plain means without one.

    Raises:
        UserError: if the budgets of two records do not match.
    """
    found = purifiers(measured)
    images = len(next(iter(found.values())).right)
    plain = weights is None
    each = np.full((1, images), 1 / images) if weights is None else weights
    columns = [
        np.stack(column, axis=1) for column in zip(*(p.averaged(each) for p in found.values()), strict=True)
    ]
    return Table._make(
        [
            list(found),
            images,
            next(f["eps"] for u, f in measured.items() if isinstance(u.of, Setting)),
            np.stack([np.median(p.lengths, axis=0) for p in found.values()]),
            *(column[0] if plain else column for column in columns),
            np.concatenate([p.margin.ravel() for p in found.values()]),
        ]
    )


def joined(tables: Sequence[Table]) -> Table:
    """The purifiers of several data sets as one table."""
    first = tables[0]
    of_purifiers = first.rate.ndim - 1
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(t, name) for t in tables], axis=of_purifiers)
        for name in ("rate", "right", "attacked", "predicted", "attack_rate", "informed")
    }
    return first._replace(
        settings=[setting for t in tables for setting in t.settings],
        images=min(t.images for t in tables),
        lengths=np.concatenate([t.lengths for t in tables]),
        margins=np.concatenate([t.margins for t in tables]),
        **columns,
    )


def at_shared_budgets(runs: Sequence[Mapping[Unit, Any]]) -> list[dict[Unit, Any]]:
    """The records of several runs at the budgets that all have; UserError if there is none."""
    budgets = [f["eps"] for measured in runs for u, f in measured.items() if isinstance(u.of, Setting)]
    shared = [e for e in budgets[0] if all(any(_same(e, other) for other in own) for own in budgets)]
    if not shared:
        raise UserError("the runs have no budget in common. Give the analysis 'law' the same eps in each.")

    def cut(found: Mapping[str, Any]) -> dict[str, Any]:
        kept = [i for e in shared for i, own in enumerate(found["eps"]) if _same(e, own)]
        tapes = [
            {**tape, **{key: [[v[i] for i in kept] for v in tape[key]] for key in _PER_BUDGET}}
            for tape in found["tapes"]
        ]
        return {**found, "eps": shared, "lengths": [found["lengths"][i] for i in kept], "tapes": tapes}

    return [{u: cut(f) if isinstance(u.of, Setting) else f for u, f in measured.items()} for measured in runs]


def clean_margins(measured: Mapping[Unit, Any]) -> np.ndarray:
    """Margins at the images, infinity for none found."""
    found = [m for u, f in measured.items() if u.of == CLASSIFIER for m in f["margin"]]
    return np.array([np.inf if m is None else m for m in found])


def _same(a: float, b: float) -> bool:
    return abs(a - b) < 1e-9


def _purifier(batch: Sequence[Any]) -> Purifier:
    """One purifier's records as arrays."""

    def column(key: str, missing: float = np.nan) -> np.ndarray:
        tapes = [[t[key] for t in found["tapes"]] for found in batch]
        filled = [np.array(_filled(t, missing), dtype=float) for t in tapes]  # (T, images of the batch, ...)
        return np.concatenate(filled, axis=1).swapaxes(0, 1)

    lengths = np.concatenate([per_image(found, len(found["tapes"][0]["right"])) for found in batch])
    length = column("length")
    length = np.where(length > 0, length, np.nan)  # no perturbation, no rate
    attack_rate = np.where(np.isnan(length), np.nan, column("attack_rate"))
    return Purifier(
        lengths,
        column("right"),
        column("margin", np.inf),
        column("rate"),
        column("survived"),
        attack_rate,
        length / lengths[:, None],
    )


def _filled(values: Any, missing: float) -> Any:
    """Nested lists with a number in place of None."""
    if isinstance(values, list):
        return [_filled(v, missing) for v in values]
    return missing if values is None else values
