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
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit import Linf, NoisePlan, PurifiedClassifier, Purifier, load_dataset, load_embedded, pgd
from dbpkit.attacks import Design, Target

DRAWS, BATCH, SURROGATE = 8, 32, 10
"""Draws of an image, images of a batch, and steps of the surrogate: 2 calls at t* = 0.1."""

SMALL = {"variance": "small"}


class Subject(NamedTuple):
    """A purifier of the embedded models, and how many images it is measured on, attacked and clean."""

    sampler: str
    steps: int
    t_star: float = 0.1
    options: Mapping[str, str] = MappingProxyType({})
    attacked: int = 64
    clean: int = 32

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.sampler} {self.steps} t{self.t_star:g}"


SUBJECTS = [
    Subject("one_step", 1000, attacked=128),
    Subject("ddim", 20, attacked=128),
    Subject("ddpm", 25, options=SMALL, attacked=64),
    Subject("vpsde", 20, attacked=64),
    Subject("ddim", 100, attacked=32, clean=0),
    Subject("ddpm", 100, options=SMALL, attacked=32, clean=0),
    Subject("one_step", 1000, t_star=0.05, attacked=64, clean=0),
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
        _, steps, t_star, options, *_ = subject
        purifier = Purifier(self.denoiser, subject.sampler, t_star=t_star, steps=steps, options=options)
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
    coarse = target.coarser(SURROGATE) if subject.t_star == 0.1 else None
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
    found += [("draws", s, "clean", i) for s in SUBJECTS for i in range(0, s.clean, BATCH)]
    found += [("orthogonal", SUBJECTS[0], "attacked", i) for i in range(0, 64, BATCH)]
    yield from sorted(found, key=lambda unit: unit[3])


def fill(folder: Path, minutes: float) -> None:
    """Measures what is missing, until time is up."""
    setting, start = Setting(folder), time.monotonic()
    for kind, subject, point, first in units():
        path = folder / f"{kind}-{subject.name}-{point}-{first}.json".replace(" ", "-")
        if path.exists():
            continue
        if time.monotonic() - start > 60 * minutes:
            return
        begun = time.monotonic()
        if kind == "draws":
            records = measured(setting, subject, point, first)
        else:
            records = orthogonal(setting, subject, first)
        path.write_text(json.dumps(records))
        print(f"{path.name}: {time.monotonic() - begun:.0f} s", flush=True)


def main() -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15)
    fill(parser.parse_args().folder, parser.parse_args().minutes)


if __name__ == "__main__":
    main()
