"""Near chance and permuted labels: exact tests, their error rates, and the reports' own cases.

The thing people get wrong: a test of a detector that never counts its false alarms.
"""

import math

import pytest
import torch

from dbpkit.foundation.noise import NoisePlan
from dbpkit.results.chance import Answer, chance_flags, labels_permuted, near_chance, one_class
from dbpkit.statistics.binomial import at_most


def answers(count: int, classes: int, accuracy: float, seed: int, shift: int = 0) -> list[Answer]:
    """Labels in turn; right with a probability, else any other class; labels moved afterwards."""
    plan = NoisePlan.of(seed, range(count))
    hit, other = (plan.uniform("probe", i, torch.zeros(count, 1))[:, 0] for i in (0, 1))
    found = []
    for i in range(count):
        said = i % classes
        if float(hit[i]) >= accuracy:
            said = (said + 1 + int(float(other[i]) * (classes - 1))) % classes
        found.append(Answer((i + shift) % classes, said))
    return found


def share(flagged: list[bool]) -> float:
    return sum(flagged) / len(flagged)


@pytest.mark.parametrize(("trials", "chance"), [(5, 0.3), (12, 0.1), (64, 0.5)])
def test_at_most_is_the_binomial_sum(trials: int, chance: float) -> None:
    terms = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    for k in range(-1, trials + 2):
        assert at_most(k, trials, chance) == pytest.approx(sum(terms[: max(k + 1, 0)]), abs=1e-12)


@pytest.mark.parametrize(
    ("count", "classes"), [(4, 10), (8, 10), (16, 10), (32, 10), (32, 2), (64, 3), (200, 10)]
)
def test_near_chance_model_of_little_skill_is_accused_in_one_percent_at_most(
    count: int, classes: int
) -> None:
    """The rate is exact, so 2,000 runs may show 1.6 % (three standard deviations above 1 %)."""
    accuracy = 1 / classes + (1 - 1 / classes) / 4
    flagged = [bool(near_chance(answers(count, classes, accuracy, seed))) for seed in range(500)]
    assert share(flagged) <= 0.01 + 3 * (0.01 * 0.99 / 500) ** 0.5
    good = [bool(near_chance(answers(count, classes, 0.5 + 0.5 / classes, seed))) for seed in range(100)]
    assert not any(good)


@pytest.mark.parametrize(("count", "power"), [(64, 0.6), (128, 0.95), (256, 0.95)])
def test_near_chance_guessing_is_found(count: int, power: float) -> None:
    assert share([bool(near_chance(answers(count, 10, 0.1, seed))) for seed in range(60)]) >= power


@pytest.mark.parametrize(
    ("right", "count", "flagged"), [(0, 4, False), (0, 11, False), (0, 13, True), (2, 13, False)]
)
def test_near_chance_few_images_do_not_accuse(right: int, count: int, flagged: bool) -> None:
    """A model of little skill, 32.5 % with 10 classes, has none of 11 right in 1.3 %, none of 13 in 0.6 %."""
    said = [Answer(i % 10, i % 10 if i < right else (i + 1) % 10) for i in range(count)]
    assert bool(near_chance(said)) is flagged


def test_near_chance_one_class_of_many_is_judged_by_its_share() -> None:
    """Two thirds of the images have label 0; a model that says so always is right on two thirds."""
    said = [Answer(int(i % 3 == 2), 0) for i in range(96)]
    assert near_chance(said) == []  # 62.5 %, a little skill on two classes, is less than that
    said = [Answer(i % 3 if i % 6 else 0, 0) for i in range(96)]
    (flag,) = near_chance(said)
    assert "32 of 96 unattacked images (33.3%)" in flag.message
    assert "always guessing the most frequent label is right on 33.3%" in flag.message


@pytest.mark.parametrize("count", [16, 32, 64, 256])
@pytest.mark.parametrize(("accuracy", "classes"), [(0.1, 10), (0.5, 10), (0.9, 10), (0.6, 2), (0.5, 2)])
def test_labels_permuted_accuses_a_plain_model_in_one_percent_at_most(
    count: int, accuracy: float, classes: int
) -> None:
    flagged = [bool(labels_permuted(answers(count, classes, accuracy, seed))) for seed in range(300)]
    assert share(flagged) <= 0.01 + 3 * (0.01 * 0.99 / 300) ** 0.5


@pytest.mark.parametrize(("count", "accuracy", "power"), [(32, 1.0, 1.0), (64, 0.9, 0.9), (128, 0.8, 1.0)])
def test_labels_permuted_shift_is_found_and_named(count: int, accuracy: float, power: float) -> None:
    found = [labels_permuted(answers(count, 10, accuracy, seed, shift=1)) for seed in range(20)]
    assert share([bool(f) for f in found]) >= power
    message = next(f[0].message for f in found if f)
    assert "The classes of data and classifier have another order." in message


def test_labels_permuted_by_one_of_a_perfect_classifier_says_so() -> None:
    said = [Answer(i % 9 + 1, i % 9) for i in range(36)]
    (flag,) = labels_permuted(said)
    assert flag.message.startswith(
        "The answers fit the labels on 100.0% of the unattacked images if class k of the model stands for"
        " label k + 1; as they are, on 0.0%."
    )


def test_labels_permuted_folder_that_lacks_a_class_is_found() -> None:
    """Class 2 has no folder, so classes 3 to 9 have labels 2 to 8; 22 % are right by the labels."""
    names = [k for k in range(10) if k != 2]
    said = [Answer(label, k) for label, k in enumerate(names)] * 6
    (flag,) = labels_permuted(said)
    assert "class k of the model stands for label k - 1; as they are, on 22.2%" in flag.message


def test_labels_permuted_thousand_classes_on_ten_folders_are_found() -> None:
    said = [Answer(i % 10, 97 * (i % 10) + 11) for i in range(40)]
    (flag,) = labels_permuted(said)
    assert "another label: 11 for label 0, 108 for label 1, 205 for label 2, 302 for label 3" in flag.message


def test_chance_flags_look_at_unattacked_rows_once() -> None:
    shifted = [
        {"row": "clean", "tape": 0, "example": i, "label": (i + 1) % 10, "predicted": [i % 10, 5]}
        for i in range(40)
    ]
    flags = chance_flags({"undefended_clean": shifted, "clean": shifted, "white_box": shifted})
    assert [(f.name, f.row) for f in flags] == [
        ("labels_permuted", "undefended_clean"),
        ("near_chance", "clean"),
    ]
    assert chance_flags({}) == []


@pytest.mark.parametrize("count", [6, 9])
def test_one_class_for_every_image_is_named_where_near_chance_has_too_few_images(count: int) -> None:
    """Three balanced classes, always class 1: right on a third, which so few cannot tell from skill."""
    records = [{"tape": 0, "example": i, "label": i % 3, "predicted": [1] * 5} for i in range(count)]
    flags = chance_flags({"undefended_clean": records, "clean": records, "white_box": records})
    assert [(f.name, f.severity, f.row) for f in flags] == [
        ("one_class", "warning", "undefended_clean"),
        ("one_class", "warning", "clean"),
    ]
    assert f"The model answers class 1 for each of {count} unattacked images" in flags[1].message
    assert "labels are of 3 classes" in flags[1].message


def test_one_class_is_silent_where_one_draw_differs_or_there_is_nothing_to_tell_apart() -> None:
    records = [{"tape": 0, "example": i, "label": i % 3, "predicted": [1, 1]} for i in range(6)]
    records[4] = {**records[4], "predicted": [1, 2]}
    assert chance_flags({"clean": records}) == []
    assert one_class([0, 1, 2], {1}) == []  # three images
    assert one_class([1, 1, 1, 1], {1}) == []  # one label
    assert one_class([0, 0, 0, 1], {0}) != []
    assert one_class([], set()) == []


@pytest.mark.parametrize(
    ("count", "classes", "accuracy"), [(4, 10, 0.9), (6, 3, 0.9), (9, 3, 0.9), (16, 2, 0.8)]
)
def test_one_class_accuses_no_model_that_is_right_on_most_balanced_labels(
    count: int, classes: int, accuracy: float
) -> None:
    """One class needs all images of the others wrong: 0.1**4 at most for 6 of 3, 2 * 0.2**8 for 16 of 2."""
    said = [answers(count, classes, accuracy, seed) for seed in range(500)]
    assert not any(one_class([a.label for a in s], {a.predicted for a in s}) for s in said)
