"""The summary's sentence: an upper bound at the white box's EoT, and what is known of more draws."""

import pytest

from dbpkit.results.analysis import AnalysisResult, Claim, Number
from dbpkit.results.flags import Flag
from dbpkit.results.headline import Trend, headline_sentence, measured_trend, white_box_eot
from dbpkit.results.schemas import RecordedPart
from dbpkit.statistics.estimates import paired_difference
from dbpkit.statistics.intervals import difference, share
from tests.oracles import uniform

GAP = paired_difference([1.0] * 12 + [0.0] * 18, [0.0] * 30)
NOISY = Flag(
    "gradient_noise",
    "warning",
    "One draw's gradient has a signal-to-noise ratio of 0.028 (...). About 12 draws reach a cosine of 0.5"
    " with the expected gradient; the attack averages over 2.",
)


def test_sentence_calls_the_difference_an_upper_bound_at_its_eot() -> None:
    text = headline_sentence(0.4, 0.0, GAP, 10)
    assert "leaves 40% right, one who knows it leaves 0%: at most 40 points (95 % interval" in text
    assert text.endswith("come from randomness the attacker cannot foresee, at EoT 10.")
    assert "not from removing" not in text


def test_sentence_with_few_draws_says_what_to_do() -> None:
    assert "More draws per gradient can only lower it" in headline_sentence(0.4, 0.0, GAP, 3)
    assert "More draws" not in headline_sentence(0.4, 0.0, GAP, None)


def test_sentence_repeats_what_the_check_doubts() -> None:
    text = headline_sentence(0.42, 0.0, GAP, 2, [NOISY])
    assert "The check doubts this white box: about 12 draws reach a cosine of 0.5" in text
    assert "the attack averages over 2." in text
    assert "raise the attack's eot" in text


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (True, "falls with EoT, and this bound with it (33% at EoT 1, 18% at EoT 10)"),
        (False, "does not fall with EoT"),
        (None, "is open"),
    ],
)
def test_sentence_tells_the_trend_over_eot(lost: bool | None, said: str) -> None:
    text = headline_sentence(0.4, 0.0, GAP, 10, (), Trend({1: 0.33, 3: 0.23, 10: 0.18}, lost))
    assert said in text


def test_sentence_without_a_difference_claims_nothing() -> None:
    none = headline_sentence(0.5, 0.5, paired_difference([1.0, 0.0] * 10, [0.0, 1.0] * 10), 10)
    assert "does not show that randomness adds robustness" in none
    assert "cannot yet tell" in headline_sentence(0.0, 0.0, None, 10)
    few = headline_sentence(1.0, 0.0, paired_difference([1.0] * 8, [0.0] * 8), 10)
    assert "8 images are too few to be sure" in few


def test_sentence_is_rarely_wrong_where_knowing_the_noise_changes_nothing() -> None:
    """2,000 runs of 20 images whose attacker gains nothing by knowing the noise: at most 5 % claim points."""
    u = uniform(2000, 2, 20, 8, seed=31).numpy() < 0.3
    gaps = [paired_difference(a, b) for a, b in zip(u[:, 0].mean(2), u[:, 1, :, 0] * 1.0, strict=True)]
    assert sum("at most" in headline_sentence(0.3, 0.3, gap, 10) for gap in gaps) <= 0.05 * 2000


def test_trend_is_read_from_the_analysis() -> None:
    numbers = [Number.of(f"robust accuracy, N = {n}", share([v] * 20)) for n, v in ((16, 0.2), (1, 0.5))]
    lost = difference([0.3] * 64)
    claim = Claim("above 0", least=0)
    numbers.append(Number.of("robust accuracy lost from N = 1 to N = 16", lost, claim=claim))
    found = measured_trend([AnalysisResult("eot", "", [], numbers, [])])
    assert found is not None
    assert found.accuracy == pytest.approx({1: 0.5, 16: 0.2})
    assert list(found.accuracy) == [1, 16]
    assert found.lost is True
    assert measured_trend([]) is None


@pytest.mark.parametrize(
    ("attacks", "passes", "eot"),
    [
        ([{"name": "pgd", "options": {"eot": 3}}], [], 3),
        ([{"name": "pgd", "options": {}}], [(200.0, 20)] * 5, 10),
        ([{"name": "pgd", "options": {}}], [(200.0, 20), (100.0, 20)], None),
        ([{"name": "pgd", "options": {}}], [(205.0, 20)], None),
        ([{"name": "pgd", "options": {"eot": 3}}, {"name": "apgd", "options": {"eot": 20}}], [], 20),
        ([{"name": "pgd", "options": {"eot": 3}}, {"name": "mine:attack", "options": {}}], [], None),
        ([], [], None),
    ],
)
def test_white_box_eot_is_that_of_the_spec_or_as_counted(
    attacks: list[dict[str, object]], passes: list[tuple[float, int]], eot: int | None
) -> None:
    assert white_box_eot([RecordedPart.model_validate(a) for a in attacks], passes) == eot
