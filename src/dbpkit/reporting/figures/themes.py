"""Colours, fonts and markers of every figure, for light and for dark pages."""

from typing import NamedTuple

from dbpkit.results.kinds import PURIFIED, PURIFIED_ATTACKED

FONT = 10.0
"""Points, of all charts of analyses."""

MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"))
"""Marker of series 0, 1, ... in a figure, and the sign for it in a legend."""

DASHES = ("-", "--", ":", "-.")
"""Lines whose colours begin anew have the next of these."""


class Theme(NamedTuple):
    """Colours of a chart: Okabe and Ito's palette, which colour-blind readers can tell apart.

    Attributes:
        text: what must be read.
        muted: labels, ticks and headings.
        line: the grid.
        plain: bars of a group without a colour of its own.
        groups: colour of the bars under a heading.
        runs: colours of run, model or series 0, 1, ...; they begin anew after the last.

    Source:
        Okabe & Ito 2008, Color Universal Design.
    """

    text: str
    muted: str
    line: str
    plain: str
    groups: dict[str, str]
    runs: tuple[str, ...]

    def ink(self, number: int) -> str:
        """Returns the colour of a run, model or series."""
        return self.runs[number % len(self.runs)]


LIGHT = Theme(
    text="#1b1f24",
    muted="#5a636e",
    line="#dfe3e8",
    plain="#8b949e",
    groups={PURIFIED: "#56B4E9", PURIFIED_ATTACKED: "#E69F00"},
    runs=("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00"),
)
DARK = Theme(
    text="#e8ebef",
    muted="#a2acb8",
    line="#333b45",
    plain="#6e7884",
    groups={PURIFIED: "#0072B2", PURIFIED_ATTACKED: "#D55E00"},
    runs=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
)

PALETTE = list(zip(LIGHT.runs, DARK.runs, strict=True))
"""Colours of run or model 0, 1, ... on light and dark pages; they begin anew after the last."""
