"""The report page: one HTML file that needs nothing else, for one run or several.

Names of runs, rows and classes come from users; the template escapes all of them. Other pages extend the same
``templates/base.html``: its style, its policy and its script.
"""

import base64
import functools
import hashlib
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import PAGE, check_folder, check_place, write_atomically
from dbpkit.foundation.locking import refuse_link
from dbpkit.reporting.analyses import AnalysisView, analysis_views, found_view
from dbpkit.reporting.comparison import ShownRun, compare_shown
from dbpkit.reporting.figures import GAIN, ResponsiveChart, accuracy_chart, chart_csv
from dbpkit.reporting.figures.engine import data_uri
from dbpkit.reporting.run_view import run_view
from dbpkit.results.analysis import Chart
from dbpkit.results.run_directory import RunDirectory


class Live(NamedTuple):
    """A run that goes on while its page is read.

    Attributes:
        seconds: after which the page loads itself again.
        share: of the work that is done, in [0, 1].
        what: is being done.
    """

    seconds: int
    share: float
    what: str


def write_report(
    runs: Sequence[str | Path | RunDirectory], out: Path | None = None, *, live: Live | None = None
) -> Path:
    """Writes one page about one run or several, finished or not, and its figures as PNG and CSV.

    The figures lie beside the page, in ``figures`` beside a ``report.html`` and else in ``STEM-figures``.

    Args:
        runs: run directories; the first is the one the others are compared with.
        out: the HTML file; ``report.html`` in the first run if not given.
        live: makes the page load itself again, while the run goes on.

    Returns:
        The path of the HTML file.

    Raises:
        UserError: if a directory is not a run, a file in it is damaged, or the page cannot be written.
    """
    if not runs:
        raise UserError("a report needs at least one run directory, none was given.")
    directories = [run if isinstance(run, RunDirectory) else RunDirectory(run) for run in runs]
    path = Path(out) if out is not None else directories[0].path / "report.html"
    folder = path.with_name("figures" if path.name == "report.html" else f"{path.stem}-figures")
    if out is not None or directories[0].path.is_dir():
        check_place(path, PAGE)
        check_folder(folder)
    letters = [""] if len(runs) == 1 else [_letter(number) for number in range(len(runs))]
    views = [run_view(run, letter) for run, letter in zip(directories, letters, strict=True)]
    title = views[0].summary.name if len(views) == 1 else f"Comparison of {len(views)} runs"
    comparison = None
    chart = accuracy_chart([("", views[0].rows)]) if views[0].rows else None
    if len(views) > 1:
        shown = zip(views, directories, strict=True)
        comparison = compare_shown([ShownRun(v.letter, v.summary.name, d, v.rows) for v, d in shown])
        chart = comparison.chart
    analyses = analysis_views([(view.letter, view.analyses) for view in views])
    page = rendered(
        "report.html",
        title=title,
        live=live,
        runs=views,
        comparison=comparison,
        chart=chart,
        gain=GAIN,
        analyses=analyses,
        found=found_view([view.findings for view in views]),
    )
    stem = f"evaluation-1{'-compared' if comparison else ''}"
    if out is None:
        refuse_link(folder)
    for name, content in _files(stem, chart, analyses).items():
        write_atomically(folder / name, content)
    write_atomically(path, page.encode())
    return path


report = write_report
"""Its public name, `dbpkit.report`."""


def _files(stem: str, chart: ResponsiveChart | None, analyses: Sequence[AnalysisView]) -> dict[str, bytes]:
    """Every figure of the page as PNG, and its data as CSV."""
    drawn = [(c.stem, c.drawn.png, c.drawn.csv) for view in analyses for line in view.charts for c in line]
    if chart:
        drawn.append((stem, chart.png, chart_csv(chart.data)))
    pictures = {f"{name}.png": png for name, png, _ in drawn}
    return pictures | {f"{name}.csv": text.encode() for name, _, text in drawn}


def rendered(template: str, **given: Any) -> str:
    """Renders a page that needs nothing else; every text that is given is escaped.

    Args:
        template: a file in ``templates``, or another room's, such as ``tables/page.html``; extends the base.
        given: what the template names; ``title`` is asked for by every page.
    """
    return _environment().get_template(template).render(**given)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("dbpkit.reporting"), PackageLoader("dbpkit", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sha256"] = _script_hash
    environment.filters["csv_uri"] = _csv_uri
    return environment


def _script_hash(script: str) -> str:
    """The hash by which the page's policy admits its own script and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _csv_uri(content: str | Chart) -> str:
    """A table as a link that needs no file."""
    text = content if isinstance(content, str) else chart_csv(content)
    return data_uri("text/csv;charset=utf-8", text.encode())


def _letter(number: int) -> str:
    return string.ascii_uppercase[number] if number < 26 else str(number + 1)
