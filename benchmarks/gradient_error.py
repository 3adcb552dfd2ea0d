"""How far an attack's gradient is from the mean over all draws, by design of its draws, at equal passes.

    python -m benchmarks.gradient_error DIR [--minutes 15] [--out FILE]

For each purifier and image the gradients of single draws are made, in mirrored pairs, and those of a
surrogate with few steps on the same noise. Their inner products tell every second moment, and with them the
error of every design at any number of passes; nothing is compared with a mean over many draws, whose own
error would count. Draws of one pair are never taken for independent. Points: the clean image, and the image
after five iterations of PGD on `one_step`, for it is around attacked images that an attack spends its passes.
DIR keeps what is measured, batch by batch; run again, it goes on. Intervals resample images.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dbpkit import Linf, NoisePlan, PurifiedClassifier, Purifier, load_dataset, load_embedded, pgd
from dbpkit.attacks import Design, Target, designed
from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.intervals import mean

Array = np.ndarray[Any, Any]

DRAWS, BATCH, ITERATIONS = 8, 32, 6
"""Draws of an image, images of a batch, and iterations where attacks are compared."""


class Subject(NamedTuple):
    """A purifier of the embedded models, and how many images it is measured on; ``small`` is the variance."""

    sampler: str
    steps: int
    t_star: float = 0.1
    small: bool = False
    attacked: int = 32
    clean: int = 0

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.sampler} {self.steps} t{self.t_star:g}"


SUBJECTS = [
    Subject("one_step", 1000, attacked=128, clean=32),
    Subject("ddim", 100, clean=32),
    Subject("ddpm", 100, small=True),
    Subject("ddim", 20, attacked=128),
    Subject("vpsde", 100),
    Subject("ddpm", 25, small=True, attacked=64),
    Subject("vpsde", 20, attacked=64),
    Subject("ddim", 200),
]


class Setting:
    """The models and images, and where each batch's records lie."""

    def __init__(self, folder: Path) -> None:
        self.denoiser, self.classifier = load_embedded()
        self.data = load_dataset("embedded")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, subject: Subject) -> PurifiedClassifier:
        """The purified classifier."""
        sampler, steps, t_star, small, *_ = subject
        options = {"variance": "small"} if small else {}
        purifier = Purifier(self.denoiser, sampler, t_star=t_star, steps=steps, options=options)
        return PurifiedClassifier(purifier, self.classifier)

    def batch(self, first: int, point: str) -> tuple[Tensor, Tensor, NoisePlan]:
        """Images, labels and noise from an image on; images of PGD on `one_step` where ``point`` says so."""
        rows = slice(first, first + BATCH)
        some = self.data.select(rows)
        x, y, noise = some.x(), some.labels, NoisePlan.of(0, some.ids, "attack")
        if point == "clean":
            return x, y, noise
        kept = self.folder / f"attacked-{first}.json"
        if not kept.exists():
            plan = noise.in_lane(7)
            found = pgd(
                Target(self.model(SUBJECTS[0])), x, y, threat=Linf(8 / 255), noise=plan, iterations=5, eot=2
            )
            kept.write_text(json.dumps(found.x_adv.double().mul(2**24).round().long().flatten().tolist()))
        pixels = torch.tensor(json.loads(kept.read_text()), dtype=torch.float64) / 2**24
        return pixels.float().reshape(x.shape), y, noise


def measured(setting: Setting, subject: Subject, point: str, first: int) -> list[dict[str, Any]]:
    """Records of a batch: inner products of the gradients of draws, losses, and energies by frequency."""
    x, y, noise = setting.batch(first, point)
    target = Target(setting.model(subject), BATCH)
    full = target.per_draw(x, y, noise=noise, eot=DRAWS, design=Design(antithetic=True))
    coarse = target.coarser(1)
    some = coarse and coarse.per_draw(x, y, noise=noise, eot=DRAWS, design=Design(antithetic=True))
    f = full.grad.flatten(2).double()
    records = []
    for b, example in enumerate(noise.example_ids.tolist()):
        one = {"id": example, "ff": (f[b] @ f[b].T).tolist(), "loss": full.loss[b].tolist()}
        one["bands"] = _bands(full.grad[b])
        if some:
            s = some.grad[b].flatten(1).double()
            one |= {"fs": (f[b] @ s.T).tolist(), "ss": (s @ s.T).tolist(), "s_loss": some.loss[b].tolist()}
        records.append(one)
    return records


def orthogonal(setting: Setting, subject: Subject, first: int) -> list[dict[str, Any]]:
    """Records of a batch: squared distance of two independent means, of orthogonal and of plain draws."""
    x, y, noise = setting.batch(first, "attacked")
    target = Target(setting.model(subject), BATCH)
    out = {}
    for name, design in (("independent", Design()), ("orthogonal", Design(orthogonal=True))):
        a, b = (
            target.gradient(x, y, noise=noise.in_lane(3).at(i), eot=DRAWS, design=design).grad for i in (0, 1)
        )
        out[name] = (a - b).flatten(1).double().square().sum(1).tolist()
    ids = noise.example_ids.tolist()
    return [{"id": i, **{name: v[b] for name, v in out.items()}} for b, i in enumerate(ids)]


def attacked(setting: Setting, subject: Subject, first: int) -> list[dict[str, Any]]:
    """Records of a batch: share of 8 draws that are right after PGD, by plain gradients and by two others.

    The others take as many network passes: mirrored draws, and mirrored draws of the surrogate alone.
    """
    x, y, noise = setting.batch(first, "clean")
    model, out = setting.model(subject), {}
    exact, plan = Target(model, BATCH), noise.in_lane(9)
    for name, target, design, eot in (
        ("plain", exact, Design(), 2),
        ("antithetic", exact, Design(antithetic=True), 2),
        ("surrogate, antithetic", exact.coarser(1), Design(antithetic=True), 2 * exact.calls),
    ):
        attack = designed(pgd, design)
        found = attack(target, x, y, threat=Linf(8 / 255), noise=plan, iterations=ITERATIONS, eot=eot)
        judge = Target(model, BATCH).judge(found.x_adv, y, noise=noise.on("report"), draws=8)
        out[name] = judge.right.tolist()
    ids = noise.example_ids.tolist()
    return [{"id": i, **{name: v[b] for name, v in out.items()}} for b, i in enumerate(ids)]


def _bands(grad: Tensor) -> list[list[float]]:
    """By band of spatial frequency: mean energy of a draw, and mean product of draws of other pairs."""
    spectrum = torch.fft.fft2(grad.double(), norm="ortho")
    frequency = torch.fft.fftfreq(grad.shape[-1], dtype=torch.float64)
    band = ((frequency[:, None].square() + frequency.square()).sqrt() * 16).long().clamp(max=7)
    rows = []
    other = torch.kron(torch.eye(DRAWS // 2), torch.ones(2, 2)) == 0
    for k in range(8):
        part = spectrum[..., band == k].flatten(1)
        gram = (part @ part.conj().T).real
        rows.append([float(gram.diagonal().mean()), float(gram[other].mean())])
    return rows


def units() -> Iterator[tuple[str, Subject, str, int]]:
    """What is measured, in order: some of each purifier first."""
    found = [("draws", s, "attacked", i) for s in SUBJECTS for i in range(0, s.attacked, BATCH)]
    found += [("orthogonal", SUBJECTS[0], "attacked", i) for i in range(0, 64, BATCH)]
    found += [("draws", s, "clean", i) for s in SUBJECTS for i in range(0, s.clean, BATCH)]
    found = sorted(found, key=lambda unit: unit[3])
    yield from found + [("attack", SUBJECTS[3], "pgd", i) for i in range(0, 128, BATCH)]


def fill(folder: Path, minutes: float, only: Sequence[str]) -> None:
    """Measures what is missing, of these purifiers if any are named, until time is up."""
    setting, start = Setting(folder), time.monotonic()
    for kind, subject, point, first in units():
        path = folder / f"{kind}-{subject.name}-{point}-{first}.json".replace(" ", "-")
        if path.exists() or (only and subject.name not in only):
            continue
        if time.monotonic() - start > 60 * minutes:
            return
        begun = time.monotonic()
        if kind == "draws":
            records = measured(setting, subject, point, first)
        else:
            records = (orthogonal if kind == "orthogonal" else attacked)(setting, subject, first)
        path.write_text(json.dumps(records))
        print(f"{path.name}: {time.monotonic() - begun:.0f} s", flush=True)


def moments(records: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Of every image, (N,): variances, covariances of mirror images, products of means, summed over pixels.

    ``V``, ``C`` and ``mu`` of the model's gradients f, ``Vs``, ``Cs`` and ``mus`` of the surrogate's s,
    ``K``, ``Kc`` and ``mufs`` between them, of the same draw, of its mirror image, and of means; unbiased.
    """
    pair = np.arange(DRAWS) // 2
    own = np.eye(DRAWS, dtype=bool)
    same = pair[:, None] == pair
    found = {}
    for key, names in (("ff", ("V", "C", "mu")), ("ss", ("Vs", "Cs", "mus")), ("fs", ("K", "Kc", "mufs"))):
        if key in records[0]:
            gram = np.array([r[key] for r in records])
            means = [gram[:, mask].mean(1) for mask in (own, same & ~own, ~same)]
            found |= dict(zip(names, (means[0] - means[2], means[1] - means[2], means[2]), strict=True))
    length = np.sqrt(np.array([r["ff"] for r in records])[:, own]).mean(1)
    found["best_choice"] = length**2 - found["mu"]
    return found


def errors(m: Mapping[str, Array], calls: int, draws: int = 10) -> dict[str, Array]:
    """Mean squared error (N,) of each design at the passes of so many plain draws, with ``calls`` a row."""
    plain = m["V"] / draws
    found = {
        "plain": plain,
        "antithetic": (m["V"] + m["C"]) / draws,
        "choice by length": m["best_choice"] / draws,
    }
    if "Vs" not in m:
        return found
    share = 1 / calls
    for name, (v, vs, k) in {
        "control": (m["V"], m["Vs"], m["K"]),
        "antithetic, control": (m["V"] + m["C"], m["Vs"] + m["Cs"], m["K"] + m["Kc"]),
    }.items():
        for q in (1, 2, 4, 8):
            cost = 1 + (1 + q) * share
            found[f"{name}, M = {q} R"] = cost * (v - k**2 / vs * q / (1 + q)) / draws
    bias = m["mu"] - 2 * m["mufs"] + m["mus"]
    found["surrogate alone"] = m["Vs"] * share / draws + bias
    found["surrogate alone, antithetic"] = (m["Vs"] + m["Cs"]) * share / draws + bias
    found["surrogate alone, endless draws"] = bias
    return found


def smoothed(records: Sequence[Mapping[str, Any]], draws: int = 10) -> dict[str, float]:
    """Error and squared cosine of the mean of plain draws, as it is and with bands of frequency shrunk."""
    energy, signal = np.array([r["bands"] for r in records]).mean(0).T
    noise = (energy - signal) / draws
    weight = signal.clip(0) / (signal.clip(0) + noise)
    out = {}
    for name, w in (("plain", np.ones_like(weight)), ("smoothed", weight)):
        out[f"{name}, error"] = float((w**2 * noise + (1 - w) ** 2 * signal).sum() / signal.sum())
        out[f"{name}, cosine squared"] = float(
            (w * signal).sum() ** 2 / (w**2 * (signal + noise)).sum() / signal.sum()
        )
    return out


def ratio(over: Array, under: Array, rounds: int = 4000) -> list[float]:
    """Sum of one over sum of the other, and its 95 % interval over images."""
    index = (uniforms(rounds, len(over), "probe", 0) * len(over)).astype(np.int64)
    many = over[index].sum(1) / under[index].sum(1)
    return [float(over.sum() / under.sum()), *np.quantile(many, [0.025, 0.975]).tolist()]


def concluded(folder: Path) -> list[dict[str, Any]]:
    """A row for each purifier and point: how many times lower the error is, by design, with intervals."""
    read: dict[tuple[str, Subject, str], list[Any]] = {}
    for kind, subject, point, first in units():
        path = folder / f"{kind}-{subject.name}-{point}-{first}.json".replace(" ", "-")
        if path.exists():
            read.setdefault((kind, subject, point), []).extend(json.loads(path.read_text()))
    rows, setting = [], Setting(folder)
    for (kind, subject, point), records in read.items():
        row: dict[str, Any] = {"what": kind, "purifier": subject.name, "point": point, "images": len(records)}
        if kind == "draws":
            calls = Target(setting.model(subject)).calls
            m = moments(records)
            e = errors(m, calls)
            row |= {"calls": calls, "gain": {n: ratio(e["plain"], v) for n, v in e.items() if n != "plain"}}
            row["odd share of the variance"] = ratio((m["V"] - m["C"]) / 2, m["V"])
            row["signal to noise of a draw"] = ratio(m["mu"], m["V"])
            if "Vs" in m:
                row["rho squared"] = ratio(m["K"] ** 2 / m["Vs"], m["V"])
                even = m["V"] + m["C"]
                row["rho squared of pairs"] = ratio((m["K"] + m["Kc"]) ** 2 / (m["Vs"] + m["Cs"]), even)
                row["cosine of means"] = float(m["mufs"].sum() / np.sqrt(m["mu"].sum() * m["mus"].sum()))
            row["smoothing"] = smoothed(records)
        else:
            names = [k for k in records[0] if k != "id"]
            columns = {k: np.array([r[k] for r in records]) for k in names}
            row["mean"] = {k: float(v.mean()) for k, v in columns.items()}
            first = columns[names[0]]
            if kind == "orthogonal":
                row["gain"] = {names[1]: ratio(first, columns[names[1]])}
            else:
                apart = {k: mean((columns[k] - first).tolist()) for k in names[1:]}
                row["difference"] = {k: [v.value, v.low, v.high] for k, v in apart.items()}
        rows.append(row)
    return rows


def main() -> None:
    """Measures what is missing, and writes the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--only", nargs="*", default=[], help="names of purifiers")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    fill(given.folder, given.minutes, given.only)
    rows = concluded(given.folder)
    told = {
        "what": "times that the mean squared error is lower than with plain draws, at equal network passes",
        "command": "python -m benchmarks.gradient_error DIR --out benchmarks/results/gradient-error.json",
        "machine": f"{platform.machine()}, {platform.system()}, one thread, torch {torch.__version__}",
        "rows": rows,
    }
    if given.out:
        given.out.write_text(json.dumps(told, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
