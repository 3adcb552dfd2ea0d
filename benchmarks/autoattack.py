"""Our APGD, FAB and Square against pyautoattack: the same classifiers, images, budgets and queries.

    python -m benchmarks.autoattack                                      on the embedded classifier
    python -m benchmarks.autoattack --classifier runs/vgg/NAME.safetensors      and on a second one
    python -m benchmarks.autoattack frozen                               noise by example and by position

Every row is printed when it is done and kept in ``--out``; the same command goes on where it was stopped. A
second classifier is trained by ``dbpkit train specs/train/cifar10-vgg.toml``. Needs pyautoattack.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit import NoisePlan, load_classifier, load_dataset
from dbpkit.attacks import Target, make_attack
from dbpkit.experiment.build import single_draw
from dbpkit.foundation.machine import settle
from dbpkit.foundation.spec import PartSpec, amount
from dbpkit.models.sources import source
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import make_threat

NORMS = {"linf": "Linf", "l2": "L2"}
"""Our name of a norm, and pyautoattack's."""

ATTACKS = ("apgd-ce", "apgd-dlr", "square", "apgd-t", "fab-t")
"""By the names that AutoAttack gives them."""

TARGETS = 9

Row = dict[str, Any]


class Attacked(NamedTuple):
    """What an attack did: images, rows through the network, those that were differentiated, seconds."""

    x_adv: Tensor
    forward: int
    gradient: int
    seconds: float


class Counted(nn.Module):
    """A classifier that counts its rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward_rows = 0
        self.gradient_rows = 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K)."""
        self.forward_rows += len(x)
        self.gradient_rows += len(x) * (torch.is_grad_enabled() and x.requires_grad)
        return self.model(x)


def ours(name: str, iterations: int, queries: int) -> PartSpec:
    """The attack with AutoAttack's settings for deterministic models."""
    return {
        "apgd-ce": PartSpec(name="apgd", options={"loss": "ce", "iterations": iterations, "stop": True}),
        "apgd-dlr": PartSpec(name="apgd", options={"loss": "dlr", "iterations": iterations, "stop": True}),
        "apgd-t": PartSpec(
            name="apgd_targeted", options={"iterations": iterations, "n_targets": TARGETS, "stop": True}
        ),
        "fab-t": PartSpec(name="fab", options={"iterations": iterations, "n_targets": TARGETS}),
        "square": PartSpec(name="square", options={"iterations": queries}),
    }[name]


def theirs(name: str, model: nn.Module, norm: str, eps: float, iterations: int, queries: int) -> Any:
    """The attack of pyautoattack as its AutoAttack sets it up; one restart."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    shared = {"norm": NORMS[norm], "eps": eps, "seed": 0, "device": "cpu"}
    if name == "square":
        return SquareAttack(model, n_queries=queries, p_init=0.8, resc_schedule=False, **shared)
    if name == "fab-t":
        return FABAttack_PT(model, n_iter=iterations, targeted=True, n_target_classes=TARGETS, **shared)
    if name == "apgd-t":
        return APGDAttack_targeted(model, n_iter=iterations, n_target_classes=TARGETS, **shared)
    return APGDAttack(model, n_iter=iterations, loss=name.removeprefix("apgd-"), **shared)


def attack_ours(
    part: PartSpec, model: nn.Module, x: Tensor, y: Tensor, noise: NoisePlan, threat: Any, size: int
) -> Attacked:
    """Runs our attack in batches."""
    run, target, start = make_attack(part.name, single_draw(part)), Target(model, size), time.perf_counter()
    images = [
        run(target, x[rows], y[rows], threat=threat, noise=noise.rows(rows)).x_adv
        for rows in torch.arange(len(x)).split(size)
    ]
    seconds = time.perf_counter() - start
    return Attacked(threat.project(x, torch.cat(images)), target.forward_rows, target.gradient_rows, seconds)


def attack_theirs(
    make: Callable[[nn.Module], Any], model: nn.Module, x: Tensor, y: Tensor, size: int
) -> Attacked:
    """Runs pyautoattack's attack in batches; it seeds torch's generator, which is put back."""
    counted, start = Counted(model), time.perf_counter()
    attack = make(counted)
    with torch.random.fork_rng():
        images = [attack.perturb(x[rows], y[rows]) for rows in torch.arange(len(x)).split(size)]
    seconds = time.perf_counter() - start
    return Attacked(torch.cat(images).detach(), counted.forward_rows, counted.gradient_rows, seconds)


@torch.no_grad()
def right(model: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Which images (B,) are classified right, always judged in the same batches."""
    parts = torch.arange(len(x)).split(32)
    return torch.cat([model(x[rows], rows).argmax(dim=1) == y[rows] for rows in parts])


def compare(options: argparse.Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """Settings of every row, and how it is measured."""
    data = load_dataset("embedded").select(slice(0, options.images))
    x, y, noise = data.x(), data.labels, NoisePlan.of(options.seed, data.ids, "attack")
    for text in ["embedded", *options.classifier]:
        name, settings = source(text)
        classifier = load_classifier(name, {"mirror": False} if text == "embedded" else settings)
        for eps in options.eps:
            for attack in options.attacks:
                setting = {
                    "classifier": text,
                    "norm": options.norm,
                    "eps": eps,
                    "attack": attack,
                    "images": options.images,
                    "iterations": options.queries if attack == "square" else options.iterations,
                    "seed": options.seed,
                }

                def measure(attack: str = attack, eps: str = eps, classifier: nn.Module = classifier) -> Row:
                    threat = make_threat(options.norm, amount(eps))
                    part = ours(attack, options.iterations, options.queries)
                    a = attack_ours(part, Undefended(classifier), x, y, noise, threat, options.batch_size)
                    b = attack_theirs(
                        lambda model: theirs(
                            attack, model, options.norm, threat.eps, options.iterations, options.queries
                        ),
                        classifier,
                        x,
                        y,
                        options.batch_size,
                    )
                    clean, *judged = (right(lambda z, _: classifier(z), z, y) for z in (x, a.x_adv, b.x_adv))
                    return {"clean": int(clean.sum()), **compared(judged, (a, b), threat, x)}

                yield setting, measure


def compared(judged: Sequence[Tensor], done: Sequence[Attacked], threat: Any, x: Tensor) -> Row:
    """Counts of both attacks, ours first."""
    mine, peers = judged
    return {
        "right": [int(j.sum()) for j in judged],
        "only_ours_breaks": int((~mine & peers).sum()),
        "only_theirs_breaks": int((mine & ~peers).sum()),
        "forward": [d.forward for d in done],
        "gradient": [d.gradient for d in done],
        "seconds": [round(d.seconds, 1) for d in done],
        "excess": [float(threat.distance(x, d.x_adv).max()) - threat.eps for d in done],
    }


def compare_table(setting: Row, row: Row) -> list[str]:
    """Cells of a row of the comparison."""
    n = setting["images"]
    a, b = (count / n for count in row["right"])
    calls = [f"{f / n:.0f} + {g / n:.0f}" for f, g in zip(row["forward"], row["gradient"], strict=True)]
    return [
        Path(setting["classifier"]).parent.name or setting["classifier"],
        f"{setting['norm']} {setting['eps']}",
        setting["attack"],
        f"{row['clean'] / n:.1%}",
        f"{a:.1%}",
        f"{b:.1%}",
        f"{100 * (a - b):+.1f}",
        f"{row['only_ours_breaks']} / {row['only_theirs_breaks']}",
        *calls,
        *(f"{s:.0f}" for s in row["seconds"]),
    ]


COMPARED = (
    *("classifier", "eps", "attack", "clean", "ours", "pyautoattack", "difference"),
    *("broken only by ours / theirs", "calls + gradients an image, ours", "theirs", "s, ours", "s, theirs"),
)


class FrozenNoise(nn.Module):
    """A classifier behind Gaussian noise that is drawn once for each example."""

    sites = frozenset({"forward"})

    def __init__(self, classifier: nn.Module, sigma: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.sigma = sigma

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K)."""
        return self.classifier(x + self.sigma * noise.normal("forward", 0, x))


class ByPosition(nn.Module):
    """The same noise by position in the call, which is all that a library without ids can do."""

    def __init__(self, model: FrozenNoise, noise: NoisePlan) -> None:
        super().__init__()
        self.model = model
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K): row k gets the noise of the batch's k-th example, whoever it is."""
        return self.model(x, noise=self.noise.rows(slice(0, len(x))))


def frozen(options: argparse.Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """Accuracy under each example's own noise, attacked by example and by position, in two batch sizes."""
    count = min(options.images, 48)
    data = load_dataset("embedded").select(slice(0, count))
    x, y, threat = data.x(), data.labels, make_threat(options.norm, amount(options.eps[-1]))
    model = FrozenNoise(load_classifier("embedded", {"mirror": False}), options.sigma)
    for attack in ("apgd-ce", "square"):
        for seed in range(options.seed, options.seed + options.seeds):
            setting = {
                "frozen": options.sigma,
                "norm": options.norm,
                "eps": options.eps[-1],
                "attack": attack,
                "images": count,
                "iterations": options.queries if attack == "square" else options.iterations,
                "seed": seed,
            }

            def measure(attack: str = attack, seed: int = seed) -> Row:
                report = NoisePlan.of(seed, data.ids)
                plan = report.on("attack").sharing(["forward"], report)
                part = ours(attack, options.iterations, options.queries)
                run = make_attack(part.name, single_draw(part))
                row: Row = {"id": [], "position": []}
                for size in (16, 48):
                    images: dict[str, list[Tensor]] = {"id": [], "position": []}
                    for rows in torch.arange(count).split(size):
                        target = Target(model, 16, fixed_shape=True)
                        found = run(target, x[rows], y[rows], threat=threat, noise=plan.rows(rows)).x_adv
                        images["id"].append(threat.project(x[rows], found))
                        by_position = ByPosition(model, report.rows(rows))
                        peer = theirs(
                            attack, by_position, options.norm, threat.eps, options.iterations, options.queries
                        )
                        with torch.random.fork_rng():
                            images["position"].append(peer.perturb(x[rows], y[rows]).detach())
                    for kind, parts in images.items():
                        judged = right(lambda z, rows: model(z, noise=report.rows(rows)), torch.cat(parts), y)
                        row[kind].append(int(judged.sum()))
                return row

            yield setting, measure


def frozen_table(setting: Row, row: Row) -> list[str]:
    """Cells of a row of the experiment with frozen noise."""
    shares = [f"{count / setting['images']:.1%}" for kind in ("position", "id") for count in row[kind]]
    return [setting["attack"], str(setting["seed"]), *shares]


FROZEN = ("attack", "seed", "by position, 16", "by position, 48", "by example, 16", "by example, 48")


def main() -> None:
    """Measures what is not in the file yet and prints every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("compare", "frozen"), default="compare")
    parser.add_argument("--classifier", action="append", default=[], help="weights file; may be repeated")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--norm", choices=NORMS, default="linf")
    parser.add_argument("--eps", nargs="+", default=["0.5/255", "1/255", "2/255"])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--queries", type=int, default=1000, help="of Square")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5, help="of frozen noise")
    parser.add_argument("--sigma", type=float, default=0.05, help="frozen noise, in [0, 1] pixel units")
    parser.add_argument("--out", type=Path, default=Path("runs/autoattack.jsonl"))
    options = parser.parse_args()
    rows, cells, names = {
        "compare": (compare, compare_table, COMPARED),
        "frozen": (frozen, frozen_table, FROZEN),
    }[options.what]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {json.dumps(line["setting"]): line["row"] for line in map(json.loads, lines)}
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|", flush=True)
    for setting, measure in rows(options):
        row = done.get(json.dumps(setting))
        if row is None:
            row = measure()
            with options.out.open("a") as file:
                file.write(json.dumps({"setting": setting, "row": row}) + "\n")
        print("| " + " | ".join(cells(setting, row)) + " |", flush=True)


if __name__ == "__main__":
    settle()
    main()
