"""How a verification and a board show themselves in notebooks, as `dbpkit.foundation.display` finds it."""

from typing import Any

from dbpkit.bundles.board import Board, Group
from dbpkit.bundles.verdict import STANDS, Verification
from dbpkit.foundation.display import Display, bundle_displays
from dbpkit.reporting.display import html_table
from dbpkit.reporting.tables import NOTHING, accuracy_cell
from dbpkit.statistics.estimates import Estimate


def _verification_html(found: Verification) -> str:
    judged, total = found.examples
    said = [f"The claim {found.verdict}: {judged} of {total} examples judged again."]
    if luck := found.luck:
        said.append(
            f"Fresh draws (seed {luck.seed}): {luck.recorded.value:.1%} right on the draws of the run,"
            f" {luck.fresh.value:.1%} on {luck.draws} fresh ones of each image, p = {luck.p_value:.3g}."
        )
    rows = [
        [
            row.title,
            _accuracy(row.recorded),
            _accuracy(row.again),
            f"{row.predictions:,}",
            f"{row.differ:,}",
            f"{row.near:,}",
            "equal" if row.equal else "holds" if row.holds else "differs",
        ]
        for row in found.rows
    ]
    heads = ["Row", "Recorded", "Judged again", "Predictions", "Differ", "By rounding", ""]
    notes = [("" if found.verdict == STANDS else "error", reason) for reason in found.reasons]
    notes += [("warning", remark) for remark in found.remarks]
    small = "Accuracies with 95 % intervals over images. Equal: every prediction is the recorded one."
    return html_table(found.name, said, heads, rows, notes, small if rows else "", (0, 6))


def _verification_rows(found: Verification) -> list[dict[str, Any]]:
    """One line for every row."""
    return [
        {
            "row": row.row,
            "title": row.title,
            **{f"recorded_{key}": getattr(row.recorded, key) for key in ("value", "low", "high")},
            **{f"again_{key}": getattr(row.again, key) for key in ("value", "low", "high")},
            **{key: getattr(row, key) for key in ("predictions", "differ", "near", "allowed", "unlike")},
            **{key: getattr(row, key) for key in ("gap", "equal", "holds")},
        }
        for row in found.rows
    ]


def _accuracy(found: Estimate | None) -> str:
    if found is None:
        return NOTHING
    cell = accuracy_cell(found)
    return f"{cell.value} ({cell.interval})" if cell.interval else cell.value


def _group_html(group: Group) -> str:
    heads = ["", "Rank", "Defence", "Accuracy", "DW_Both", "Clean", "Images (n)", "Attack"]
    rows = [
        [
            s.letter,
            str(s.rank) if s.rank else NOTHING,
            s.entry.name,
            _accuracy(s.accuracy),
            *(_accuracy(s.entry.estimate(row)) for row in ("dw_both", "clean")),
            str(s.accuracy.examples) if s.accuracy else NOTHING,
            f"{s.strength}{' (weaker)' if s.weaker else ''}",
        ]
        for s in group.standings
    ]
    loud = [said for said in group.sentences if said.startswith("THE ")]
    notes = [("warning", said) for said in loud]
    notes += [
        ("error", f"{s.letter} is not ranked: {fault}") for s in group.standings for fault in s.entry.faults
    ]
    plain = [said for said in group.sentences if said not in loud]
    small = "Ranks hold at once with 95 %. Accuracies with 95 % intervals over images."
    return html_table(group.title, plain, heads, rows, notes, small, (0, 2, 7))


def _board_rows(board: Board) -> list[dict[str, Any]]:
    """One line for every defence."""
    lines = []
    for group in board.groups:
        for s in group.standings:
            own, rank = s.accuracy, s.rank
            lines.append(
                {
                    "group": group.title,
                    "letter": s.letter,
                    "name": s.entry.name,
                    "best_rank": rank and rank.best,
                    "worst_rank": rank and rank.worst,
                    **{key: own and getattr(own, key) for key in ("value", "low", "high", "estimand")},
                    **{key: own and getattr(own, key) for key in ("examples", "draws")},
                    "attack": str(s.strength),
                    "weaker_than": ", ".join(s.weaker),
                    "faults": " ".join(s.entry.faults),
                }
            )
    return lines


bundle_displays.register("Verification")(Display(_verification_html, _verification_rows))
bundle_displays.register("Board")(Display(lambda found: "".join(map(_group_html, found.groups)), _board_rows))
