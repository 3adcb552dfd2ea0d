"""Analyses on the page: answers, charts and numbers, alone, beside an evaluation, and of two runs."""

import base64
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dbpkit.reporting import write_report
from dbpkit.reporting.analyses import analysis_views, findings_sentence, number_cell, number_text
from dbpkit.reporting.figures.charts import chart_csv
from dbpkit.results.analysis import Number, analysis_results
from dbpkit.results.findings import gather
from dbpkit.results.run_directory import RunDirectory
from tests.unit.report.conftest import CHARTS, NUMBERS

MakeRun = Callable[..., RunDirectory]
Analysed = Callable[..., RunDirectory]


def page_of(*runs: RunDirectory) -> str:
    return write_report([run.path for run in runs]).read_text()


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\u00a0", " "))


def test_page_shows_analysis_after_flags_and_before_pictures(make_run: MakeRun, analysed: Analysed) -> None:
    text = text_of(page_of(analysed(make_run())))
    order = [
        "An attacker who must guess", "Accuracy per draw", "Flags", "Paired differences", "Findings",
        "Why: the analyses", "It keeps 28%", "A line", "share fooled", "Pictures", "Settings", "Provenance",
    ]  # fmt: skip
    place = 0
    for part in order:
        assert part in text[place:]
        place = text.index(part, place)


def test_page_of_analysis_has_every_chart_with_text_and_data(analysed: Analysed) -> None:
    page = page_of(analysed(charts=list(CHARTS.values())))
    images = re.findall(r'<img src="data:image/svg[^"]*" alt="([^"]*)"', page)
    assert images == [html.escape(f"{c.title}. {c.description}", quote=True) for c in CHARTS.values()]
    links = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', page)
    assert [name for name, _ in links] == [f"compression-{k}.csv" for k in range(1, 6)]
    for (_, content), chart in zip(links, CHARTS.values(), strict=True):
        assert base64.b64decode(content).decode() == chart_csv(chart)


def test_page_of_analysis_says_what_was_left_out(analysed: Analysed) -> None:
    assert "1 value that cannot be drawn: see the data." in text_of(page_of(analysed()))


def test_page_of_analysis_has_table_with_published_value_claim_and_verdict(analysed: Analysed) -> None:
    page = page_of(analysed())
    line = next(line for line in reversed(page.split("<tr")) if "share fooled" in line)
    for words in ("0.42", "0.31 to 0.55", ">64<", ">0.5<", "Liu 2025, table 3", "above 0.3: fuzzy", "holds"):
        assert words in line
    text = text_of(page)
    assert "a gap 0.020 −0.010 to 0.050 ? undecided above 0: randomness decides – 20" in text
    assert "slope −12,346 −12,346 to −12,346 ✗ does not hold rises – 30" in text


def test_page_of_analyses_alone_answers_and_claims_nothing_of_an_evaluation(analysed: Analysed) -> None:
    page = page_of(analysed())
    answer = re.search(r'<p class="answer">(.*?)</p>', page)
    assert answer
    assert answer[1] == "It keeps 28% of a length."
    text = text_of(page)
    for words in ("is unfinished", "No result has been recorded", "No check has run", "no pictures yet"):
        assert words not in text
    assert "holds analyses and no evaluation" in text
    assert "e" * 64 in text  # hashes that the analysis noted
    assert "<h2>Flags" not in page


def test_page_of_two_analyses_alone_answers_with_the_findings(analysed: Analysed) -> None:
    run = analysed(analysed(), name="spectrum", title="Another why", charts=[])
    page = page_of(run)
    answer = re.search(r'<p class="answer">(.*?)</p>', page)
    assert answer
    assert answer[1] == "2 of 8 tested claims hold here: 2 do not, 4 are undecided."
    assert '<a href="#analysis-spectrum">Another why</a>' in page
    assert 'id="analysis-spectrum"' in page


def test_page_of_analysis_without_claim_and_chart_is_written(analysed: Analysed) -> None:
    run = analysed(numbers=[NUMBERS[3]], charts=[])
    analysed(run, name="other", numbers=[], charts=[], sentences=[])
    text = text_of(page_of(run))
    assert "Findings" not in text
    assert "2 analyses, and no claim to be tested." in text


def test_page_escapes_what_an_analysis_says(analysed: Analysed) -> None:
    odd = "<script>alert(1)</script>\"'&"
    number = Number(odd, 1.0, source=odd, published=2.0, claim=odd, least=0, method=odd)
    chart = CHARTS["line"]._replace(title=odd, description=odd)
    page = page_of(analysed(title=odd, sentences=[odd], numbers=[number], charts=[chart]))
    assert page.count("<script>") == 1
    assert "<script>alert" not in page


def test_page_of_two_runs_shows_an_analysis_side_by_side(make_run: MakeRun, analysed: Analysed) -> None:
    a = analysed(make_run("a", name="vanilla"))
    b = analysed(make_run("b", name="tuned"), numbers=[NUMBERS[0]._replace(value=0.5), Number("new", 1.0)])
    analysed(b, name="spectrum", title="Only here")
    page = page_of(a, b)
    text = text_of(page)
    assert text.count("Run A: A line") == text.count("Run B: A line") - 1 == 1
    assert "Number Run A Run B Claim" in text
    line = next(line for line in page.split("<h2>Why")[1].split("<tr") if "share fooled" in line)
    assert line.index(">0.42<") < line.index(">0.50<")
    assert re.search(r"(?i)new – 1", text)
    assert len(re.findall(r'<section class="analysis"', page)) == 2


def test_page_of_two_runs_with_analyses_alone_is_written(analysed: Analysed) -> None:
    text = text_of(page_of(analysed(folder="a"), analysed(folder="b")))
    assert "Run A holds analyses and no evaluation" in text
    assert "cannot be compared" not in text
    assert "Run B: settings" in text


def test_charts_of_two_runs_have_the_same_axes(analysed: Analysed) -> None:
    chart = CHARTS["scatter"]
    taller = chart._replace(series=[chart.series[0]._replace(y=[0.5, 9.0])])
    results = [
        list(analysis_results(analysed(folder=n, charts=[c]))) for n, c in (("a", chart), ("b", taller))
    ]
    line = analysis_views([("A", results[0]), ("B", results[1])])[0].charts[0]
    alone = analysis_views([("", results[0])])[0].charts[0]
    assert line[0].drawn.light != alone[0].drawn.light


def test_settings_are_words_and_empty_ones_are_left_out(analysed: Analysed) -> None:
    result = next(iter(analysis_results(analysed())))
    tables = [{"sampler": "ddim", "steps": 20}, {"sampler": "one_step"}]
    settings = {
        "images": 4,
        "configurations": tables,
        "rungs": [],
        "blind": None,
        "norm": "",
        "shared": False,
    }
    ((_, said),) = analysis_views([("", [result._replace(settings=settings)])])[0].settings
    assert said == "images 4, configurations (sampler ddim, steps 20) (sampler one_step), shared False"


def test_figures_are_written_as_png_and_csv(make_run: MakeRun, analysed: Analysed) -> None:
    run = analysed(make_run(), charts=list(CHARTS.values()))
    page_of(run)
    stems = {"evaluation-1", *(f"compression-{k}" for k in range(1, 6))}
    names = {path.name for path in (run.path / "figures").iterdir()}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "csv")}
    for path in (run.path / "figures").glob("*.png"):
        assert min(Image.open(path).size) > 100
    assert (run.path / "figures" / "compression-1.csv").read_text() == chart_csv(CHARTS["line"])
    rows = (run.path / "figures" / "evaluation-1.csv").read_text().splitlines()
    assert rows[0] == "series,setting,accuracy per draw,low,high"
    assert len(rows) == 9


def test_figures_of_a_page_elsewhere_lie_beside_it(
    make_run: MakeRun, analysed: Analysed, tmp_path: Path
) -> None:
    a, b = analysed(make_run("a"), name="my_module:why"), make_run("b")
    write_report([a.path, b.path], tmp_path / "both.html")
    names = {path.name for path in (tmp_path / "both-figures").iterdir()}
    assert {"evaluation-1-compared.png", "my_module_why-1-A.png", "my_module_why-1-A.csv"} <= names


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (0.28087, 0.036, "0.281"),
        (0.5, 0.25, "0.50"),
        (1234.5, 800.0, "1,234"),
        (12345.6, 0.0, "12,346"),
        (-0.5, 0.0, "−0.5"),
        (-0.0001, 0.1, "0.00"),
        (0.0, 0.0, "0"),
        (1.23e-6, 0.0, "1.23e-06"),
        (float("nan"), 0.0, "–"),
        (float("-inf"), 0.0, "−∞"),
    ],
)
def test_number_text_has_the_digits_of_its_uncertainty(value: float, width: float, text: str) -> None:
    assert number_text(value, width) == text


def test_number_cell_of_broken_number_sorts_last() -> None:
    cell = number_cell(Number("x", float("nan"), float("nan"), float("nan"), claim="c", least=0))
    assert (cell.value, cell.interval, cell.sort[0]) == ("–", "", "")


def test_findings_sentence_counts() -> None:
    results = json.loads(json.dumps([n._asdict() for n in NUMBERS]))
    found = gather([Number(**n) for n in results], [])
    assert findings_sentence(found) == "1 of 4 tested claims holds here: 1 does not, 2 are undecided."
    assert findings_sentence(found[:1]) == "The claim that was tested holds here."
    assert findings_sentence(found[1:2]) == "The claim that was tested is undecided here."
