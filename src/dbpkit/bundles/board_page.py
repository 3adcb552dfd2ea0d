"""The board as one HTML page that needs nothing else, in the look of the report."""

from typing import Any

from dbpkit.bundles.board import Board, Group, Standing
from dbpkit.reporting.page import rendered
from dbpkit.reporting.tables import NOTHING, accuracy_cell, points
from dbpkit.results.charts import Chart, Series
from dbpkit.results.protocols import DEFAULT, recorded_protocol
from dbpkit.statistics.estimates import Estimate

MOST_PAIRS = 400
"""Pairs that the page shows; the JSON has all."""


def board_page(board: Board) -> str:
    """Returns the page."""
    groups = [_group(group) for group in board.groups]
    count = sum(len(group.standings) for group in board.groups)
    title = f"Board of {count} {'defence' if count == 1 else 'defences'}"
    return rendered("bundles/board.html", title=title, groups=groups, count=count)


def _group(group: Group) -> dict[str, Any]:
    """What the page shows of a group."""
    loud = [s for s in group.sentences if s.startswith("THE ATTACKS DIFFER. ")]
    protocol = recorded_protocol(group.standings[0].entry.summary.protocol)
    plain = protocol is None or group.standings[0].entry.summary.protocol == DEFAULT
    measured = "Accuracy per draw" if plain or protocol is None else protocol.title.capitalize()
    return {
        "title": group.title,
        "sentences": [s for s in group.sentences if s not in loud],
        "warning": loud[0].removeprefix("THE ATTACKS DIFFER. ") if loud else "",
        "measured": measured,
        "chart": _chart(group, measured),
        "lines": [_line(s) for s in group.standings],
        "faults": [
            {"letter": s.letter, "name": s.entry.name, "reasons": s.entry.faults}
            for s in group.standings
            if s.entry.faults
        ],
        "pairs": _pairs(group),
    }


def _chart(group: Group, measured: str) -> Any:
    """Accuracy and DW_Both of every defence as bars with intervals; None where nothing was attacked."""
    from dbpkit.reporting.figures.charts import draw

    shown = [(s, s.accuracy) for s in group.standings if s.accuracy is not None]
    if not shown:
        return None
    known = [(s, e) for s, _ in shown if (e := s.entry.estimate("dw_both"))]
    series = [_series("white box", shown), *([_series("DW_Both", known)] if len(known) == len(shown) else [])]
    said = f"{measured} under attack, with 95 % intervals over images."
    return draw(Chart("bar", group.title, "", measured, series, said))


def _series(name: str, shown: list[tuple[Standing, Estimate]]) -> Series:
    """One bar for each defence."""
    names, found = [f"{s.letter}{_mark(s)}" for s, _ in shown], [e for _, e in shown]
    return Series(name, names, [e.value for e in found], [e.low for e in found], [e.high for e in found])


def _mark(standing: Standing) -> str:
    """What a chart must not leave out of a defence."""
    return " (not ranked)" if standing.rank is None else " (weaker attack)" if standing.weaker else ""


def _line(standing: Standing) -> dict[str, Any]:
    """A row of the table."""
    told, entry = standing.as_json(), standing.entry
    row, rank, calls = entry.row, standing.rank, told["network_calls"]
    attacker = entry.estimate(row.name, "all_draws") if row else None
    accuracy = standing.accuracy
    return {
        "letter": standing.letter,
        "name": entry.name,
        "source": entry.source,
        "rank": str(rank) if rank else NOTHING,
        "rank_sort": rank.worst * 1000 + rank.best if rank else "",
        "accuracy": _cell(accuracy),
        "dw_both": _cell(entry.estimate("dw_both")),
        "clean": _cell(entry.estimate("clean")),
        "noise_control": _cell(entry.estimate("noise_control")),
        "all_draws": _cell(attacker),
        "clean_all_draws": _cell(entry.estimate("clean", "all_draws")),
        "examples": accuracy.examples if accuracy else 0,
        "draws": accuracy.draws if accuracy else 0,
        "attack": str(standing.strength),
        "weaker": "; ".join(f"{k} ({', '.join(why)})" for k, why in standing.weaker.items()),
        "calls": NOTHING if calls is None else f"{calls:,.0f}",
        "calls_sort": "" if calls is None else repr(calls),
        "flags": ", ".join(told["flags"]) or "none",
    }


def _cell(estimate: Estimate | None) -> dict[str, str] | None:
    """An accuracy as text."""
    if estimate is None:
        return None
    cell = accuracy_cell(estimate)
    return {"value": cell.value, "interval": cell.interval, "sort": repr(cell.share)}


def _pairs(group: Group) -> list[dict[str, Any]]:
    """The differences of all pairs."""
    better = {(s.letter, other) for s in group.standings for other in s.better_than}
    found = []
    for (a, b), difference in list(group.differences.items())[:MOST_PAIRS]:
        apart = a if (a, b) in better else b if (b, a) in better else ""
        hidden = not apart and not difference.low <= 0 <= difference.high
        verdict = f"{apart} is better" if apart else "no: the attack of one is weaker" if hidden else "no"
        found.append(
            {
                "names": f"{a} − {b}",
                "value": points(difference.value),
                "sort": repr(difference.value),
                "interval": f"{points(difference.low)} to {points(difference.high)}",
                "examples": difference.examples,
                "verdict": verdict,
                "method": difference.method,
            }
        )
    return found
