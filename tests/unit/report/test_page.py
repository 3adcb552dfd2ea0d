"""The page: everything a run has to say, nothing from outside, nothing of a user's name taken for markup."""

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from jinja2 import DictLoader

from dbpkit.foundation.errors import UserError
from dbpkit.reporting import page as page_module
from dbpkit.reporting import write_report
from dbpkit.reporting.checks import RECORD_CHECKS
from dbpkit.reporting.tables import difference_rows, table_rows
from dbpkit.results.flags import Flag
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import summarise

MakeRun = Callable[..., RunDirectory]

RAN = ("probabilities", "gradient_mismatch", "suspicious_level")  # as `make_run` records
OWN_CHECKS = [name for name in RECORD_CHECKS if name != "claim_disagrees"]  # no other library attacked


def page_of(*runs: RunDirectory) -> str:
    return write_report([run.path for run in runs]).read_text()


def text_of(page: str) -> str:
    """The page without tags, white space as a reader sees it."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_write_report_returns_page_in_first_run(make_run: MakeRun) -> None:
    run = make_run()
    assert write_report([run.path]) == run.path / "report.html"


def test_write_report_to_another_place_makes_folders(make_run: MakeRun, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page.html"
    assert write_report([str(make_run().path)], out) == out
    assert out.read_text().startswith("<!DOCTYPE html>")


def test_page_shows_values_and_intervals_as_summarised(make_run: MakeRun) -> None:
    run = make_run()
    page, summary = page_of(run), summarise(run)
    for row in table_rows(summary):
        line = next(line for line in page.split("<tr") if f'<th scope="row">{row.title}</th>' in line)
        for cell in (row.accuracy, row.majority, row.every):
            if cell is not None:
                assert f">{cell.value}</span>" in line
                assert f">{cell.interval}</span>" in line
        assert f">{row.gradient_passes}</td>" in line
    for row in difference_rows(summary):
        assert row.title in page
        assert row.interval in page
    assert "Wilson score" in page
    assert "Bonett-Price" in page


def test_page_gives_answer_before_table_and_sections_in_order(make_run: MakeRun) -> None:
    run = make_run()
    text = text_of(page_of(run)).replace("\u00a0", " ").replace("&nbsp;", " ")
    sentence = summarise(run).sentence
    order = [
        sentence,
        "Accuracy per draw",
        "Flags",
        "Paired differences",
        "Findings",
        "Pictures",
        "Settings",
        "Provenance",
    ]
    places = [text.index(part, text.index(sentence)) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize("count", [1, 2])
def test_page_refers_to_nothing_outside(make_run: MakeRun, count: int) -> None:
    page = page_of(*(make_run(f"run{k}") for k in range(count)))
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    references = re.findall(r'\b(?:src|srcset|href|action|data)="([^"]*)"', page)
    assert references
    assert all(reference.startswith("data:") for reference in references)
    assert "default-src 'none'" in page


def test_page_is_the_same_when_written_again(make_run: MakeRun) -> None:
    run = make_run()
    assert page_of(run) == page_of(run)


def test_page_escapes_names_of_users(make_run: MakeRun) -> None:
    attack = "</title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    run = make_run(name=attack, knowledge=("white_box", "dw_both", attack), classes=[attack] * 4)
    page = page_of(run)
    assert page.count("<script>") == 1
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r'"[^">]*onerror=alert\(2\)>"', page)


def test_page_survives_mathematics_in_a_name(make_run: MakeRun) -> None:
    assert "$\\frac{$" in page_of(make_run(knowledge=("white_box", "$\\frac{$")))


def test_page_shows_flags_with_severity_message_and_row(make_run: MakeRun) -> None:
    flags = [
        Flag("suspicious_level", "warning", "Starts at 0.047."),
        Flag("gradient_mismatch", "error", "By 42%.", "white_box"),
    ]
    page = page_of(make_run(flags=flags))
    text = text_of(page)
    assert "Not to be believed: the run raised errors, gradient_mismatch. See the flags below." in text
    assert "Not to be believed" not in text_of(page_of(make_run(flags=flags[:1])))
    assert re.search(r"✖ Error gradient_mismatch purified, white box \(EoT\) By 42%\.", text)
    assert re.search(r"▲ Warning suspicious_level Starts at 0\.047\.", text)
    assert text.index("gradient_mismatch") < text.index("suspicious_level")
    assert f"{len(RAN) + len(OWN_CHECKS) - 2} other checks ran and found nothing" in text
    assert "docs/reference/flags.md" in text


def test_page_without_flags_names_checks_that_ran(make_run: MakeRun) -> None:
    text = text_of(page_of(make_run()))
    assert f"None. {len(RAN) + len(OWN_CHECKS)} checks ran and found nothing" in text
    for name in [*RAN, *OWN_CHECKS]:
        assert name in text


def test_page_before_preflight_claims_no_check_of_it(make_run: MakeRun) -> None:
    text = text_of(page_of(make_run(flags=None)))
    assert f"None. {len(OWN_CHECKS)} checks ran" in text
    assert "gradient_mismatch" not in text
    assert "have not run" in text


def test_page_of_a_run_that_does_not_say_which_checks_ran_says_so(make_run: MakeRun) -> None:
    run = make_run()
    run.write_json("checks.json", [])  # as the first version of the file
    text = text_of(page_of(run))
    assert f"None. {len(OWN_CHECKS)} checks ran" in text
    assert "Which checks ran before the run is not recorded" in text


def test_page_names_no_check_that_had_nothing_to_look_at(make_run: MakeRun) -> None:
    text = text_of(page_of(make_run(knowledge=("dw_both",), without=("noise_control",))))
    assert f"None. {len(RAN) + len(OWN_CHECKS) - 2} checks ran" in text  # not the two below
    assert "transfer_stronger" not in text  # no white box
    assert "no_better_than_noise" not in text  # no noise


def test_page_of_finished_run_does_not_say_unfinished(make_run: MakeRun) -> None:
    assert "is unfinished" not in page_of(make_run())


def test_page_of_unfinished_run_says_which_rows_and_how_many(make_run: MakeRun) -> None:
    run = make_run(recorded=4, without=("fixed",), strip=False)
    text = text_of(page_of(run))
    assert "This run is unfinished: 8 of 8 rows are incomplete" in re.sub(r" :", ":", text)
    assert re.search(r"4 of 6 examples\s?: undefended, clean; undefended, attacked; purified, clean;", text)
    assert re.search(r"0 of 6 examples\s?: purified, fixed randomness", text)
    assert "no pictures yet" in text


def test_page_of_run_with_missing_tape_counts_example_as_incomplete(make_run: MakeRun) -> None:
    run = make_run(without=("fixed",))
    run.append([{"row": "fixed", "tape": 0, "example": 0, "label": 0, "predicted": [0]}])
    assert re.search(r"0 of 6 examples\s?: purified, fixed randomness", text_of(page_of(run)))


def test_page_of_failed_examples_counts_them(make_run: MakeRun) -> None:
    run = make_run(without=("dw_both",))
    run.append({"row": "dw_both", "tape": 0, "example": k, "error": "RuntimeError: <boom>"} for k in range(6))
    page = page_of(run)
    assert re.search(r"0 of 6 examples \(6 failed\)\s?: purified, DW_Both", text_of(page))
    assert "failed_examples" in page
    assert "&lt;boom&gt;" in page


def test_page_of_all_examples_knows_their_number_from_the_session(make_run: MakeRun) -> None:
    assert "is unfinished" not in page_of(make_run(count=None))
    text = text_of(page_of(make_run(folder="cut", count=None, recorded=4, without=("fixed",), strip=False)))
    assert re.search(r"4 of 6 examples\s?: undefended, clean", text)


def test_page_of_run_without_records_is_written(make_run: MakeRun) -> None:
    text = text_of(page_of(make_run(recorded=0, strip=False, flags=None)))
    assert "No result has been recorded yet." in text
    assert "No check has run yet." in text
    assert "0 of 6 examples" in text


def test_page_without_strip_says_so(make_run: MakeRun) -> None:
    page = page_of(make_run(strip=False))
    assert "This run has no pictures yet" in page
    assert 'class="strip' not in page


def test_page_without_environment_is_refused_if_there_are_records(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "env.json").unlink()
    with pytest.raises(UserError, match=r"has no 'env\.json' beside it"):
        page_of(run)


def test_page_before_the_first_session_says_so(make_run: MakeRun) -> None:
    run = make_run(recorded=0, strip=False)
    (run.path / "env.json").unlink()
    assert "versions, device and hashes are unknown" in text_of(page_of(run))


def test_page_shows_settings_and_provenance(make_run: MakeRun) -> None:
    run = make_run()
    run.write_json("env.json", [*run.sessions(), {"versions": {"torch": "9.9"}, "device": "cuda"}])
    text = text_of(page_of(run))
    assert "t_star = 0.1" in text
    assert "8/255" in text
    assert "d" * 64 in text
    assert run.spec()["hash"] in text
    assert re.search(r"Session 1 Session 2 .*versions\.torch 2\.13\.0 9\.9", text)
    assert "deterministic no" in text


def test_page_of_several_runs_puts_them_side_by_side(make_run: MakeRun) -> None:
    a = make_run("a", name="first run")
    b = make_run("b", name="second run", knowledge=("white_box", "dw_both"))
    page = page_of(a, b)
    text = text_of(page)
    assert "Comparison of 2 runs" in text
    assert "Setting Run A Run B" in text
    assert "Run A: first run" in text
    assert "Run B: second run" in text
    assert "Run A − run B" in text
    assert page.count("<picture>") == 1
    assert page.count('class="strip pairs"') == 2
    assert page.count("<h1>") == 1
    assert "run A: " in page  # the chart's text
    assert (
        len(re.findall(r'<th scope="row">purified, fixed randomness</th>', page)) == 2
    )  # both tables of run A


def test_page_of_runs_on_other_data_says_why_they_are_not_compared(make_run: MakeRun) -> None:
    a, b = make_run("a"), make_run("b", recorded=0)
    b.write_json("env.json", [{"data_sha256": "e" * 64}])
    b.append({**record, "label": 3} for record in a.records())
    assert "cannot be compared pair by pair" in text_of(page_of(a, b))


def test_page_table_headers_have_scope_and_images_have_texts(make_run: MakeRun) -> None:
    page = page_of(make_run())
    assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", page))
    images = re.findall(r"<img\b[^>]*>", page)
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert page.count("<figcaption>") == page.count("<figure")


def test_write_report_of_no_run_directory_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory: it has no spec\.json"):
        write_report([tmp_path])


def test_write_report_of_nothing_asks_for_a_run() -> None:
    with pytest.raises(UserError, match="at least one run directory"):
        write_report([])


def test_write_report_of_damaged_pictures_is_without_them_and_says_so_once(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    whole = write_report([run.path]).read_text()
    strip = run.path / "strip.safetensors"
    strip.write_bytes(strip.read_bytes()[:100])
    page = write_report([run.path]).read_text()
    (said,) = caplog.messages
    assert said.startswith("The report has no pictures: ")
    assert "strip.safetensors' is damaged" in said
    assert "it is not needed" in said
    assert page.count("There are no pictures: ") == 1
    assert "Clean, attacked and purified images" in whole
    assert "Clean, attacked and purified images" not in page
    assert "no pictures yet" not in page


def test_another_page_extends_the_base_and_escapes_what_it_is_given() -> None:
    """The policy admits the page's one script, an own one included."""
    environment = page_module._environment().overlay(
        loader=DictLoader(
            {
                "own.html": """{% extends "base.html" %}
{% block script %}{{ super() }}document.title += "own";{% endblock %}
{% block main %}<p>{{ said }}</p>{% endblock %}{% block footer %}Own.{% endblock %}""",
                **{name: _source(name) for name in ("base.html", "sort.js", "style.css")},
            }
        )
    )
    page = environment.get_template("own.html").render(title="<b>", said="<i>")
    assert "<title>&lt;b&gt; – dbpkit" in page
    assert "<p>&lt;i&gt;</p>" in page
    assert '<footer class="muted">Own.</footer>' in page
    script = re.search(r"<script>(.*)</script>", page, flags=re.DOTALL)
    assert script is not None
    assert script[1].rstrip().endswith('document.title += "own";')
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert page.count(f"script-src 'sha256-{digest}'") == 1


def _source(name: str) -> str:
    return (Path(page_module.__file__).parent / "templates" / name).read_text()
