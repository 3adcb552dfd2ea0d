"""Verdicts of a table: in the claimed direction only, together at 5 %, and none where nothing is compared."""

import itertools
import math

import numpy as np
import pytest

from dbpkit.foundation.philox import uniforms
from dbpkit.statistics.intervals import Interval, difference
from dbpkit.statistics.multiple import apart_p, difference_p, holm, sign_flip_p
from dbpkit.tables.reading import Measured
from dbpkit.tables.table import TableClaim
from dbpkit.tables.verdicts import FEWEST, NOT_YET, judge


def measured(*values, first=0):
    scores = {first + i: float(v) for i, v in enumerate(values)}
    mean = sum(values) / len(values)
    return Measured(
        Interval(mean, max(0.0, mean - 0.1), min(1.0, mean + 0.1), len(values), ""), scores, 100.0
    )


def of_number(value, low, high, n=20):
    return Measured(Interval(value, low, high, n, "mean"), None, 1.0)


def verdict(claim, cells, missing=None, same=None, mini=True):
    claims = [TableClaim(words="a claim", **claim)]
    found = judge(claims, cells, missing or {}, same or {}, mini=mini)[0]
    return found.verdict, found.reason


ALL, NONE = measured(*[1] * 16), measured(*[0] * 16)


def test_an_order_holds_or_not_in_its_own_direction_only():
    cells = {"a/x": ALL, "b/x": NONE}
    assert verdict({"order": ["a/x", "b/x"]}, cells)[0] == "holds"
    assert verdict({"order": ["b/x", "a/x"]}, cells)[0] == "does not hold"
    assert verdict({"order": ["a/x", "b/x"]}, {"a/x": ALL, "b/x": measured(*[1] * 15, 0)})[0] == "undecided"


def test_one_reversed_pair_refutes_a_chain_and_one_open_pair_leaves_it_open():
    half = measured(*[1, 0] * 8)
    cells = {"a/x": ALL, "b/x": half, "c/x": NONE}
    assert verdict({"order": ["a/x", "b/x", "c/x"]}, cells)[0] == "holds"
    assert verdict({"order": ["b/x", "a/x", "c/x"]}, cells)[0] == "does not hold"
    assert verdict({"order": ["a/x", "b/x", "c/x"]}, {**cells, "c/x": half})[0] == "undecided"


def test_a_contrast_is_paired_over_the_images_that_all_cells_have():
    cells = {"a/x": measured(*[1] * 20), "b/x": measured(*[0] * 18, first=2), "c/x": NONE, "d/x": NONE}
    claim = TableClaim(words="a claim", contrast={"a/x": 1.0, "b/x": -1.0, "c/x": -1.0, "d/x": 1.0})
    test = judge([claim], cells, {}, {}, mini=True)[0].tests[0]
    assert (test.found.value, test.found.examples) == (pytest.approx(100.0), 14)
    assert test.found.scaled(0.01).low == pytest.approx(difference(np.full(14, 0.5)).low * 2)


def test_numbers_without_images_are_compared_by_their_intervals():
    cells = {
        "a/x": of_number(3.0, 2.8, 3.2),
        "b/x": of_number(1.0, 0.9, 1.1),
        "c/x": of_number(1.1, 0.9, 1.3),
    }
    assert verdict({"order": ["a/x", "b/x"]}, cells)[0] == "holds"
    assert verdict({"order": ["b/x", "a/x"]}, cells)[0] == "does not hold"
    assert verdict({"order": ["c/x", "b/x"]}, cells)[0] == "undecided"
    assert verdict({"cell": "a/x", "least": 1.0}, cells)[0] == "holds"
    assert verdict({"cell": "a/x", "most": 1.0}, cells)[0] == "does not hold"
    bare = {**cells, "a/x": of_number(3.0, math.nan, math.nan)}
    assert verdict({"order": ["a/x", "b/x"]}, bare) == ("undecided", "a number has no interval")


def test_what_cannot_be_compared_says_why():
    claim, cells = {"order": ["a/x", "b/x"]}, {"a/x": ALL, "b/x": ALL}
    assert verdict(claim, cells, same={"b/x": "a/x"})[1].startswith("a/x and b/x are the same measurement")
    assert verdict(claim, {"a/x": ALL}, {"b/x": "too dear"}) == ("not testable", "b/x: too dear")
    assert verdict(claim, {"a/x": ALL}, {"b/x": NOT_YET}) == ("not measured", "b/x: not measured yet")
    assert verdict(claim, {}, {"a/x": NOT_YET, "b/x": "too dear"}) == ("not testable", "b/x: too dear")
    told = {**claim, "not_mini": "other models differ"}
    assert verdict(told, cells) == ("not testable", "other models differ")
    assert verdict(told, cells, mini=False)[0] == "undecided"


def test_few_images_give_no_verdict():
    few = {"a/x": measured(*[1] * (FEWEST - 1)), "b/x": measured(*[0] * (FEWEST - 1))}
    assert verdict({"order": ["a/x", "b/x"]}, few)[0] == "undecided"


def test_more_claims_make_each_harder():
    weak = measured(*[0] * 6, *[1] * 10)
    assert difference_p(np.array([1.0] * 6 + [0.0] * 10)) < 0.05
    cells = {"a/x": ALL, "b/x": weak, "c/x": ALL}
    claims = [TableClaim(words="a claim", order=[a, b]) for a, b in [("a/x", "b/x")] + [("a/x", "c/x")] * 9]
    assert judge(claims[:1], cells, {}, {}, mini=True)[0].verdict == "holds"
    assert judge(claims, cells, {}, {}, mini=True)[0].verdict == "undecided"


def test_claims_whose_runs_are_still_to_come_are_counted():
    cells = {"a/x": measured(*[1] * 7, *[0] * 9), "b/x": NONE}
    first = {"words": "The first.", "order": ["a/x", "b/x"]}
    alone = judge([TableClaim(**first)], cells, {}, {}, mini=True)[0]
    waiting = [TableClaim(words=f"Later {i}.", order=["c/x", "d/x"]) for i in range(9)]
    early = judge([TableClaim(**first), *waiting], cells, {"c/x": NOT_YET, "d/x": NOT_YET}, {}, mini=True)
    assert (alone.verdict, early[0].verdict) == ("holds", "undecided")
    assert early[0].tests[0].adjusted == pytest.approx(10 * alone.tests[0].adjusted)
    assert {one.verdict for one in early[1:]} == {"not measured"}


def test_p_is_five_percent_where_the_interval_ends_at_zero():
    rng = np.linspace(-1, 1, 41)
    for shift in np.linspace(0, 0.6, 25):
        values = np.clip(rng[::4] * 0.8 + shift, -1, 1)
        found = difference(values)
        assert (difference_p(values) <= 0.05) == (found.low >= 0 or found.high <= 0)


def test_holm_against_the_definition():
    for p in itertools.permutations([0.001, 0.013, 0.02, 0.9]):
        adjusted = holm(p)
        for level in (0.01, 0.04, 0.05, 0.06):
            order, rejected = sorted(range(4), key=lambda i: p[i]), set()
            for rank, i in enumerate(order):
                if p[i] > level / (4 - rank):
                    break
                rejected.add(i)
            assert {i for i in range(4) if adjusted[i] <= level} == rejected


def test_apart_is_conservative_for_numbers_of_any_correlation():
    a, b = Interval(1.0, 0.8, 1.2, 30, ""), Interval(0.6, 0.4, 0.8, 30, "")
    assert apart_p(a, b) == pytest.approx(0.05, abs=0.002)  # the intervals just touch
    assert math.isnan(apart_p(a, Interval(0.0, math.nan, math.nan, 30, "")))


def p_of(plus, minus, images):
    values = np.array([1.0] * plus + [-1.0] * minus + [0.0] * (images - plus - minus))
    return max(difference_p(values), sign_flip_p(values))


@pytest.mark.parametrize("images", [FEWEST, 12, 16])
def test_a_false_verdict_is_rare_whatever_share_of_pairs_differs(images):
    """Exact: every outcome of n pairs that differ by +1 or -1 with equal chance, or not at all."""
    counts = [(plus, minus) for plus in range(images + 1) for minus in range(images + 1 - plus)]
    rejected = [(plus, minus) for plus, minus in counts if p_of(plus, minus, images) <= 0.05]
    for discordant in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0):
        chance = sum(
            math.comb(images, plus)
            * math.comb(images - plus, minus)
            * (discordant / 2) ** (plus + minus)
            * (1 - discordant) ** (images - plus - minus)
            for plus, minus in rejected
        )
        assert 0 < chance <= 0.05


def test_flipping_signs_is_mcnemars_test_and_random_flips_come_near_it():
    for plus, minus in [(8, 0), (7, 1), (5, 5), (1, 9)]:
        exact = 2 * sum(math.comb(plus + minus, k) for k in range(min(plus, minus) + 1)) / 2 ** (plus + minus)
        assert sign_flip_p(np.array([1.0] * plus + [-1.0] * minus)) == pytest.approx(min(1.0, exact))
    exact = 2 * sum(math.comb(16, k) for k in range(4)) / 2**16
    assert sign_flip_p(np.array([1.0] * 13 + [-1.0] * 3)) == pytest.approx(exact, rel=0.15)
    assert sign_flip_p(np.zeros(9)) == 1.0


def test_tests_that_are_all_chance_give_a_verdict_in_one_table_of_twenty():
    """Ten comparisons of fractional scores of 16 images, none of them true, simulated 200 times."""
    claims = [TableClaim(words="a claim", order=["a/x", f"c{k}/x"]) for k in range(10)]
    draws = (4 * uniforms(200 * 11, 16, "probe", 5)).round() / 4
    names, false = ["a/x", *(f"c{k}/x" for k in range(10))], 0
    for table in draws.reshape(200, 11, 16):
        cells = {name: measured(*row) for name, row in zip(names, table, strict=True)}
        false += any(j.verdict != "undecided" for j in judge(claims, cells, {}, {}, mini=True))
    assert false <= 17  # 5 % of 200 and two and a half standard errors
