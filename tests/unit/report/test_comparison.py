"""Several runs beside each other: bars of runs, curves of models, and the table of their pairs."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dbpkit.reporting import write_report
from dbpkit.reporting.figures import MARKERS, PALETTE, curve_chart
from dbpkit.reporting.tables import difference_cell, p_text, percent
from dbpkit.results.curves import eps_curves
from dbpkit.results.layout import canonical_hash
from dbpkit.results.run_directory import RunDirectory

MakeRun = Callable[..., RunDirectory]
BUDGETS = ("1/255", "2/255", "8/255")


def text_of(*runs: RunDirectory) -> str:
    page = write_report([run.path for run in runs]).read_text()
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\u00a0", " "))


def changed(run: RunDirectory, **parts: Any) -> RunDirectory:
    """The run under another spec, as if it had been evaluated so."""
    spec, records = {**run.spec()["spec"], **parts}, run.records()
    identity = {**spec, "examples": {"first": spec["examples"]["first"]}}
    (run.path / "records.jsonl").unlink(missing_ok=True)
    run.write_json("spec.json", {"schema": 2, "hash": canonical_hash(identity), "spec": spec})
    run.append(records)
    return RunDirectory(run.path)


@pytest.fixture
def grid(make_run: MakeRun) -> list[RunDirectory]:
    """Two models at three budgets; the second one has lost all DW_Both draws it had right, which is none."""
    runs = []
    for model in ("vanilla", "fine-tuned"):
        for eps in BUDGETS:
            run = make_run(f"{model}{eps[0]}", name=model)
            threat, part = {"norm": "linf", "eps": eps}, {"name": model, "options": {}}
            runs.append(changed(run, threat=threat, denoiser=part))
            if model == "fine-tuned":
                white = [r for r in run.records() if r["row"] == "white_box"]
                run.append({**r, "predicted": [r["label"]] * 4} for r in white[:3])
    return runs


def test_page_of_two_runs_has_legend_and_what_differs(make_run: MakeRun) -> None:
    a = make_run("a", name="vanilla")
    b = changed(make_run("b", name="fine-tuned"), denoiser={"name": "addt", "options": {}})
    text = text_of(a, b)
    assert "■ A vanilla" in text
    assert "■ B fine-tuned" in text
    assert "What differs: denoiser.name embedded -> addt ." in text
    assert "Read with care" not in text
    assert "McNemar p = 1.000" in text  # DW_Both: one draw, right in neither


def test_page_of_two_runs_with_the_same_title_tells_them_apart(make_run: MakeRun) -> None:
    a, b = make_run("a"), changed(make_run("b"), denoiser={"name": "addt", "options": {}})
    assert "■ B a run (denoiser.name embedded -> addt)" in text_of(a, b)


def test_page_of_two_runs_warns_of_other_seed_and_escapes_it(make_run: MakeRun) -> None:
    a = make_run("a")
    b = changed(make_run("b"), seed=1, attacks=[{"name": "<b>pgd</b>", "options": {"iterations": 3}}])
    text = text_of(a, b)
    assert "Read with care: The attacks differ (attacks[0].name pgd -> <b>pgd</b>)" in text
    assert "The seeds differ (seed 0 -> 1)" in text


def test_page_of_same_run_twice_shows_bars(make_run: MakeRun) -> None:
    run = make_run()
    assert "The settings are the same." in text_of(run, run)


def test_page_of_curves_shows_models_numbers_and_differences(grid: list[RunDirectory]) -> None:
    text, curves = text_of(*grid), eps_curves(grid)
    assert "● Model 1 vanilla – runs A, B, C" in text
    assert "■ Model 2 fine-tuned – runs D, E, F" in text
    assert "Setting eps 1/255 eps 2/255 eps 8/255 Average Images (n)" in text
    assert "What differs: denoiser.name vanilla -> fine-tuned ." in text
    assert "Differences between models" in text
    for model in curves.models:
        for at in model.rows.values():
            for estimate in at.values():
                assert percent(estimate.value) in text
    assert curves.difference is not None
    average = difference_cell(curves.difference.average["white_box"])
    assert (
        f"{average.value} points on average over eps 1/255 to 8/255 (95 % interval {average.interval})"
        in text
    )
    line = " ".join(
        f"{cell.value} {cell.interval}"
        for cell in map(
            difference_cell,
            [*curves.difference.at["white_box"].values(), curves.difference.average["white_box"]],
        )
    )
    assert f"purified, white box (EoT) {line} 6" in text


def test_page_of_curves_keeps_every_run_with_its_sentence(grid: list[RunDirectory]) -> None:
    page = write_report([run.path for run in grid]).read_text()
    assert page.count("<article>") == len(grid)
    assert page.count("<picture>") == 1
    assert page.count("An attacker who must guess the noise") == len(grid)
    assert page.count("<figcaption>") == page.count("<figure")
    assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", page))
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_page_of_one_model_at_several_eps_has_curve_and_pairs_of_runs(grid: list[RunDirectory]) -> None:
    text = text_of(*grid[:3])
    assert "● Model 1 vanilla – runs A, B, C" in text
    assert "Run A − run B" in text
    assert "The budgets differ (threat.eps 1/255 -> 2/255)" in text


def test_page_of_three_models_compares_each_with_the_first(
    grid: list[RunDirectory], make_run: MakeRun
) -> None:
    third = [
        changed(
            make_run(f"third{eps[0]}", name="third"),
            threat={"norm": "linf", "eps": eps},
            denoiser={"name": "third", "options": {}},
        )
        for eps in BUDGETS[:2]
    ]
    text = text_of(*grid, *third)
    assert "Model 1 − model 2" in text
    assert "Model 1 − model 3" in text
    assert "not evaluated at the same eps" in text


def test_page_of_two_models_at_one_eps_each_shows_bars(grid: list[RunDirectory]) -> None:
    text = text_of(grid[0], grid[5])
    assert "Setting Run A Run B" in text
    assert "The budgets differ" in text


def test_page_of_curves_without_records_is_written(make_run: MakeRun) -> None:
    runs = [
        changed(make_run(eps[0], recorded=0, strip=False), threat={"norm": "linf", "eps": eps})
        for eps in BUDGETS
    ]
    assert "No result has been recorded yet." in text_of(*runs)


def test_curve_chart_text_lists_every_value(grid: list[RunDirectory]) -> None:
    curves = eps_curves(grid)
    chart = curve_chart(curves)
    assert len({chart.light, chart.dark, chart.narrow_light, chart.narrow_dark}) == 4
    for number, model in enumerate(curves.models, 1):
        at = model.rows["white_box"]
        values = ", ".join(f"{percent(e.value)} at {curves.eps[eps]}" for eps, e in at.items())
        assert f"purified, white box (EoT), model {number}: {values}" in chart.alt


def test_curve_chart_is_the_same_when_drawn_again(grid: list[RunDirectory]) -> None:
    assert curve_chart(eps_curves(grid)) == curve_chart(eps_curves(grid))


def test_curve_chart_budgets_that_are_no_255ths_and_many_models_are_drawn(
    make_run: MakeRun, tmp_path: Path
) -> None:
    runs = [
        changed(
            make_run(f"{model}-{eps}", knowledge=("$\\frac{$",)),
            threat={"norm": "l2", "eps": eps},
            seed=model,
        )
        for model in range(len(MARKERS) + 1)
        for eps in ("0", "0.25", "0.26", "1")
    ]
    assert " at 0.26" in curve_chart(eps_curves(runs)).alt


def test_palette_has_a_marker_for_every_colour() -> None:
    assert len(PALETTE) == len(MARKERS)


def test_p_values_as_text() -> None:
    assert (p_text(0.0312), p_text(0.00099), p_text(1.0)) == ("= 0.031", "< 0.001", "= 1.000")
