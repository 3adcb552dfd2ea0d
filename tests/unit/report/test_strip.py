"""The strip: which picture, what is written under it."""

from collections.abc import Callable

import pytest
import torch

from dbpkit.reporting.strip import Strip, class_name, read_strip
from dbpkit.results.run_directory import RunDirectory

MakeRun = Callable[..., RunDirectory]


def strip_of(run: RunDirectory) -> Strip:
    strip = read_strip(run, run.recorded_spec(), run.columns())
    assert strip is not None
    return strip


def test_strip_lines_have_two_pictures_for_clean_and_every_attacker(make_run: MakeRun) -> None:
    strip = strip_of(make_run())
    assert strip.attackers == ["white box (EoT)", "DW_Both (all noise known)", "fixed randomness"]
    assert [line.label for line in strip.lines] == [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "airplane",
        "automobile",
    ]
    assert all(len(line.pictures) == 2 * (1 + 3) for line in strip.lines)
    assert len(strip.perturbations) == 3
    assert strip.size == "8 × 8"


def test_strip_pictures_say_what_was_predicted_and_on_how_many_draws(make_run: MakeRun) -> None:
    clean, purified, attacked, after = strip_of(make_run()).lines[0].pictures[:4]
    assert clean is not None
    assert purified is not None
    assert attacked is not None
    assert after is not None
    assert (clean.text, clean.right) == ("airplane", True)
    assert (purified.text, purified.right, purified.note) == ("airplane", True, "4 of 4 right")
    assert (attacked.text, attacked.right) == ("8.0/255", None)
    assert (after.text, after.right, after.note) == ("automobile", False, "3 of 4 right")
    assert (
        after.alt
        == "example 0, airplane, attacked by white box (EoT), then purified; classified as automobile"
    )


def test_strip_size_of_l2_perturbation_is_a_decimal(make_run: MakeRun) -> None:
    run = make_run()
    spec = run.recorded_spec()
    spec.threat.norm, spec.threat.eps = "l2", "0.5"
    strip = read_strip(run, spec, run.columns())
    assert strip is not None
    assert strip.lines[0].pictures[2] is not None
    assert strip.lines[0].pictures[2].text == "0.031"  # 8/255, as recorded


def test_strip_without_records_still_shows_pictures(make_run: MakeRun) -> None:
    run = make_run(recorded=0)
    clean, _, attacked, after = strip_of(run).lines[0].pictures[:4]
    assert clean is not None
    assert attacked is not None
    assert after is not None
    assert (clean.text, attacked.text, after.note) == ("", "", "")


def test_strip_without_clean_purified_has_a_gap(make_run: MakeRun) -> None:
    run = make_run()
    arrays, about = run.read_strip()
    del arrays["clean.x_pure"]
    run.write_strip({name: torch.from_numpy(array) for name, array in arrays.items()}, about)
    assert strip_of(run).lines[0].pictures[1] is None


def test_strip_of_run_without_pictures_is_none(make_run: MakeRun) -> None:
    run = make_run(strip=False)
    assert read_strip(run, run.recorded_spec(), run.columns()) is None


@pytest.mark.parametrize(("index", "name"), [(0, "cat"), (7, "7")])
def test_class_name_without_name_is_number(index: int, name: str) -> None:
    assert class_name({"class_names": ["cat"]}, index) == name
