"""What predicts the attacked accuracy of a purified classifier: the statistics of `benchmarks.law_wide`.

    python -m benchmarks.law_wide_fit DIR [--out FILE]

Correlations are taken within a data set and norm, or within a data set, norm and classifier, and then
averaged: pooled over data sets they would tell what differs between data sets. Intervals resample the images
of a data set, which all its purifiers share, its classifiers, and the purifiers around each classifier; two
norms of one purifier stay together. Data sets are too few to resample: the intervals are for these three.
"""

import argparse
import json
import math
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbpkit.foundation.files import write_atomically
from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.bootstrap import counted, resampled
from dbpkit.statistics.intervals import spearman

RESAMPLES = 1000
REFITS = 200
"""Resamples in which the linear fits are made again."""

ORDERS = 2000
"""Permutations of a test."""

NORMS = ("linf", "l2")

ALONE = {
    "accuracy at the anchors": "right",
    "compression rate": "rate",
    "rate along the attack's first step": "step_rate",
    "rate along the finished attack (needs the attack)": "attack_rate",
    "margin at the anchors": "margin",
    "gradient SNR": "snr",
    "margin / rate": "ratio",
    "formula: margin > rate x length": "formula",
    "formula along the first step": "step_formula",
}
"""What is looked at, and its column."""

FITTED = {
    "rate + margin": ("rate", "margin"),
    "rate + margin + SNR": ("rate", "margin", "snr"),
    "first-step rate + margin": ("step_rate", "margin"),
    "anchors + rate + margin": ("right", "rate", "margin"),
    "anchors + first-step rate + margin + SNR": ("right", "step_rate", "margin", "snr"),
}
"""Linear combinations, whose slopes come from all other purified classifiers."""

LOWER_IS_BETTER = {"rate", "step_rate", "attack_rate"}
"""What the law expects to fall as robustness rises; their correlations are shown with the other sign."""


class Unit(NamedTuple):
    """One purified classifier: names, and per image what was recorded."""

    data: str
    classifier: str
    denoiser: str
    purifier: str
    images: Mapping[str, Any]

    def column(self, key: str, norm: str = "") -> np.ndarray:
        """Values per image; None becomes nan, or infinity for a margin that was not found."""
        values = self.images[norm][key] if norm else self.images[key]
        missing = math.inf if key == "margin" else math.nan
        return np.array([missing if v is None else v for v in values], dtype=float)

    def columns(self, norm: str, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every predictor and the attacked accuracy, by weights (B, n) of the images; (B,) each."""
        right, rate, margin = (self.column(key) for key in ("right", "rate", "margin"))
        step, length = (self.column(key, norm) for key in ("step_rate", "budget_length"))
        tried = np.nan_to_num(self.column("attack_rate", norm)), np.isfinite(self.column("attack_rate", norm))
        products = np.array(self.images["products"], dtype=float)
        size = np.sqrt(products[:, 0, 0] * products[:, 1, 1])
        agreement = np.divide(products[:, 0, 1], size, out=np.zeros_like(size), where=size > 0)
        far = np.minimum(margin, margin[np.isfinite(margin)].max())
        rates, steps = weights @ rate, weights @ step
        stands = margin > rates[:, None] * length
        steps_stand = margin > steps[:, None] * self.column("step_length", norm)
        return {
            "attacked": weights @ self.column("survived", norm),
            "right": weights @ right,
            "rate": rates,
            "step_rate": steps,
            "attack_rate": (weights @ tried[0]) / np.maximum(weights @ tried[1], 1e-12),
            "margin": weights @ far,
            "snr": weights @ agreement,
            "ratio": (weights @ far) / rates,
            "formula": (weights * stands * right).sum(axis=1),
            "step_formula": (weights * steps_stand * right).sum(axis=1),
        }


class Study:
    """All units, and resamples of them.

    Args:
        units: purified classifiers.
        resamples: of images, classifiers and purifiers.
    """

    def __init__(self, units: Sequence[Unit], resamples: int = RESAMPLES) -> None:
        self.units = sorted(units, key=lambda u: (u.data, u.classifier, u.denoiser, u.purifier))
        self.resamples = resamples
        self.data_sets = sorted({u.data for u in units})

    @cached_property
    def images(self) -> dict[str, int]:
        """Images of each data set."""
        return {u.data: len(u.images["right"]) for u in self.units}

    @cached_property
    def tables(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Columns (1, N, 2) from all images, and (B, N, 2) from resamples of them; the last axis: norms."""
        plain: list[list[dict[str, np.ndarray]]] = []
        moved: list[list[dict[str, np.ndarray]]] = []
        weights = {
            name: counted(resampled(self.images[name], self.resamples, 40 + k), self.images[name])
            for k, name in enumerate(self.data_sets)
        }
        for unit in self.units:
            same = np.full((1, self.images[unit.data]), 1 / self.images[unit.data])
            plain.append([unit.columns(norm, same) for norm in NORMS])
            moved.append([unit.columns(norm, weights[unit.data]) for norm in NORMS])
        return tuple(
            {
                key: np.array([[by[key] for by in row] for row in rows]).transpose(2, 0, 1)
                for key in rows[0][0]
            }
            for rows in (plain, moved)
        )  # type: ignore[return-value]

    def of(self, data: str, classifier: str | None = None) -> np.ndarray:
        """Positions of the units of a data set, or of one classifier in it."""
        return np.array(
            [i for i, u in enumerate(self.units) if u.data == data and classifier in (None, u.classifier)],
            dtype=int,
        )

    def classifiers(self, data: str) -> list[str]:
        """Names of a data set's classifiers."""
        return sorted({u.classifier for u in self.units if u.data == data})

    def grid(self, data: str) -> np.ndarray:
        """Units by classifier and purifier, (classifiers, purifiers), as many as all classifiers have."""
        own = [self.of(data, name) for name in self.classifiers(data)]
        return np.stack([rows[: min(map(len, own))] for rows in own])

    @cached_property
    def drawn(self) -> dict[str, list[np.ndarray]]:
        """Per data set, for each classifier that is drawn, the units drawn around it, (B, m).

        The same purifiers are drawn for all classifiers: what is special about one shows around each.
        """
        found: dict[str, list[np.ndarray]] = {}
        for k, data in enumerate(self.data_sets):
            grid = self.grid(data)
            which = resampled(grid.shape[0], self.resamples, 60 + k)
            places = resampled(grid.shape[1], self.resamples, 80 + k)
            found[data] = [grid[which[:, j, None], places] for j in range(len(grid))]
        return found

    def groups(self, within: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions (m,) and their resamples (B, m), of a data set or of each of its classifiers."""
        for data in self.data_sets:
            if within:
                for name, rows in zip(self.classifiers(data), self.drawn[data], strict=True):
                    yield self.of(data, name), rows
            else:
                yield self.of(data), np.concatenate(self.drawn[data], axis=1)


def averaged(found: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Mean of correlations (B,) by group, weighted with the group's size less one; nan counts for nothing."""
    weights = np.array([[size - 1.0] for size, _ in found])
    values = np.stack([np.asarray(value, dtype=float) for _, value in found])
    known = np.isfinite(values)
    return (weights * np.nan_to_num(values)).sum(axis=0) / np.maximum((weights * known).sum(axis=0), 1e-12)


def ranking(
    study: Study, x: np.ndarray, moved: np.ndarray, within: bool, data: str = ""
) -> tuple[float, np.ndarray]:
    """Mean rank correlation with the attacked accuracy, and its resamples (B,).

    Args:
        study: units and resamples.
        x: predictor (N, 2).
        moved: the same from resamples of the images, (B, N, 2).
        within: whether a group has one classifier.
        data: a data set, or all.
    """
    y, y_moved = (table["attacked"] for table in study.tables)
    plain, draws = [], []
    for rows, drawn in study.groups(within):
        if data not in ("", study.units[rows[0]].data) or len(rows) < 2:
            continue
        for norm in range(len(NORMS)):
            plain.append((len(rows), np.array([spearman(x[rows, norm], y[0, rows, norm])])))
            count = len(moved)
            both = (np.take_along_axis(v[:count, :, norm], drawn[:count], axis=1) for v in (moved, y_moved))
            draws.append((len(rows), spearman(*both)))
    return float(averaged(plain)[0]), averaged(draws)


def by_chance(study: Study, x: np.ndarray, within: bool) -> float:
    """Share of random orders that correlate as much, two-sided.

    Purifiers change places around all classifiers of a data set at once, and classifiers too unless a group
    has one: independent orders would count what is special about a purifier once for every classifier.
    """
    y = study.tables[0]["attacked"][0]
    found: list[tuple[int, np.ndarray]] = []
    for k, data in enumerate(study.data_sets):
        grid = study.grid(data)
        places = uniforms(ORDERS, grid.shape[1], "order", 2 * k).argsort(axis=1, kind="stable")
        names = uniforms(ORDERS, grid.shape[0], "order", 2 * k + 1).argsort(axis=1, kind="stable")
        names = np.broadcast_to(np.arange(len(grid)), names.shape) if within else names
        shuffled = grid[names[:, :, None], places[:, None, :]]  # (orders, classifiers, purifiers)
        for norm in range(len(NORMS)):
            pairs = (
                [(grid, shuffled)] if not within else list(zip(grid, shuffled.swapaxes(0, 1), strict=True))
            )
            for own, other in pairs:
                there = y[other, norm].reshape(ORDERS, -1)
                here = np.broadcast_to(x[own, norm].ravel(), there.shape)
                found.append((there.shape[1], spearman(here, there)))
    null, value = averaged(found), ranking(study, x, study.tables[1]["attacked"], within)[0]
    return float((1 + (np.abs(null) >= abs(value) - 1e-12).sum()) / (1 + ORDERS))


def standardised(study: Study, x: np.ndarray) -> np.ndarray:
    """A column (N, 2) with mean 0 and deviation 1 within each data set and norm."""
    z = np.zeros_like(x)
    for rows, _ in study.groups(within=False):
        part = x[rows] - x[rows].mean(axis=0)
        z[rows] = part / np.maximum(part.std(axis=0), 1e-12)
    return z


def left_out(
    study: Study, table: Mapping[str, np.ndarray], names: Sequence[str], at: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """What a linear fit over the other purified classifiers says of each: (N, 2) slopes' part, and errors.

    Both norms of the unit are left out. The part of the slopes ranks; the error is that of the whole fit,
    with the mean of the other units of the data set and norm.
    """
    y = table["attacked"][at]
    columns = [standardised(study, table[name][at]) for name in names] or [np.zeros_like(y)]
    z = np.stack(columns, axis=-1)  # (N, 2, F)
    said, errors = np.zeros_like(y), np.zeros_like(y)
    group = np.array([study.data_sets.index(u.data) for u in study.units])
    for i in range(len(study.units)):
        keep = np.arange(len(study.units)) != i
        means = {}
        rows_x, rows_y = [], []
        for g in range(len(study.data_sets)):
            rows = keep & (group == g)
            for norm in range(len(NORMS)):
                centre = z[rows, norm].mean(axis=0), y[rows, norm].mean()
                means[g, norm] = centre
                rows_x.append(z[rows, norm] - centre[0])
                rows_y.append(y[rows, norm] - centre[1])
        slopes = np.linalg.lstsq(np.concatenate(rows_x), np.concatenate(rows_y), rcond=None)[0]
        for norm in range(len(NORMS)):
            x_mean, y_mean = means[group[i], norm]
            said[i, norm] = z[i, norm] @ slopes
            errors[i, norm] = abs(y_mean + (z[i, norm] - x_mean) @ slopes - y[i, norm])
    return said, errors


def mixed(study: Study, names: Sequence[str]) -> dict[str, Any]:
    """A mixed-effects fit by REML: slopes per standard deviation, and deviations of the random effects.

    Random effects of data set, of classifier and denoiser within it, and of the purified classifier, whose
    two norms belong together.

    Source:
        statsmodels' MixedLM (Lindstrom & Bates 1988, JASA 83:1014).
    """
    import pandas as pd
    from statsmodels.regression.mixed_linear_model import MixedLM

    table = study.tables[0]
    frame = pd.DataFrame(
        {
            "attacked": table["attacked"][0].ravel(),
            "norm": np.tile(NORMS, len(study.units)),
            "unit": np.repeat(np.arange(len(study.units)), 2),
            "data": np.repeat([u.data for u in study.units], 2),
            "classifier": np.repeat([f"{u.data} {u.classifier}" for u in study.units], 2),
            "denoiser": np.repeat([f"{u.data} {u.denoiser}" for u in study.units], 2),
            **{name: standardised(study, table[name][0]).ravel() for name in names},
        }
    )
    effects = {name: f"0 + C({name})" for name in ("data", "classifier", "denoiser", "unit")}
    formula = "attacked ~ C(norm) + " + " + ".join(names)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a variance of 0 lies on the edge, and it says so
            model = MixedLM.from_formula(formula, frame, groups=np.ones(len(frame)), vc_formula=effects)
            try:
                fit = model.fit(reml=True)
                break
            except np.linalg.LinAlgError:  # an effect that the data cannot tell from another
                if len(effects) == 1:
                    raise
                effects.pop(next(name for name in ("denoiser", "data", "unit") if name in effects))
    ends = fit.conf_int()
    return {
        "slopes per deviation": {
            name: [round(float(v), 3) for v in (fit.params[name], *ends.loc[name])] for name in names
        },
        "deviations": {
            **{
                name: round(math.sqrt(max(0.0, float(v))), 3)
                for name, v in zip(fit.model.exog_vc.names, fit.vcomp, strict=True)
            },
            "rest": round(math.sqrt(float(fit.scale)), 3),
        },
        "converged": bool(fit.converged),
    }


def number(value: float, draws: np.ndarray) -> list[float]:
    """A value with the percentiles of its resamples."""
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return [round(float(v), 3) for v in (value, low, high)]


class Ranked(NamedTuple):
    """One predictor's ranking power, with its resamples."""

    every: tuple[float, np.ndarray]
    around: tuple[float, np.ndarray]
    summary: dict[str, Any]


def ranked(study: Study, x: np.ndarray, moved: np.ndarray) -> Ranked:
    """Correlations of one predictor, all together, by data set, and around one classifier."""
    every = ranking(study, x, moved, within=False)
    summary: dict[str, Any] = {"within data set and norm": number(*every)}
    summary["p"] = round(by_chance(study, x, within=False), 4)
    for data in study.data_sets:
        summary[data] = number(*ranking(study, x, moved, within=False, data=data))
    around = ranking(study, x, moved, within=True)
    summary["around one classifier"] = number(*around)
    summary["around one classifier: p"] = round(by_chance(study, x, within=True), 4)
    return Ranked(every, around, summary)


def best(every: Mapping[str, Ranked], kind: str) -> dict[str, Any]:
    """The best prediction that needs no attack, and what it gains over the runner-up and the formula."""
    found = {n: getattr(r, kind) for n, r in every.items() if "needs the attack" not in n}
    first, second = sorted(found, key=lambda n: -found[n][0])[:2]

    def gain(other: str) -> list[float]:
        (a, draws), (b, others) = found[first], found[other]
        count = min(len(draws), len(others))
        return number(a - b, draws[:count] - others[:count])

    formula = "formula: margin > rate x length"
    return {"best": first, f"minus {second}": gain(second), f"minus {formula}": gain(formula)}


def fit(study: Study) -> dict[str, Any]:
    """All numbers of the study, ready for JSON."""
    plain, moved = study.tables
    y = plain["attacked"][0]
    every: dict[str, Ranked] = {}
    for name, key in ALONE.items():
        sign = -1 if key in LOWER_IS_BETTER else 1
        every[name] = ranked(study, sign * plain[key][0], sign * moved[key])
        every[name].summary["error left out"] = round(float(left_out(study, plain, [key])[1].mean()), 3)
    for name, keys in FITTED.items():
        said, errors = left_out(study, plain, keys)
        draws = np.array([left_out(study, moved, keys, b)[0] for b in range(min(REFITS, study.resamples))])
        every[name] = ranked(study, said, draws)
        every[name].summary["error left out"] = round(float(errors.mean()), 3)
    formulas = ("formula", "step_formula")
    return {
        "images": study.images,
        "configurations": {d: 2 * len(study.of(d)) for d in study.data_sets},
        "rank correlation with attacked accuracy": {n: r.summary for n, r in every.items()},
        "error of the mean of the others": round(float(left_out(study, plain, ())[1].mean()), 3),
        "best within data set and norm": best(every, "every"),
        "best around one classifier": best(every, "around"),
        "formula minus attacked": {
            key: {
                "bias": round(float((plain[key][0] - y).mean()), 3),
                "error": round(float(np.abs(plain[key][0] - y).mean()), 3),
                **{
                    f"bias, {d}": round(float((plain[key][0] - y)[study.of(d)].mean()), 3)
                    for d in study.data_sets
                },
            }
            for key in formulas
        },
        "mixed": {
            " + ".join(names): mixed(study, names)
            for names in (
                ["rate"],
                ["step_rate"],
                ["rate", "margin"],
                ["right", "rate", "margin", "snr"],
                ["formula"],
            )
        },
    }


def units(study: Study) -> list[dict[str, Any]]:
    """What was measured of every purified classifier, Linf before L2."""
    return [
        {
            **{key: getattr(unit, key) for key in ("data", "classifier", "denoiser", "purifier")},
            **{key: np.round(values[0, i], 3).tolist() for key, values in study.tables[0].items()},
        }
        for i, unit in enumerate(study.units)
    ]


def read(folder: Path) -> list[Unit]:
    """The units that were measured."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [
        Unit(r["group"], r["classifier"], r["denoiser"], json.dumps(r["purifier"]), r["images"])
        for r in found
    ]


def main() -> None:
    """Prints the numbers, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    arguments = parser.parse_args()
    study = Study(read(arguments.runs), arguments.resamples)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found = {
        "command": "python -m benchmarks.law_wide DIR --weights WEIGHTS; ... law_wide_fit DIR --out FILE",
        "commit": git.stdout.strip(),
        "machine": "2 shared CPU cores, one thread a process, float32",
        **fit(study),
        "units": units(study),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        write_atomically(arguments.out, text.encode())


if __name__ == "__main__":
    main()
