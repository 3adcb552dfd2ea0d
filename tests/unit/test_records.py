"""Unit tests of records: made, and read from what a file holds."""

import json

import pytest

from dbpkit.results.records import Attacked, Key, failed, judged, read

KEY = Key("white_box", 1, 7)


def test_judged_has_key_label_and_predictions_first_and_then_what_the_attack_left() -> None:
    attacked: Attacked = {"attack": "pgd", "distance": 0.03, "images": "a.safetensors"}
    assert json.dumps(judged(KEY, 3, [3, 1], attacked)) == (
        '{"row": "white_box", "tape": 1, "example": 7, "label": 3, "predicted": [3, 1],'
        ' "attack": "pgd", "distance": 0.03, "images": "a.safetensors"}'
    )


def test_failed_says_why_and_has_no_result() -> None:
    assert failed(KEY, "no memory") == {"row": "white_box", "tape": 1, "example": 7, "error": "no memory"}


@pytest.mark.parametrize("record", [judged(KEY, 3, [3, 1]), failed(KEY, "no memory")])
def test_read_gives_back_what_was_made(record: dict) -> None:
    assert read(json.loads(json.dumps(record)), 1) == record


def test_read_damaged_record_counts_as_failed_and_says_what_is_wrong() -> None:
    found = read({**judged(KEY, 3, [3]), "label": -1}, 12)
    assert found == failed(KEY, "the record is damaged: 'label' is not a class (line 12)")


def test_read_line_without_a_key_raises() -> None:
    with pytest.raises(ValueError, match="row, tape or example"):
        read({"row": "clean", "tape": 0}, 1)
