"""Unit tests of the table of the kinds of rows."""

import pytest

from dbpkit.experiment.knowledge import known
from dbpkit.results.kinds import BASELINE_ROWS, KINDS, baseline_rows, kind_of


@pytest.mark.parametrize("name", known)
def test_kinds_every_setting_of_an_attacker_has_its_title(name: str) -> None:
    kind = KINDS[name]
    assert kind.title.startswith("purified, ")
    assert kind.runs_attack
    assert not kind.is_baseline


def test_kinds_run_without_a_purifier_keeps_what_is_not_about_one() -> None:
    assert baseline_rows(purified=True) == BASELINE_ROWS
    assert baseline_rows(purified=False) == ("clean", "noise_control")


@pytest.mark.parametrize("name", KINDS)
def test_kinds_control_and_attacker_are_rows_of_the_same_table(name: str) -> None:
    kind = KINDS[name]
    assert KINDS[kind.control].images == "clean"
    assert (kind.attacker in KINDS) == (kind.images == "attacked")


def test_kinds_transfer_is_judged_on_the_images_of_the_undefended_row() -> None:
    assert kind_of("transfer").attacker == "undefended"
    assert not kind_of("transfer").runs_attack


def test_kinds_attacker_of_a_spec_of_ones_own_is_attacked_and_titled_by_its_name() -> None:
    kind = kind_of("mine")
    assert (kind.title, kind.heading, kind.images) == ("purified, mine", "Purified, attacked", "attacked")
    assert kind.title_in(purified=False) == "mine"
    assert kind.heading_in(purified=False) == "Attacked"
