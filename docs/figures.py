"""The figures of docs/concepts, measured and drawn by the package itself.

``python docs/figures.py [DIR]`` evaluates the embedded models (minutes on two cores; the runs stay in DIR if
it is given, and are continued), writes the data of every chart to ``images/concepts.json``, and draws.
``python docs/figures.py --draw`` draws again from that file. Few images and short attacks: the figures show
what a word means, and are no results.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dbpkit import EvaluationSpec, NoisePlan, Purifier, analyse, evaluate, load_dataset, load_embedded
from dbpkit.foundation.png import png_bytes
from dbpkit.models.schedule import discrete_levels
from dbpkit.purification import make_purifier
from dbpkit.reporting.figures import draw
from dbpkit.results.analysis import AnalysisResult
from dbpkit.results.charts import Chart, Series
from dbpkit.results.run_directory import RunDirectory
from dbpkit.statistics.estimates import all_draws, majority
from dbpkit.statistics.intervals import Interval, share

IMAGES = Path(__file__).parent / "images"
DATA = IMAGES / "concepts.json"

SPEC: dict[str, Any] = {
    "name": "figures of the concepts",
    "data": "embedded",
    "classifier": "embedded",
    "denoiser": "embedded",
    "knowledge": [
        "white_box",
        "dw_fwd",
        "dw_rev",
        "dw_both",
        "bpda",
        {"name": "bpda_known", "gradient": "bpda", "shared_sites": ["forward", "reverse"]},
    ],
    "purifier": {"sampler": "ddpm", "t_star": 0.1, "steps": 20, "options": {"variance": "small"}},
    "threat": {"norm": "linf", "eps": "4/255"},
    "examples": {"count": 48},
    "draws": {"report": 16},
    "attacks": [{"name": "pgd", "options": {"iterations": 10, "eot": 4}}],
}
"""What is evaluated: three network calls, so that all of it takes minutes."""

ANALYSES: dict[str, Any] = {
    "eot": {"images": 16, "counts": [1, 2, 4, 8, 16], "iterations": 2, "draws": 4, "stride": 16},
    "compression": {"images": 16, "tapes": 1},
    "distances": {"images": 16, "tapes": 1},
}

WORDS = {
    "undefended": "classifier alone, attacked",
    "clean": "purified, no attack",
    "white_box": "white box",
    "dw_fwd": "DW_Fwd",
    "dw_rev": "DW_Rev",
    "dw_both": "DW_Both",
    "bpda": "BPDA",
    "bpda_known": "BPDA, noise known",
}
"""What a row is called in a chart."""

EXACT = {**WORDS, "white_box": "exact gradient", "dw_both": "exact gradient, noise known"}
"""The same where gradients are compared."""

VARIANCE = 0.01
"""Of the Gaussian data in the closed form, per direction, in [-1, 1] units."""


# ------------------------------------------------------------------ what is measured


def answers(run: RunDirectory, row: str) -> tuple[list[list[int]], list[int]]:
    """Returns what was predicted of every image of a row, draw by draw, and the labels.

    Only images that every row has count, so that a folder of an earlier run with more of them serves as well.
    """
    every = run.records()
    common = set.intersection(*({r["example"] for r in every if r["row"] == one} for one in WORDS))
    records = sorted(
        (r for r in every if r["row"] == row and r["example"] in common), key=lambda r: r["example"]
    )
    return [r["predicted"] for r in records], [r["label"] for r in records]


def accuracy(run: RunDirectory, row: str) -> Interval:
    """Returns the accuracy per draw of a row."""
    predicted, labels = answers(run, row)
    return share([p.count(y) / len(p) for p, y in zip(predicted, labels, strict=True)])


def bars(run: RunDirectory, words: dict[str, str], rows: Sequence[str], title: str, said: str) -> Chart:
    """Returns the accuracies of some rows as bars, under their names in ``words``."""
    found = [Series.of("accuracy", [words[row] for row in rows], [accuracy(run, row) for row in rows])]
    return Chart("bar", title, "", "accuracy per draw", found, said)


def estimands(run: RunDirectory) -> Chart:
    """Returns how majority and all_draws move with the number of draws, attacked and not."""
    counts, series = (1, 2, 4, 8, 16), []
    for row, who in (("clean", "no attack"), ("white_box", "white box")):
        predicted, labels = answers(run, row)
        for name, estimate in (("majority", majority), ("all_draws", all_draws)):
            found = [estimate([p[:n] for p in predicted], labels) for n in counts]
            ends = [e.low for e in found], [e.high for e in found]
            series.append(Series(f"{name}@R, {who}", counts, [e.value for e in found], *ends))
    said = "The share of images that are right on all draws falls with their number, attacked or not."
    return Chart(
        "line", "One run, four numbers", "draws R of each image", "share of images", series, said, x_log=True
    )


def widths() -> Chart:
    """Returns the width of the interval of an accuracy of 30 % by the number of images."""
    counts = (16, 32, 64, 128, 256, 512, 1024)
    found = [share([1.0] * round(0.3 * n) + [0.0] * (n - round(0.3 * n))) for n in counts]
    points = [(one.high - one.low) * 100 for one in found]
    said = "The 95 % interval of an accuracy near 30 %: 44 points wide with 16 images, 6 with 1,024."
    series = [Series("width of the 95 % interval", counts, points)]
    title = "How many images an accuracy of 30 % needs"
    return Chart("line", title, "images", "points from end to end", series, said, x_log=True)


def gain(sampler: str, steps: int, **options: Any) -> tuple[int, float]:
    """Returns network calls, and what is left of a displacement at fixed noise, for Gaussian data."""

    def exact(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = sigma.reshape(-1, *[1] * (x.ndim - 1)) if sigma.ndim else sigma
        return x * VARIANCE / (VARIANCE + level**2)

    purifier = Purifier(exact, sampler, t_star=0.1, steps=steps, options=options, clamp=False)
    noise, x = NoisePlan.of(0, [0]), torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    moved = purifier(x + 0.01, noise=noise) - purifier(x, noise=noise)
    return purifier.calls, float(moved.mean() / 0.01)


def closed_form() -> Chart:
    """Returns the gains of samplers on Gaussian data beside theta and its root."""
    steps = (10, 20, 50, 100, 200, 500, 1000)
    series = []
    for name, options in (("ddpm", {"clip": False}), ("ddim", {"clip": False})):
        found = [gain(name, s, **options) for s in steps]
        series.append(Series(f"{name}, measured", [c for c, _ in found], [g for _, g in found]))
    calls, level = series[0].x, float(discrete_levels(0.1, 1000)[0])
    theta = VARIANCE / (VARIANCE + level**2)  # the same as abar v / (abar v + 1 - abar)
    series.append(Series("theta: what one call leaves", calls, [theta] * len(calls)))
    series.append(Series("root of theta: an ODE of endless steps", calls, [theta**0.5] * len(calls)))
    said = (
        "On Gaussian data ddpm leaves theta of a displacement whatever its number of calls, and ddim more"
        " with every call, up to the root of theta."
    )
    title = "What is left of a displacement, Gaussian data"
    return Chart("line", title, "network calls", "||f(x + d) - f(x)|| / ||d||", series, said, x_log=True)


def rates(result: AnalysisResult) -> Chart:
    """Returns the compression rate by kind of direction."""
    words = {
        "gaussian x1": "Gaussian",
        "uniform x1": "uniform",
        "sign x1": "random signs",
        "pgd": "of the attack",
    }
    found = {n.name.removeprefix("compression rate, "): n for n in result.numbers}
    kinds = [k for k in words if k in found]
    ends = [found[k].low for k in kinds], [found[k].high for k in kinds]
    values = [Series("rate", [words[k] for k in kinds], [found[k].value for k in kinds], *ends)]
    said = "Random displacements shrink to a fifth or so, those of the attack hardly."
    return Chart("bar", "Compression rate by direction", "", "||f(x + d) - f(x)|| / ||d||", values, said)


def measured(place: Path) -> dict[str, Chart]:
    """Returns every chart, from runs in a folder that are continued where they stopped."""
    spec = EvaluationSpec.model_validate(SPEC)
    evaluate(spec, place)
    found = {result.name: result for result in analyse(spec, place, ANALYSES)}
    run = RunDirectory(place)
    knowledge = ("clean", "white_box", "dw_fwd", "dw_rev", "dw_both")
    gradient = ("bpda", "white_box", "bpda_known", "dw_both")
    said = "What is left of the accuracy falls with what the attacker knows."
    told = "With BPDA's gradient the same defence looks far more robust than with the exact one."
    return {
        "knowledge": bars(run, WORDS, knowledge, "What the attacker knows", said),
        "bpda": bars(run, EXACT, gradient, "One defence, two gradients", told),
        "eot": next(c for c in found["eot"].charts if c.title.startswith("Cosine")),
        "estimands": estimands(run),
        "widths": widths(),
        "gaussian": closed_form(),
        "rates": rates(found["compression"]),
        "way": next(c for c in found["distances"].charts if c.title.startswith("L2")),
    }


# ------------------------------------------------------------------ what is drawn


def strip(images: Sequence[int] = (1, 11), draws: int = 3, enlarged: int = 3) -> bytes:
    """Returns images as PNG, a line each: clean, noised to t*, purified under several draws, and again.

    The last two columns are the same draw, once in a batch and once alone.
    """
    denoiser, _ = load_embedded()
    data = load_dataset("embedded").select(list(images))
    noise, chain = NoisePlan.of(0, data.ids), Purifier(denoiser, "ddpm", t_star=0.1, steps=100)
    with torch.no_grad():
        columns = [data.x(), make_purifier("noise_only", {"t_star": 0.1})(data.x(), noise=noise)]
        columns += [chain(data.x(), noise=noise.at(k)) for k in range(draws)]
        alone = [
            chain(data.x([b]), noise=noise.at(draws - 1).rows(slice(b, b + 1))) for b in range(len(images))
        ]
    columns.append(torch.cat(alone))
    table = torch.stack(columns, dim=1).clamp(0, 1).mul(255).round().byte()  # (B, columns, 3, 32, 32)
    big = table.repeat_interleave(enlarged, -1).repeat_interleave(enlarged, -2).permute(0, 3, 1, 4, 2)
    gap = np.full((*big.shape[:2], big.shape[2], 6, 3), 255, np.uint8)
    rows = np.concatenate([big.numpy(), gap], axis=3).reshape(big.shape[0], big.shape[1], -1, 3)
    space = np.full((rows.shape[0], 6, rows.shape[2], 3), 255, np.uint8)
    return png_bytes(np.concatenate([rows, space], axis=1).reshape(-1, rows.shape[2], 3))


def with_numbers(page: str, charts: dict[str, Chart]) -> str:
    """Returns a page in which every ``<!-- CHART: BAR -->n %`` has the height of that bar."""

    def height(found: re.Match[str]) -> str:
        series = charts[found[1]].series[0]
        return f"<!-- {found[1]}: {found[2]} -->{100 * series.y[list(series.x).index(found[2])]:.0f} %"

    return re.sub(r"<!-- (\w+): ([^>]+?) -->\S+ %", height, page)


def written(charts: dict[str, Chart]) -> None:
    """Writes every chart as PNG, and the numbers of the pages."""
    for path in (Path(__file__).parent / "concepts").glob("*.md"):
        path.write_text(with_numbers(path.read_text(encoding="utf-8"), charts), encoding="utf-8")
    for name, chart in charts.items():
        (IMAGES / f"concepts-{name}.png").write_bytes(draw(chart).png)
    (IMAGES / "concepts-draws.png").write_bytes(strip())


def as_json(charts: dict[str, Chart]) -> str:
    """Returns the data of all charts; numbers with four digits behind the point."""

    def plain(value: Any) -> Any:
        return round(float(value), 4)

    made = {
        k: {
            **c._asdict(),
            "series": [
                {
                    n: v if isinstance(v, str) else [e if isinstance(e, str) else plain(e) for e in v]
                    for n, v in s._asdict().items()
                }
                for s in c.series
            ],
        }
        for k, c in charts.items()
    }
    return json.dumps(made, indent=1) + "\n"


def from_json(text: str) -> dict[str, Chart]:
    """Reads what `as_json` made."""
    return {
        name: Chart(**{**chart, "series": [Series(**s) for s in chart["series"]]})
        for name, chart in json.loads(text).items()
    }


def main(arguments: Sequence[str]) -> None:
    """Measures and draws, or only draws."""
    if "--draw" not in arguments:
        with tempfile.TemporaryDirectory() as place:
            DATA.write_text(as_json(measured(Path(arguments[0] if arguments else place))), encoding="utf-8")
    written(from_json(DATA.read_text(encoding="utf-8")))


FIGURES: dict[str, Callable[..., Any]] = {"gaussian": closed_form, "widths": widths}
"""Those that take no network: a test makes them again."""

if __name__ == "__main__":
    main(sys.argv[1:])
