"""Whether a model classifies at all: one answer to everything, guessing, or another order of the classes.

One answer per image is counted, its first draw, so that the counts are binomial. Few images prove nothing
about an accuracy, so those flags need a test that bad luck passes in at most 1 %. That a model never changes
its answer shows on few images, over all draws.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from dbpkit.results.flags import Flag
from dbpkit.results.kinds import CLEAN, KINDS
from dbpkit.results.records import Record
from dbpkit.statistics.binomial import at_most

LEVEL = 0.01
"""Probability with which a model at least as good as stated below is flagged by bad luck."""

SKILL = 0.25
"""A model has this much skill if it closes a quarter of the gap between guessing and perfection."""

MOST = 0.5
"""Share of the images that another order of the classes must explain to be named."""

FEWEST = 4
"""Images from which on one answer to all of them is worth a warning."""

JUDGED = tuple(kind for kind in KINDS.values() if kind.images == CLEAN)
"""Rows whose answers are looked at."""


class Answer(NamedTuple):
    """One image: its label and what the model said."""

    label: int
    predicted: int


def chance_flags(rows: Mapping[str, Sequence[Record]]) -> list[Flag]:
    """Returns the flags of the unattacked rows, from their records without errors."""
    flags: list[Flag] = []
    for row, who in ((kind.name, kind.who) for kind in JUDGED):
        answers = [Answer(r["label"], r["predicted"][0]) for r in rows.get(row, []) if r["tape"] == 0]
        permuted = [] if any(f.name == "labels_permuted" for f in flags) else labels_permuted(answers, row)
        flags += permuted or near_chance(answers, row, who)
        labels = [r["label"] for r in rows.get(row, []) if r["tape"] == 0]
        flags += one_class(labels, {said for r in rows.get(row, []) for said in r["predicted"]}, row, who)
    return flags


def one_class(
    labels: Sequence[int], predicted: Collection[int], row: str = "", who: str = "The model"
) -> list[Flag]:
    """Flags a model that gives the same class for every image, in every draw, although the labels differ.

    A model that is right on one image each of two labels is never flagged.

    Args:
        labels: one for each image; fewer than 4 show nothing.
        predicted: every class that was answered, in any draw of any image.
        row: row of the table.
        who: subject of the sentence.
    """
    classes, said = set(labels), set(predicted)
    if len(labels) < FEWEST or len(classes) < 2 or len(said) != 1:
        return []
    (answer,) = said
    message = (
        f"{who} answers class {answer} for each of {len(labels)} unattacked images, whose labels are of"
        f" {len(classes)} classes: it does not look at them, and its accuracy is the share of that label."
    )
    return [Flag("one_class", "warning", message, row)]


def near_chance(answers: Sequence[Answer], row: str = "", who: str = "The model") -> list[Flag]:
    """Flags answers that guessing explains and that a model of little skill would hardly give.

    Guessing is right with the share of the most frequent label. Raised if the count is not significantly
    above that (binomial test, 1 %) and significantly below what a model of accuracy 1/K + (1 - 1/K) / 4
    reaches (the same), with K the number of labels that occur.

    Args:
        answers: one for each image.
        row: row of the table.
        who: subject of the sentence.
    """
    if not answers:
        return []
    right, count = sum(a.label == a.predicted for a in answers), len(answers)
    labels = Counter(a.label for a in answers)
    guessing = max(labels.values()) / count
    skilled = 1 / len(labels) + SKILL * (1 - 1 / len(labels))
    above = 1 - at_most(right - 1, count, guessing)
    if above <= LEVEL or at_most(right, count, skilled) > LEVEL:
        return []
    message = (
        f"{who} is right on {right} of {count} unattacked images ({right / count:.1%}); always guessing the"
        f" most frequent label is right on {guessing:.1%}. Labels, classes, pixel range or models do not"
        " belong together."
    )
    return [Flag("near_chance", "error", message, row)]


def labels_permuted(answers: Sequence[Answer], row: str = "") -> list[Flag]:
    """Flags labels that the answers fit much better under another order of the classes.

    Of each half of the images it is learned which label goes with which answer, if each is the other's most
    frequent one, and this order is counted on the other half. Raised if it is right on more than half of all
    images, more often than guessing is, and where the labels as they are differ it wins (sign test), both
    with at most 1 % by luck.

    Args:
        answers: one for each image.
        row: row of the table.
    """
    halves = _halves(answers)
    explained = [
        a.label == order.get(a.predicted)
        for learned, judged in (halves, halves[::-1])
        for order in (_order(learned),)
        for a in judged
    ]
    right = [a.label == a.predicted for judged in halves[::-1] for a in judged]
    won = sum(e and not r for e, r in zip(explained, right, strict=True))
    lost = sum(r and not e for e, r in zip(explained, right, strict=True))
    count, fitting = len(answers), sum(explained)
    if not won or fitting <= MOST * count or at_most(lost, won + lost, 0.5) > LEVEL:
        return []
    guessing = max(Counter(a.label for a in answers).values()) / count
    if 1 - at_most(fitting - 1, count, guessing) > LEVEL:
        return []
    order = _order(answers)
    moved = {said: label for said, label in order.items() if said != label}
    shifts = {label - said for said, label in moved.items()}
    shown = ", ".join(f"{said} for label {label}" for said, label in sorted(moved.items())[:4])
    how = f"label k + {shifts.pop()}" if len(shifts) == 1 and len(moved) > 1 else f"another label: {shown}"
    message = (
        f"The answers fit the labels on {fitting / count:.1%} of the unattacked images if class k of the"
        f" model stands for {how}; as they are, on {sum(right) / count:.1%}. The classes of data and"
        " classifier have another order."
    )
    return [Flag("labels_permuted", "error", message.replace("k + -", "k - "), row)]


def _halves(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """Every second image of each label, and the others."""
    seen: Counter[int] = Counter()
    halves: tuple[list[Answer], list[Answer]] = ([], [])
    for answer in answers:
        halves[seen[answer.label] % 2].append(answer)
        seen[answer.label] += 1
    return halves


def _order(answers: Sequence[Answer]) -> dict[int, int]:
    """The label of each answer, where each is the other's most frequent one without a tie."""
    pairs = Counter((a.predicted, a.label) for a in answers)
    by_said: dict[int, list[int]] = {}
    by_label: dict[int, list[int]] = {}
    for (said, label), number in pairs.items():
        by_said.setdefault(said, []).append(number)
        by_label.setdefault(label, []).append(number)
    return {
        said: label
        for (said, label), number in pairs.items()
        if _is_alone_at_top(number, by_said[said]) and _is_alone_at_top(number, by_label[label])
    }


def _is_alone_at_top(number: int, numbers: Sequence[int]) -> bool:
    return number == max(numbers) and numbers.count(number) == 1
