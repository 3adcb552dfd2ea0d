"""The shape of compression at fixed randomness: how many directions survive, and how stretched.

Two views of one map f: principal components of purified points of the budget, and singular values of the
Jacobian J of f at the clean image. J is not symmetric, so its eigenvalues do not say how much lengths shrink;
singular values do. Their root mean square, ||J||_F / sqrt(d), is the compression rate of small random
perturbations.

Source:
    Liu & Wei, ICLR 2025 submission, section 6 and figure 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, needs_budget, rows
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, CountOrNone, Several
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import bands, mean

POINTS = {"purified": "purified images", "inputs": "inputs"}
"""What principal components are taken of."""

OVERSAMPLING = 4
"""Directions that the randomised method follows beyond those it reports."""

STEP = 1e-2
"""Length of a central difference, as a share of the length of a random perturbation of the budget."""


@analyses.register("spectrum")
@dataclass(frozen=True)
class Spectrum(OfImages):
    """Principal components of purified images in the budget, and singular values of the input Jacobian.

    Attributes:
        images: examples.
        draws: random inputs of the budget per example, for the principal components.
        leading: singular values to find where the Jacobian is not computed in full.
        sweeps: rounds of the randomised method; more find the leading values more exactly.
        probes: random directions for the root mean square where the Jacobian is not computed in full.
        exact_up_to: most pixel values (channels times height times width) for the full Jacobian.
    """

    images: Count = 16
    draws: Several = 32
    leading: Count = 8
    sweeps: Count = 3
    probes: Count = 4
    exact_up_to: CountOrNone = 256
    title = "Directions that survive purification"
    follows_gradient = True
    batch_size = 4

    def units(self, subject: Subject) -> list[Unit]:
        """Batches of examples."""
        needs_budget("spectrum", subject)
        return super().units(subject)

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Explained variance and singular values of every example, with report tape 0 fixed."""
        x, _, noise = subject.examples(unit.images)
        inputs, plan = _repeated(x, noise, self.draws)
        ball = subject.parts.threat.random_start(inputs, noise.repeat(self.draws).on("control"))
        points = {"purified": subject.purify(ball, plan), "inputs": ball}
        values, rms = self._singular_values(subject, x, noise)
        records = []
        for b, example in enumerate(noise.example_ids):
            own = {
                k: p.unflatten(0, (len(x), -1))[b].flatten(1).double().cpu().numpy()
                for k, p in points.items()
            }
            records.append(
                {
                    "id": int(example),
                    "size": x[b].numel(),
                    "singular_values": values[b].tolist(),
                    "rms": float(rms[b]),
                    "explained": {k: explained_variance(p).tolist() for k, p in own.items()},
                }
            )
        return records

    def _singular_values(self, subject: Subject, x: Tensor, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Largest singular values (B, K), decreasing, and root mean square of all (B,)."""
        size = x[0].numel()
        if size <= self.exact_up_to:
            unit_vectors = torch.eye(size, dtype=x.dtype, device=x.device).unflatten(1, x.shape[1:])
            values = torch.linalg.svdvals(
                pulled_back(subject, x, noise, unit_vectors.expand(len(x), *unit_vectors.shape))
                .flatten(2)
                .double()
            )
            return values, values.square().mean(dim=1).sqrt()
        values = leading_singular_values(subject, x, noise, self.leading, self.sweeps)
        probes = _normal(x, noise, self.probes, step=1)
        gains = pulled_back(subject, x, noise, probes).flatten(2).double().square().sum(dim=2)
        return values, (gains / probes.flatten(2).double().square().sum(dim=2)).mean(dim=1).sqrt()

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Means over images: how many directions shrink, how much, and the components that matter."""
        records = rows(measured)
        size = records[0]["size"]
        values = np.array([r["singular_values"] for r in records])  # (images, K)
        rms = np.array([r["rms"] for r in records])
        explained = {k: np.array([r["explained"][k] for r in records]) for k in ("purified", "inputs")}
        at_least, at_most = shrinking_share(values, rms, size)
        exact = values.shape[1] == size
        bound, lowest, highest = "" if exact else ", at least", mean(at_least), mean(at_most)
        between = lowest if exact else lowest._replace(high=max(lowest.high, highest.drawn[2]))
        typical = Number.of(
            "root mean square of all singular values",
            mean(rms),
            claim=Claim("below 1: small perturbations shrink", most=1),
        )
        numbers = [
            Number.of(
                f"share of directions that shrink{bound}",
                between,
                claim=Claim("over 90 %: the purifier contracts in nearly all directions", least=0.9),
            ),
            *([] if exact else [Number.of("share of directions that shrink, at most", highest)]),
            typical,
            Number.of("largest singular value", mean(values[:, 0])),
        ]
        for key, name in POINTS.items():
            components = np.array([components_for(e, 0.9) for e in explained[key]], dtype=float)
            numbers.append(Number.of(f"components for 90 % of the variance, {name}", mean(components)))
            numbers.append(
                Number.of(f"variance along the first component, {name}", mean(explained[key][:, 0]))
            )
        sentences = [_shrinks(at_least, at_most, size, typical.value, values), _components(explained)]
        charts = [_singular_chart(values, typical.value), _explained_chart(explained)]
        return Conclusion(sentences, numbers, charts)


def shrinking_share(values: np.ndarray, rms: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the share of singular values below 1, per image; equal if all values are known.

    Args:
        values: the K largest singular values, or lower bounds of them, (images, K).
        rms: root mean square of all, (images,).
        size: how many there are.

    Returns:
        At least and at most, (images,) each. Of the values not known, at most as many are 1 or larger as the
        sum of their squares.
    """
    found = (values >= 1).sum(axis=1)
    unknown = np.clip(size * rms**2 - (values**2).sum(axis=1), 0, size - values.shape[1])
    if values.shape[1] == size:
        return 1 - found / size, 1 - found / size
    return 1 - (values.shape[1] + unknown) / size, 1 - found / size


def leading_singular_values(
    subject: Subject, x: Tensor, noise: NoisePlan, leading: int, sweeps: int
) -> Tensor:
    """Largest singular values of the purifier's Jacobian at each image, by a randomised block Krylov method.

    J v is a central difference and J^T u an exact gradient: replayed steps have no second derivatives. The
    values are those of Q^T J with an orthonormal Q, from exact gradients; differences only choose Q. So they
    approach the true ones from below.

    Args:
        subject: gives the purifier and the micro-batch.
        x: images (B, C, H, W) in [0, 1].
        noise: plan of the same examples; the fixed randomness.
        leading: K, how many values.
        sweeps: rounds of J and J^T.

    Returns:
        (B, K) float64, decreasing.

    Source:
        Halko, Martinsson & Tropp 2011 (arXiv:0909.4061), section 4; Musco & Musco 2015 (arXiv:1504.05477),
        algorithm 2, for keeping the subspaces of all rounds.
    """
    count = min(leading + OVERSAMPLING, x[0].numel())
    step = STEP * float(
        (subject.parts.threat.random_start(x, noise.on("control")) - x).flatten(1).norm(dim=1).mean()
    )
    v = _orthonormal(_normal(x, noise, count, step=0))
    basis: list[Tensor] = []
    rows_of_j: list[Tensor] = []
    for _ in range(min(sweeps, x[0].numel() // count)):
        basis.append(_orthonormal(pushed_forward(subject, x, noise, v, step), *basis))
        rows_of_j.append(pulled_back(subject, x, noise, basis[-1]))
        v = _orthonormal(rows_of_j[-1])
    return torch.linalg.svdvals(torch.cat(rows_of_j, dim=1).flatten(2).double())[:, :leading]


def pushed_forward(subject: Subject, x: Tensor, noise: NoisePlan, v: Tensor, step: float) -> Tensor:
    """J v for directions (B, K, C, H, W), by central differences of length ``step`` in pixel units."""
    images, plan = _repeated(x, noise, v.shape[1])
    delta = step * v.flatten(0, 1)
    difference = subject.purify(images + delta, plan) - subject.purify(images - delta, plan)
    return (difference / (2 * step)).unflatten(0, v.shape[:2])


def pulled_back(subject: Subject, x: Tensor, noise: NoisePlan, u: Tensor) -> Tensor:
    """J^T u for directions (B, K, C, H, W), by exact gradients."""
    images, plan = _repeated(x, noise, u.shape[1])
    wanted = u.flatten(0, 1)

    def pulled(part: slice) -> Tensor:
        leaf = images[part].detach().clone().requires_grad_()
        pure = subject.parts.model.purifier(leaf, noise=plan.rows(part))
        grad: Tensor = torch.autograd.grad(pure, leaf, wanted[part])[0]
        return grad

    return torch.cat(subject.over(len(images), pulled)).unflatten(0, u.shape[:2])


def explained_variance(points: np.ndarray) -> np.ndarray:
    """Share of the variance of points (n, d) along each principal component, decreasing, (min(n - 1, d),)."""
    values = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)[: len(points) - 1] ** 2
    return values / values.sum()


def components_for(explained: np.ndarray, share: float) -> int:
    """How many components it takes to explain ``share`` of the variance."""
    return int(np.searchsorted(explained.cumsum(), share - 1e-9) + 1)


def _repeated(x: Tensor, noise: NoisePlan, count: int) -> tuple[Tensor, NoisePlan]:
    """Each image ``count`` times, with the same noise each time."""
    index = torch.arange(len(x)).repeat_interleave(count)
    return x.repeat_interleave(count, dim=0), noise.rows(index)


def _normal(x: Tensor, noise: NoisePlan, count: int, step: int) -> Tensor:
    """Random directions (B, count, C, H, W)."""
    images = x.repeat_interleave(count, dim=0)
    return noise.repeat(count).on("control").normal("probe", step, images).unflatten(0, (len(x), count))


def _orthonormal(v: Tensor, *others: Tensor) -> Tensor:
    """An orthonormal basis of directions (B, K, C, H, W), also orthogonal to ``others``."""
    q = torch.linalg.qr(torch.cat([*others, v], dim=1).flatten(2).double().mT).Q
    return q.mT[:, -v.shape[1] :].to(v.dtype).reshape(v.shape)


def _singular_chart(values: np.ndarray, typical: float) -> Chart:
    index = list(range(1, values.shape[1] + 1))
    means, low, high = bands(values)
    return Chart(
        "line",
        "Singular values of the purifier's Jacobian, largest first",
        "singular value",
        "factor by which a small perturbation is stretched",
        [
            Series("singular values", index, means, low, high),
            Series("root mean square of all", index, [typical] * len(index)),
            Series("lengths are kept", index, [1.0] * len(index)),
        ],
        f"Singular values fall from {means[0]:.2f} to {means[-1]:.2f}; the root mean square of all is"
        f" {typical:.2f}.",
    )


def _explained_chart(explained: Mapping[str, np.ndarray]) -> Chart:
    series = []
    for key, name in POINTS.items():
        means, low, high = bands(explained[key].cumsum(axis=1))
        series.append(Series(name, list(range(1, len(means) + 1)), means, low, high))
    return Chart(
        "line",
        "Variance of purified images of the budget, by principal components",
        "principal components",
        "share of the variance they explain together",
        series,
        f"The first principal component explains {series[0].y[0]:.0%} of the variance of purified images and"
        f" {series[1].y[0]:.0%} of that of the inputs.",
    )


def _shrinks(at_least: np.ndarray, at_most: np.ndarray, size: int, typical: float, values: np.ndarray) -> str:
    low, high = float(at_least.mean()), float(at_most.mean())
    share = f"{low:.1%}" if values.shape[1] == size else f"at least {low:.1%}, at most {high:.1%}"
    return (
        f"Small changes of an image shrink along {share} of the {size} directions: the typical factor is"
        f" {typical:.2f}, the largest {values[:, 0].mean():.2f}."
    )


def _components(explained: Mapping[str, np.ndarray]) -> str:
    purified, inputs = (
        float(np.mean([components_for(e, 0.9) for e in explained[key]])) for key in ("purified", "inputs")
    )
    return (
        f"Of the {explained['inputs'].shape[1]} directions in which the sampled inputs differ,"
        f" {inputs:.0f} hold 90 % of their variance; once purified, {purified:.0f} do."
    )
