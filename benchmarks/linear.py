"""Whether time is linear in examples, draws and network calls, over a factor of 16."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.subjects import subject
from benchmarks.timing import in_turn, spread
from dbpkit import PurifiedClassifier
from dbpkit.attacks import Target

FACTORS = (1, 2, 4, 8, 16)
EXAMPLES, CALLS = 2, 6
"""What there is once: images, and network calls of a purification."""


def gradient(name: str, times: str, factor: int) -> Callable[[], object]:
    """The attack's gradient, two rows at a time, with ``factor`` times as much of one thing."""
    much = {"examples": EXAMPLES, "draws": 1, "network calls": CALLS}
    much[times] *= factor
    one = subject(name, much["examples"])
    purifier = one.purifier(much["network calls"], 0, sampler="ddim")
    target = Target(PurifiedClassifier(purifier, one.classifier), EXAMPLES)
    return lambda: target.gradient(one.x, one.y, noise=one.noise, eot=much["draws"]).grad


def fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The exponent p of y = c x^p by least squares of logarithms, and the line y = a + b x by those of y / x.

    The line's intercept is given as a share of the smallest y.
    """

    def slope(u: Sequence[float], v: Sequence[float]) -> tuple[float, float]:
        mu, mv = sum(u) / len(u), sum(v) / len(v)
        b = sum((p - mu) * (q - mv) for p, q in zip(u, v, strict=True)) / sum((p - mu) ** 2 for p in u)
        return b, mv - b * mu

    exponent, _ = slope([math.log(v) for v in x], [math.log(v) for v in y])
    # weights 1 / x^2, since the times' errors grow with them: y / x = a (1 / x) + b
    a, b = slope([1 / v for v in x], [q / p for p, q in zip(x, y, strict=True)])
    return {"exponent": exponent, "seconds a unit": b, "intercept over smallest": a / y[0]}


def measured(name: str, rounds: int, factors: Sequence[int] = FACTORS) -> dict[str, Any]:
    """Rows by what there is more of, with seconds at every factor and the fits."""
    rows = []
    for times in ("examples", "draws", "network calls"):
        ways = {str(f): gradient(name, times, f) for f in factors}
        taken = in_turn(ways, rounds, warm=0 if rows else 1)
        middle = {f: spread(seconds) for f, seconds in taken.items()}
        found = fit(list(factors), [m["median"] for m in middle.values()])
        rows.append(
            {
                "network": name,
                "more": times,
                **{f"{f} x, s": m for f, m in middle.items()},
                f"{factors[-1]} x over 1 x": middle[str(factors[-1])]["median"] / middle["1"]["median"],
                "exponent": found["exponent"],
                "intercept over smallest": found["intercept over smallest"],
                "seconds": taken,
            }
        )
    return {"rows": rows}


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """The figure as SVG: seconds over the factor, both logarithmic, and the lines of exponent 1."""
    import io

    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        points = {float(k.split()[0]): v for k, v in row.items() if k.endswith(" x, s")}
        factors, middle = list(points), [v["median"] for v in points.values()]
        (line,) = axes.plot(factors, [f * middle[0] for f in factors], linewidth=0.8, linestyle="--")
        low = [v["median"] - v["low"] for v in points.values()]
        high = [v["high"] - v["median"] for v in points.values()]
        label = f"{row['more']}: exponent {row['exponent']:.3f}"
        axes.errorbar(factors, middle, (low, high), fmt="o", color=line.get_color(), label=label)
    axes.set(xscale="log", yscale="log", xlabel="times as many", ylabel="seconds of one gradient")
    axes.set_xticks(factors, [f"{f:g}" for f in factors])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
