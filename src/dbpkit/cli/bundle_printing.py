"""What ``bundle``, ``verify`` and ``board`` print: JSON for programs, or text for people."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from dbpkit.foundation import console

if TYPE_CHECKING:
    from dbpkit.bundles.board import Board, Group
    from dbpkit.bundles.found import RowFound
    from dbpkit.bundles.packing import Bundled
    from dbpkit.bundles.verdict import Verification


def bundled(found: "Bundled", as_json: bool) -> None:
    """The file that was written, what it claims, and which names remain in it."""
    if as_json:
        console.as_json(found.as_json())
        return
    manifest = found.manifest
    console.say(
        f"{found.path}: {found.bytes:,} bytes, {len(manifest.members)} files of '{manifest.name}'", whole=True
    )
    console.say(f"sha256 {found.sha256}", whole=True)
    if manifest.unfinished:
        console.say(f"UNFINISHED, and the bundle says so. {manifest.unfinished}", "yellow")
    names = manifest.names
    for what, own in (
        ("Import paths in the spec, which nobody follows unasked", names.code),
        ("Paths that the spec names", names.paths),
        ("Paths of a machine outside the spec (messages of errors and checks)", names.elsewhere),
    ):
        if own:
            console.say(f"{what}: {', '.join(own)}.")
    if not (names.code or names.paths or names.elsewhere):
        console.say("It names no path and no module of yours.")


def verified(found: "Verification", as_json: bool) -> None:
    """The verdict, why, and what was counted."""
    if as_json:
        console.as_json(found.as_json())
        return
    judged, total = found.examples
    if found.rows:
        console.show(_rows(found.rows))
    if found.budget:
        console.say(
            f"Budget: {found.budget.images} attacked images, the largest perturbation"
            f" {found.budget.largest:.5g}, eps {found.budget.eps:.5g}."
        )
    for one in found.hashes:
        other = f"another: recorded {one.recorded[:12] or 'nothing'}, yours {one.found[:12]}"
        same = "equal" if one.equal else other
        console.say(f"Hash of {one.part}: {same}.")
    if luck := found.luck:
        console.say(
            f"Fresh draws (seed {luck.seed}): {luck.recorded.value:.1%} right on the draws of the run,"
            f" {luck.fresh.value:.1%} on {luck.draws} fresh ones of each image, p = {luck.p_value:.3g}."
        )
    for leaf in found.changed:
        console.say(f"You set {leaf}", whole=True)
    for remark in found.remarks:
        console.say(remark, "yellow")
    console.say(f"'{found.name}' {found.verdict} ({judged} of {total} examples judged again).", "bold")
    for reason in found.reasons:
        console.say(reason)


def _rows(rows: "list[RowFound]") -> Table:
    """What was counted, a line for each row."""
    table = Table(box=None, pad_edge=False)
    for head in ("row", "recorded", "again", "predictions", "differ", "by rounding", "largest gap", ""):
        table.add_column(head, justify="left" if head in ("row", "") else "right")
    for row in rows:
        mark = "equal" if row.equal else "holds" if row.holds else "DIFFERS"
        table.add_row(
            row.title,
            f"{row.recorded.value:.1%} [{row.recorded.low:.1%}, {row.recorded.high:.1%}]",
            f"{row.again.value:.1%} [{row.again.low:.1%}, {row.again.high:.1%}]",
            f"{row.predictions:,}",
            f"{row.differ:,}",
            f"{row.near:,}",
            "" if row.gap is None else f"{row.gap:.2g}",
            mark,
        )
    return table


def ranked(found: "Board", as_json: bool) -> None:
    """The defences of each threat, and where the page lies."""
    if as_json:
        console.as_json(found.as_json())
        return
    for group in found.groups:
        console.say(group.title, "bold")
        console.show(_standings(group))
        for sentence in group.sentences:
            console.say(sentence, "yellow" if sentence.isupper() or sentence.startswith("THE ") else "")
        for standing in group.standings:
            for fault in standing.entry.faults:
                console.say(f"{standing.letter} is not ranked: {fault}")
        console.say()
    if found.page:
        console.say(f"Page: {found.page}", whole=True)
        console.say(f"Table: {found.table}", whole=True)


def _standings(group: "Group") -> Table:
    """A line for each defence."""
    table = Table(box=None, pad_edge=False)
    for head in ("", "rank", "defence", "accuracy", "DW_Both", "clean", "n", "R", "attack"):
        table.add_column(head, justify="right" if head in ("rank", "accuracy", "n", "R") else "left")
    for s in group.standings:
        beside = [s.entry.estimate(row) for row in ("dw_both", "clean")]
        own = s.accuracy
        table.add_row(
            s.letter,
            str(s.rank) if s.rank else "–",
            Text(s.entry.name),
            f"{own.value:.1%} [{own.low:.1%}, {own.high:.1%}]" if own else "–",
            *(f"{e.value:.1%}" if e else "–" for e in beside),
            str(own.examples) if own else "–",
            str(own.draws) if own else "–",
            Text(f"{s.strength}{' (weaker)' if s.weaker else ''}"),
        )
    return table
