"""The registry of checks: their words, their order, what they look at, and what they may return."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from dbpkit import Linf, NoisePlan, Undefended, UserError
from dbpkit.attacks import AttackOutcome
from dbpkit.checks import STAGES, Check, Checked, Flag, Planned, Probe, attacking, checks, run_check
from tests.oracles import NoisyClassifier, TinyClassifier, uniform

PROBE = Probe(
    Undefended(TinyClassifier()),
    uniform(4, 1, 4, 4),
    torch.tensor([0, 1, 2, 0]),
    NoisePlan.of(0, [3, 5, 7, 9], "select"),
    Linf(0.1),
)
FLAG = Flag("odd", "warning", "It is odd.")


def check_of(look: Any) -> Check:
    return Check("odd", "model", look, "it is even", "Make it even.")


@pytest.mark.parametrize("name", sorted(checks))
def test_every_check_has_a_stage_and_words(name: str) -> None:
    check = checks.get(name)
    assert (check.name, check.stage in STAGES) == (name, True)
    assert check.expects[0].islower()
    assert check.expects[-1] not in ".!"
    assert check.remedy[0].isupper()
    assert check.remedy.endswith(".")
    assert check.look.__doc__


def test_describe_says_stage_expectation_and_remedy() -> None:
    said = checks.describe()["probabilities"]
    assert said.startswith("model: the classifier returns logits, not probabilities. Else: Return ")


def test_of_leaves_out_what_needs_noise_where_no_attacker_meets_any() -> None:
    every, known = (
        {c.name for c in checks.of("short attacks", replace(PROBE, planned=Planned(sees_noise=sees)))}
        for sees in (True, False)
    )
    assert every - known == {"gradient_noise", "worst_of_n_control"}


def test_of_leaves_out_what_needs_a_diffusion_chain_where_none_purifies() -> None:
    names = {c.name for stage in STAGES for c in checks.of(stage, PROBE)}
    assert "derivative" in names
    assert not names & {"denoiser_mismatch", "replay", "suspicious_level"}


def test_of_keeps_the_order_of_the_checks() -> None:
    """Flags are recorded in it. A plugin's checks come after these."""
    first = [
        "probabilities",
        "untracked_randomness",
        "batch_dependence",
        "piecewise_constant",
        "saturated_loss",
        "squashed_outputs",
        "derivative",
        "jacobian",
    ]
    assert [c.name for c in checks.of("model", PROBE)][: len(first)] == first
    short = [c.name for c in checks.of("short attacks", PROBE)]
    assert short[:2] == ["better_than_chance", "loss_falls_along_gradient"]
    assert short.index("unbounded_attack_fails") < short.index("gradient_noise")


def test_add_unknown_stage_raises_with_the_stages() -> None:
    with pytest.raises(UserError, match=r"unknown stage of a check 'modle'\. Did you mean 'model'"):
        checks.add("odd", stage="modle", expects="", remedy="")  # type: ignore[arg-type]


def test_add_taken_name_raises() -> None:
    with pytest.raises(UserError, match="check 'probabilities' is registered twice"):
        checks.add("probabilities", stage="model", expects="", remedy="")(lambda _probe: [])


def test_run_check_takes_any_iterable_of_flags() -> None:
    def generated(probe: Probe) -> Iterator[Flag]:
        yield FLAG

    assert run_check(check_of(generated), PROBE) == [FLAG]


@pytest.mark.parametrize(
    ("returned", "said"),
    [(None, "a list of flags, not NoneType"), (["odd"], "must return flags, not str")],
)
def test_run_check_that_returns_anything_else_raises(returned: Any, said: str) -> None:
    with pytest.raises(UserError, match=f"check 'odd' must return {said.removeprefix('must return ')}"):
        run_check(check_of(lambda _probe: returned), PROBE)


def test_probe_first_takes_images_labels_and_noise_together() -> None:
    few = PROBE.first(2)
    assert len(few) == 2
    assert torch.equal(few.x, PROBE.x[:2])
    assert few.y.tolist() == [0, 1]
    assert few.noise.example_ids.tolist() == [3, 5]
    assert len(PROBE) == 4, "a probe is a value"


def test_probe_is_random_where_outputs_depend_on_the_draw() -> None:
    assert not PROBE.is_random()
    assert PROBE.of(NoisyClassifier(TinyClassifier())).is_random()


def test_checked_then_notes_who_raised_a_flag_and_what_to_do() -> None:
    found = Checked([], ()).then([], "derivative").then([FLAG], "probabilities")
    assert found.checks == ("derivative", "probabilities")
    assert found.remedies == {"probabilities": "Return the values before the softmax."}
    assert found.words["gradient_mismatch"] == "the exact gradient agrees with a numeric derivative"
    assert found.trustworthy


def test_what_to_do_stands_under_the_name_of_the_flag_and_not_of_its_check() -> None:
    guessed = Flag("schedule_assumed", "warning", "The schedule is a guess.")
    assert list(Checked([], ()).then([guessed], "assumptions").remedies) == ["schedule_assumed"]
    foreign = Flag("of_nobody", "warning", "A flag that its check is not known for.")
    assert list(Checked([], ()).then([foreign], "derivative").remedies) == ["derivative"]


def test_check_that_raised_another_flag_is_not_said_to_be_in_order() -> None:
    zero = Flag("zero_gradient", "error", "The gradient is zero.")
    assert "gradient_mismatch" not in Checked([], ()).then([zero], "derivative").words
    own = Flag("gradient_mismatch", "error", "They disagree.")
    assert "gradient_mismatch" in Checked([], ()).then([own], "derivative").words


def test_attack_that_checks_share_may_have_lists_among_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(name: str, options: dict[str, Any]) -> Any:
        made.append((name, options["sizes"]))
        return lambda target, x, y, *, threat, noise: AttackOutcome(x, x[:, 0, 0], x[:, 0, 0])

    monkeypatch.setattr(attacking, "make_attack", make)
    monkeypatch.setattr(attacking, "accepted_options", lambda name: {})
    with attacking.shared_attacks():
        for sizes in ([1, 2], [1, 2], [3]):
            attacking.attacked(PROBE, "mine", {"sizes": sizes})
    assert made == [("mine", [1, 2]), ("mine", [3])]


def test_checked_once_keeps_the_first_flag_of_each_name_and_row() -> None:
    rows = [FLAG, FLAG._replace(row="white_box"), FLAG._replace(message="again")]
    assert Checked(rows, ()).once().flags == rows[:2]
