"""Protocols by name: which estimate of a row is its headline, and what it comes to without an attack.

Each is a function of one record: 1 where the defence held, 0 where it did not. The thing people get wrong:
the more queries a protocol allows, the lower any random defence scores, attacked or not. So every protocol
but the first stands beside its control: the unattacked image at the same number of queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.registry import Registry
from dbpkit.results.columns import Floats, RowColumns
from dbpkit.results.flags import Flag
from dbpkit.results.kinds import ATTACKED, kind_of
from dbpkit.results.records import Record
from dbpkit.statistics.estimates import Estimate, mean_accuracy, vote

DEFAULT = "one_shot"
"""Protocol of a spec that names none."""


@dataclass(frozen=True)
class Protocol:
    """How often an attacked image may be submitted, and when the defence has held.

    Attributes:
        held: share in [0, 1] of one record that counts as right.
        estimand: name of the estimate.
        title: the same for people.
        has_control: whether it is shown next to the unattacked image at the same number of queries.
        judges_iterates: whether every iterate of the attack is judged while it runs.
        averages: what is averaged over draws before a class is taken and recorded, ``"logits"`` or
            ``"softmax"``; empty for nothing.
        at_once: ``held`` of all records of a row, (n,), from their columns; None where it takes each record.
    """

    held: Callable[[Record], float]
    estimand: str
    title: str
    has_control: bool = True
    judges_iterates: bool = False
    averages: Literal["", "logits", "softmax"] = ""
    at_once: Callable[[RowColumns], Floats] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.held.__doc__)  # `dbpkit list` shows the function's


class Headline(NamedTuple):
    """The number that a protocol publishes of a row.

    Attributes:
        estimate: of the attacked images.
        control: the same of unattacked images at the same number of queries; None where there is none.
    """

    estimate: Estimate
    control: Estimate | None


protocols: Registry[Protocol] = Registry("protocol")


def one_shot(record: Record) -> float:
    """One query of the final image, averaged over the report draws (per_draw)."""
    return float(record["predicted"].count(record["label"]) / len(record["predicted"]))


def worst_of_n(record: Record) -> float:
    """N queries of the final image; one wrong answer breaks it (all_draws@N, N = draws.report).

    Source:
        Wang et al. 2024, DiffHammer (N-evaluation, N = 10).
    """
    return float(record["predicted"].count(record["label"]) == len(record["predicted"]))


def majority_vote(record: Record) -> float:
    """A vote over N queries of the final image, N = draws.report; a tie counts against the defence.

    Source:
        Kassis et al. 2025, DiffBreak (arXiv:2411.16598), majority vote.
    """
    return float(vote(record["predicted"], record["label"]))


def while_optimising(record: Record) -> float:
    """Each iterate of the attack is submitted draws.report times; one wrong answer breaks it (any_iterate@N).

    Unattacked images fall too, the faster the more queries there are: read it beside its control only.

    Source:
        Kassis et al. 2025, DiffBreak (arXiv:2411.16598), worst-case robustness, checked at every step.
    """
    return float(record["failed_at"] is None) if "queries" in record else worst_of_n(record)


def mean_logits(record: Record) -> float:
    """One answer of an ensemble: the class of the mean of the logits of N draws, N = draws.report.

    Source:
        Du, Hill & Cai 2026, MEFA (arXiv:2605.06357), validation by replicates.
    """
    return _of_mean(record)


def mean_softmax(record: Record) -> float:
    """One answer of an ensemble: the class of the mean of the probabilities of N draws, N = draws.report."""
    return _of_mean(record)


protocols.register("one_shot")(
    Protocol(one_shot, "per_draw", "accuracy per draw", has_control=False, at_once=lambda group: group.right)
)
protocols.register("worst_of_n")(Protocol(worst_of_n, "all_draws", "right on all N draws"))
protocols.register("majority")(Protocol(majority_vote, "majority", "majority of N draws"))
protocols.register("mean_logits")(
    Protocol(mean_logits, "mean_logits", "class of the mean logits of N draws", averages="logits")
)
protocols.register("mean_softmax")(
    Protocol(mean_softmax, "mean_softmax", "class of the mean softmax of N draws", averages="softmax")
)
protocols.register("while_optimising")(
    Protocol(while_optimising, "any_iterate", "right at every iterate", judges_iterates=True)
)


def chosen_protocol(name: str) -> Protocol:
    """Returns the protocol that the user's spec names, by registered name or import path.

    Raises:
        UserError: if there is none, or something else is at the import path.
    """
    found = protocols.resolve(name)
    if not isinstance(found, Protocol):
        raise UserError(
            f"protocol '{name}' must be a dbpkit.results.protocols.Protocol, not {type(found).__name__}."
        )
    return found


def recorded_protocol(name: str) -> Protocol | None:
    """Returns the protocol that a run names, or None for one of its user's own: a run is read, not obeyed."""
    if ":" not in name:
        return protocols.get(name)
    try:
        found: object = protocols.get(name)
    except UserError:
        return None
    return found if isinstance(found, Protocol) else None


def own_protocol(name: str) -> list[Flag]:
    """Flags a run whose protocol is its user's own and has not been named by whoever reads the run."""
    if recorded_protocol(name) is not None:
        return []
    message = (
        f"The run's protocol '{excerpt(name)}' is an import path, and those of a run are not followed: the"
        f" headline is that of '{DEFAULT}'. If you trust it, add --plugin {excerpt(name)}."
    )
    return [Flag("own_protocol", "warning", message)]


def headline(protocol: Protocol, row: str, records: Sequence[Record], clean: Sequence[Record]) -> Headline:
    """Computes the headline of a row and its control.

    A row with several tapes has one attacked image per tape; the results of an example are averaged.

    Args:
        protocol: see `protocols`.
        row: name of the row.
        records: its records, without failed ones.
        clean: those of the same model on clean images.
    """
    controls = _controls(protocol, row, records, clean)
    complete = controls if len(controls) == len(records) else []
    return Headline(_estimate(protocol, records), _estimate(protocol, complete) if complete else None)


def quick_headline(protocol: Protocol, group: RowColumns) -> Headline | None:
    """Computes the same from columns; None where the protocol has a control or must see each record."""
    if protocol.at_once is None or protocol.has_control:
        return None
    _, first, where = np.unique(group.example, return_index=True, return_inverse=True)
    held = np.bincount(where, protocol.at_once(group)) / np.bincount(where)
    most = int(group.draws.max())
    name = protocol.estimand if protocol.estimand == "per_draw" else f"{protocol.estimand}@{most}"
    return Headline(mean_accuracy(name, held[np.argsort(first)].tolist(), most), None)


def protocol_flags(
    protocol: Protocol, row: str, records: Sequence[Record], clean: Sequence[Record]
) -> list[Flag]:
    """Flags a headline that its control nearly reaches: the protocol, not the attack, makes it low."""
    controls = _controls(protocol, row, records, clean)
    if not controls:
        return []
    unattacked = _held(protocol, controls)
    attacked, once = _held(protocol, records), _held(protocols.get(DEFAULT), clean)
    shared = unattacked.keys() & attacked.keys() & once.keys()
    means = [sum(scores[i] for i in shared) / len(shared) for scores in (once, unattacked, attacked)]
    by_protocol, fall = means[0] - means[1], means[0] - means[2]
    if by_protocol <= 0 or by_protocol < fall / 2:
        return []
    message = (
        f"Of the attacked images {means[2]:.1%} hold ({protocol.title}), of unattacked ones {means[1]:.1%} at"
        f" the same number of queries; one query of a clean image is right in {means[0]:.1%}. At least half"
        " of the fall belongs to the protocol, not to the attack."
    )
    return [Flag("control_as_low", "warning", message, row)]


def queries(record: Record) -> int:
    """How often the defence was asked about the attacked image or its iterates."""
    return int(record.get("queries", len(record["predicted"])))


def _controls(
    protocol: Protocol, row: str, records: Sequence[Record], clean: Sequence[Record]
) -> list[Record]:
    """For every record the unattacked image at as many queries; fewer where there are not enough draws."""
    if not protocol.has_control or kind_of(row).images != ATTACKED:
        return []
    by_example = {r["example"]: r for r in clean}
    found = (_control(protocol, r, by_example.get(r["example"])) for r in records)
    return [control for control in found if control is not None]


def _control(protocol: Protocol, record: Record, clean: Record | None) -> Record | None:
    """The control of one record: judged while the attack ran, or as many report draws of the clean image.

    Tape t of a row that knows all noise is report draw t, so the draws that match it are taken.
    """
    if protocol.judges_iterates and "queries" in record:
        return {**record, "failed_at": record["control_failed_at"]}
    if clean is None:
        return None
    count, draws = len(record["predicted"]), clean["predicted"]
    first = record["tape"] * count if (record["tape"] + 1) * count <= len(draws) else 0
    if count > len(draws) or (protocol.averages and count not in (1, len(draws))):
        return None
    return {**clean, "predicted": draws[first : first + count]}


def _of_mean(record: Record) -> float:
    """Whether the mean of all draws has the label's class; of one draw it is the draw."""
    if len(record["predicted"]) == 1:
        return float(record["predicted"][0] == record["label"])
    if "ensembles" not in record:
        raise UserError(
            f"example {record['example']} of row '{record['row']}' has no class of averaged draws, which the"
            " protocol counts. Delete its record and run again."
        )
    return float(record["ensembles"][-1] == record["label"])


def _estimate(protocol: Protocol, records: Sequence[Record]) -> Estimate:
    most = max(queries(r) if protocol.judges_iterates else len(r["predicted"]) for r in records)
    name = protocol.estimand if protocol.estimand == "per_draw" else f"{protocol.estimand}@{most}"
    return mean_accuracy(name, list(_held(protocol, records).values()), most)


def _held(protocol: Protocol, records: Sequence[Record]) -> dict[int, float]:
    """Share that held by example, its tapes averaged."""
    tapes: dict[int, list[float]] = {}
    for r in records:
        tapes.setdefault(r["example"], []).append(protocol.held(r))
    return {example: sum(held) / len(held) for example, held in tapes.items()}
