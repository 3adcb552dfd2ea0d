"""Exact binomial probabilities, and the test of paired answers that rests on them."""

from collections.abc import Sequence

from scipy import special


def at_most(count: int, trials: int, share: float) -> float:
    """Returns the probability that a binomial count is at most ``count``.

    Args:
        count: any whole number; below 0 has probability 0.
        trials: how many, at least 0.
        share: probability of each in [0, 1].
    """
    return 0.0 if count < 0 else float(special.bdtr(min(count, trials), trials, share))


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """Exact two-sided p-value of McNemar's test that a and b are right equally often.

    Only pairs in which one is right and the other wrong count; without a difference each is a fair coin.

    Args:
        a: 1 where one run was right, else 0; one draw per example.
        b: those of the other, in the same order.

    Returns:
        The p-value in (0, 1]; 1 if no pair is discordant.

    Raises:
        ValueError: if the lengths differ or a value is neither 0 nor 1.

    Source:
        McNemar 1947, Psychometrika 12:153; exact binomial form.
    """
    if {*a, *b} - {0, 1}:
        raise ValueError("McNemar's test is for single draws: every value must be 0 or 1.")
    pairs = list(zip(a, b, strict=True))
    only_a, only_b = (sum(pair == one for pair in pairs) for one in ((1, 0), (0, 1)))
    return min(1.0, 2 * at_most(min(only_a, only_b), only_a + only_b, 0.5))


def exceeds(a: Sequence[int], b: Sequence[int]) -> float:
    """Exact one-sided p-value that the counts of a are not larger than those of b, pair by pair.

    If the two counts of a pair come from one distribution, whichever, each difference has either sign with
    probability 1/2; the p-value is the share of sign patterns whose sum is at least the observed one. So it
    is at most any level with at most that probability, however the pairs differ among each other.

    Args:
        a: whole numbers.
        b: as many, in the same order.

    Returns:
        The p-value in (0, 1]; 1 if no pair differs.

    Source:
        Fisher 1935, The Design of Experiments, section 21 (the randomisation test of paired differences).
    """
    sums = {0: 1.0}
    for size in (abs(x - y) for x, y in zip(a, b, strict=True)):
        longer: dict[int, float] = {}
        for total, share in sums.items():
            for end in (total - size, total + size):
                longer[end] = longer.get(end, 0.0) + share / 2
        sums = longer
    observed = sum(a) - sum(b)
    return min(1.0, sum(share for total, share in sums.items() if total >= observed))
