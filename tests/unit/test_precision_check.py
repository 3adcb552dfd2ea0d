"""What `dbpkit check` tells of precisions: its test of verdicts, its notes, and when it raises a flag."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from dbpkit import Linf, NoisePlan, PurifiedClassifier, Purifier, Undefended, check, precise
from dbpkit.checks import Note, Probe, checks, run_check
from dbpkit.checks import precision as checked
from dbpkit.models.denoisers import EDMDenoiser
from dbpkit.statistics.binomial import exceeds
from tests.oracles import TinyClassifier, TinyNetwork, uniform

X, Y, NOISE = uniform(4, 1, 4, 4).float(), torch.tensor([0, 1, 2, 0]), NoisePlan.of(0, [3, 5, 7, 9], "select")


class Offset(nn.Module):
    """Logits far from 0 that differ little: bfloat16 rounds a product near 1,000 to a multiple of 4."""

    def __init__(self, offset: float = 1000.0) -> None:
        super().__init__()
        self.body = nn.Linear(16, 3)
        self.body.weight.data.copy_(torch.linspace(0, 40, 48).sin().view(3, 16))
        self.body.bias.data.fill_(offset)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, 3)."""
        return self.body(x.flatten(1))


def probe_of(classifier: nn.Module, purified: bool = False) -> Probe:
    model = Undefended(classifier)
    if purified:
        network = EDMDenoiser(TinyNetwork().float())
        model = PurifiedClassifier(Purifier(network, "ddpm", steps=50), classifier)
    return Probe(model, X, Y, NOISE, Linf(8 / 255))


# ------------------------------------------------------------------ the test


@pytest.mark.parametrize(
    ("a", "b"), [([3, 0, 2], [1, 1, 0]), ([0, 0], [0, 0]), ([1, 2, 3, 4], [0, 0, 0, 0]), ([0, 1], [2, 2])]
)
def test_exceeds_is_the_share_of_sign_patterns_that_reach_the_observed_sum(
    a: list[int], b: list[int]
) -> None:
    differences = [x - y for x, y in zip(a, b, strict=True)]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(a))
    ]
    assert exceeds(a, b) == pytest.approx(sum(s >= sum(differences) for s in sums) / len(sums))


def counts(step: int, shares: Tensor, sets: int) -> list[list[int]]:
    """Verdicts of each of 8 images, of 4, that change with the image's own probability: (sets, 8)."""
    u = NoisePlan.of(step, range(sets)).uniform("probe", step, torch.zeros(sets, 8, 4))
    return (u < shares[None, :, None]).sum(dim=2).tolist()


def test_flag_is_raised_by_fresh_draws_alone_no_more_often_than_its_level() -> None:
    """8 images of very different stability; with whole counts the level is used up to a fifth."""
    sets, shares = 4000, torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.5, 0.9])
    pairs = zip(counts(1, shares, sets), counts(2, shares, sets), strict=True)
    false = sum(exceeds(a, b) <= checked.LEVEL for a, b in pairs) / sets
    assert 0 < false < 0.02 < checked.LEVEL
    worse = zip(counts(1, (4 * shares).clamp(max=0.9), sets), counts(2, shares, sets), strict=True)
    assert sum(exceeds(a, b) <= checked.LEVEL for a, b in worse) / sets > 0.5


def test_time_is_decided_for_equal_precisions_no_more_often_than_said() -> None:
    """All of `PAIRS` ratios on one side of their median: twice 2 ** -PAIRS."""
    assert 2 * 0.5**checked.PAIRS < 0.05


# ------------------------------------------------------------------ notes and flags


def test_note_of_float32_is_of_the_other_precisions_and_no_flag() -> None:
    found = run_check(checks.get("precision"), probe_of(Offset()))
    (note,) = found
    assert isinstance(note, Note)
    assert note.text.startswith("In bfloat16: logits differ by up to 0.")
    assert "of 8 verdicts change, a network call takes" in note.text


def test_bfloat16_that_is_chosen_is_flagged_where_it_changes_verdicts_and_nothing_is_random() -> None:
    with precise("bfloat16"):
        found = run_check(checks.get("precision"), probe_of(Offset()))
        fine = run_check(checks.get("precision"), probe_of(Offset(0.0)))
    (flag,) = (f for f in found if not isinstance(f, Note))
    assert (flag.name, flag.severity) == ("precision_changes_verdicts", "warning")
    assert "of 8 verdicts of float32; nothing else is random" in flag.message
    assert [type(f) for f in fine] == [Note]


def test_random_model_is_compared_with_its_fresh_draws() -> None:
    with precise("bfloat16"):
        (note,) = run_check(checks.get("precision"), probe_of(TinyClassifier().float(), purified=True))
    assert "of 16 verdicts change, " in note.text
    assert " by a fresh draw, a network call takes " in note.text


def test_tf32_on_a_cpu_is_told_to_be_float32() -> None:
    with precise("tf32"):
        notes = run_check(checks.get("precision"), probe_of(Offset()))
    assert notes[-1] == Note("In tf32: a CPU has none, so everything is computed in float32.")


def test_check_of_a_module_carries_the_notes() -> None:
    found = check(TinyClassifier().float(), X, Y, threat=Linf(0.1))
    assert "precision" in found.checks
    assert "precision_changes_verdicts" in found.words
    assert sum(note.startswith("In bfloat16") for note in found.notes) == 1


@pytest.mark.parametrize("name", ["derivative", "jacobian"])
def test_gradients_are_compared_in_float32_whatever_is_chosen(name: str) -> None:
    """Rounded to bfloat16 these logits are multiples of 4, and their differences nothing but rounding."""
    with precise("bfloat16"):
        assert run_check(checks.get(name), probe_of(Offset())) == []
