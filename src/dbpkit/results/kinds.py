"""The kinds of rows a run has, one line each: whose answers they count, on which images, under which title.

Every run has the rows of `BASELINE_ROWS`; the others are attackers, and a spec may name attackers of its own.
"""

from typing import NamedTuple

CLEAN, NOISY, ATTACKED = "clean", "noisy", "attacked"
"""Images of a row: as they are, under random noise of the full budget, or attacked by an attacker."""

PURIFIED, PURIFIED_ATTACKED, ALONE = "Purified, no attack", "Purified, attacked", "Classifier alone"
"""Headings in tables."""

NO_DENOISER = "none"
"""Name of the denoiser in the spec of a run on a classifier without a purifier."""


class RowKind(NamedTuple):
    """One kind of row.

    Attributes:
        name: as in records, ``white_box``.
        title: what it is called in tables.
        heading: above it in tables.
        images: ``"clean"``, ``"noisy"`` or ``"attacked"``.
        attacker: row whose attack made the images; empty where no attack did.
        needs_purifier: whether a run without a purifier has no such row.
        is_baseline: whether every run has it, whatever its spec names.
        control: row of the same model on clean images.
        who: whose answers are counted, as the subject of a sentence.
    """

    name: str
    title: str
    heading: str = PURIFIED_ATTACKED
    images: str = ATTACKED
    attacker: str = ""
    needs_purifier: bool = False
    is_baseline: bool = False
    control: str = "clean"
    who: str = "The model"

    @property
    def runs_attack(self) -> bool:
        """Whether an attack was run for this row, so that its records say how that went."""
        return self.attacker == self.name

    @property
    def is_undefended(self) -> bool:
        """Whether the classifier without its purifier answers."""
        return self.heading == ALONE

    def title_in(self, purified: bool) -> str:
        """Returns the title in a run with or without a purifier."""
        return self.title if purified else self.title.removeprefix("purified, ")

    def heading_in(self, purified: bool) -> str:
        """Returns the heading in a run with or without a purifier."""
        return self.heading if purified else self.heading.removeprefix("Purified, ").capitalize()


def _alone(name: str, title: str, images: str, attacker: str = "") -> RowKind:
    """A row of the classifier without its purifier."""
    control, who = "undefended_clean", "The classifier alone"
    return RowKind(name, title, ALONE, images, attacker, True, True, control, who)


def _unattacked(name: str, title: str, images: str) -> RowKind:
    """A row of the purified classifier that no attack made."""
    return RowKind(name, title, PURIFIED, images, is_baseline=True)


def _attacker(name: str, title: str) -> RowKind:
    """An attacker of the purified classifier."""
    return RowKind(name, f"purified, {title}", attacker=name)


UNDEFENDED_CLEAN = _alone("undefended_clean", "undefended, clean", CLEAN)
UNDEFENDED = _alone("undefended", "undefended, attacked", ATTACKED, "undefended")
UNATTACKED = _unattacked("clean", "purified, clean", CLEAN)
NOISE_CONTROL = _unattacked("noise_control", "purified, random noise of the same size", NOISY)
TRANSFER = RowKind(
    "transfer",
    "purified, attack on the undefended classifier",
    attacker=UNDEFENDED.name,
    needs_purifier=True,
    is_baseline=True,
)

KINDS = {
    kind.name: kind
    for kind in (
        UNDEFENDED_CLEAN,
        UNDEFENDED,
        UNATTACKED,
        NOISE_CONTROL,
        TRANSFER,
        _attacker("white_box", "white box (EoT)"),
        _attacker("dw_fwd", "DW_Fwd (forward noise known)"),
        _attacker("dw_rev", "DW_Rev (reverse noise known)"),
        _attacker("dw_both", "DW_Both (all noise known)"),
        _attacker("fixed", "fixed randomness"),
        _attacker("bpda", "BPDA (inexact gradient)"),
        _attacker("surrogate", "surrogate (inexact gradient)"),
        _attacker("blind", "attacker unaware of it"),
        _attacker("other_tape", "attack made on another tape"),
        _attacker("unsquashed", "values before the head attacked"),
    )
}
"""Kinds of rows by name, in the order of the table."""

BASELINE_ROWS = tuple(kind.name for kind in KINDS.values() if kind.is_baseline)
"""Rows of every run, whoever attacks."""


DIFFERENCES = {
    ("white_box", "dw_both"): "robustness that rests on noise the attacker cannot foresee, at most",
    ("white_box", "fixed"): "the same, against purification with fixed noise",
    ("clean", "white_box"): "what the white-box attack takes away",
}
"""Rows whose difference is shown, and what it says."""


def kind_of(name: str) -> RowKind:
    """Returns the kind of a row; a name that is not in the table is an attacker of the spec's own.

    Example:
        >>> kind_of("noise_control").images, kind_of("mine").title
        ('noisy', 'purified, mine')
    """
    return KINDS.get(name) or _attacker(name, name)


def baseline_rows(purified: bool) -> tuple[str, ...]:
    """Returns the rows of every run with or without a purifier."""
    return tuple(name for name in BASELINE_ROWS if purified or not KINDS[name].needs_purifier)
