"""Protocols: what is counted, its control, and the judging of iterates, against counts made by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dbpkit.experiment.build  # noqa: F401 - registers everything a spec may name
from dbpkit import EvaluationSpec, Linf, NoisePlan, PurifiedClassifier, Purifier, Target, UserError, read_spec
from dbpkit.attacks import attacks
from dbpkit.data import datasets
from dbpkit.evaluation.cost import network_calls
from dbpkit.evaluation.watch import Watch
from dbpkit.experiment.build import accepted_options
from dbpkit.foundation.spec import spec_hash, validate
from dbpkit.models.sources import classifier_sources, denoiser_sources
from dbpkit.purification.samplers import samplers
from dbpkit.purification.views import gradients
from dbpkit.results.protocols import headline, protocol_flags, protocols
from dbpkit.statistics.estimates import any_iterate, wilson
from dbpkit.threats.pixels import threats
from tests import parts
from tests.oracles import CountingDenoiser, GaussianDenoiser, case_name, few_steps, sampler_cases

ROOT = Path(__file__).parents[2]
NAMES = ("one_shot", "worst_of_n", "majority", "while_optimising")


def record(predicted: list[int], example: int = 0, tape: int = 0, **more: Any) -> dict[str, Any]:
    """A record whose label is 0."""
    return {"row": "white_box", "tape": tape, "example": example, "label": 0, "predicted": predicted, **more}


def watched(failed_at: int | None, control: int | None, queries: int = 12, **more: Any) -> dict[str, Any]:
    return record([0, 0, 1], queries=queries, failed_at=failed_at, control_failed_at=control, **more)


@pytest.mark.parametrize(
    ("predicted", "held"),
    [
        ([0, 0, 0, 0], (1.0, 1.0, 1.0)),
        ([0, 0, 0, 1], (0.75, 0.0, 1.0)),
        ([0, 0, 1, 1], (0.5, 0.0, 0.0)),  # a tie counts against the defence
        ([0, 1, 2, 0], (0.5, 0.0, 1.0)),
        ([1, 1, 1, 1], (0.0, 0.0, 0.0)),
    ],
)
def test_protocol_of_one_image_counts_as_by_hand(
    predicted: list[int], held: tuple[float, float, float]
) -> None:
    assert tuple(protocols.get(name).held(record(predicted)) for name in NAMES[:3]) == held


def test_while_optimising_holds_only_if_no_query_failed() -> None:
    protocol = protocols.get("while_optimising")
    assert protocol.held(watched(None, None)) == 1
    assert protocol.held(watched(12, None)) == 0
    assert protocol.held(record([0, 0, 0])) == 1  # a row without an attack: its image alone
    assert protocol.held(record([0, 1, 0])) == 0


def test_protocols_are_listed_with_a_sentence() -> None:
    assert set(NAMES) <= set(protocols)
    assert all(protocols.describe()[name].endswith(".") for name in NAMES)


def test_headline_worst_of_n_is_beside_as_many_clean_draws() -> None:
    rows = [record([0, 0, 0], 1), record([0, 1, 0], 2), record([1, 1, 1], 3), record([0, 0, 0], 4)]
    clean = [record([0, 0, 0, 1], 1), *(record([0, 0, 0, 0], i) for i in (2, 3)), record([0, 1, 0, 0], 4)]
    found = headline(protocols.get("worst_of_n"), "white_box", rows, clean)
    assert (found.estimate.estimand, found.estimate.value, found.estimate.examples) == ("all_draws@3", 0.5, 4)
    assert found.control is not None
    assert found.control.value == 3 / 4  # the fourth draw of example 1 is not asked
    assert (found.control.low, found.control.high) == pytest.approx(wilson(0.75, 4))


def test_headline_of_known_noise_is_beside_the_draw_that_was_known() -> None:
    rows = [record([0], 1, tape) for tape in (0, 1)]
    clean = [record([1, 0, 0], 1)]
    found = headline(protocols.get("worst_of_n"), "fixed", rows, clean)
    assert found.estimate.value == 1
    assert found.control is not None
    assert found.control.value == 0.5  # tape 0 is report draw 0, tape 1 is draw 1


@pytest.mark.parametrize("row", ["clean", "noise_control", "undefended_clean"])
def test_headline_of_unattacked_rows_has_no_control(row: str) -> None:
    found = headline(protocols.get("worst_of_n"), row, [record([0, 1])], [record([0, 1])])
    assert found.control is None


def test_headline_without_enough_clean_draws_has_no_control() -> None:
    assert headline(protocols.get("majority"), "white_box", [record([0, 0])], [record([0])]).control is None
    assert headline(protocols.get("majority"), "white_box", [record([0, 0])], []).control is None


def test_headline_while_optimising_counts_queries_and_its_own_control() -> None:
    rows = [watched(None, None, example=1), watched(3, None, example=2), watched(1, 7, example=3)]
    found = headline(protocols.get("while_optimising"), "white_box", rows, [])
    assert (found.estimate.estimand, found.estimate.value) == ("any_iterate@12", 1 / 3)
    assert found.control is not None
    assert found.control.value == 2 / 3
    assert any_iterate([None, 3, 1], [12, 12, 8]) == found.estimate


def test_headline_one_shot_is_per_draw_and_has_no_control() -> None:
    found = headline(protocols.get("one_shot"), "white_box", [record([0, 1])], [record([0, 0])])
    assert (found.estimate.estimand, found.estimate.value, found.control) == ("per_draw", 0.5, None)


@pytest.mark.parametrize(("clean_right", "flagged"), [(3, False), (1, True)])
def test_control_nearly_as_low_is_flagged(clean_right: int, flagged: bool) -> None:
    """Clean 93.75 or 81.25 %; of 4 images the attack leaves 0, the protocol alone 3 or 1."""
    clean = [record([0] * 4, i) for i in range(clean_right)]
    clean += [record([0, 0, 0, 1], i) for i in range(clean_right, 4)]
    rows = [record([1] * 4, i) for i in range(4)]
    flags = protocol_flags(protocols.get("worst_of_n"), "white_box", rows, clean)
    assert [f.name for f in flags] == ["control_as_low"] * flagged
    assert not protocol_flags(protocols.get("one_shot"), "white_box", rows, clean)


def test_control_of_a_robust_deterministic_defence_is_not_flagged() -> None:
    rows = [record([0], i) for i in range(4)]
    assert not protocol_flags(protocols.get("worst_of_n"), "dw_both", rows, rows)


def test_spec_default_protocol_is_no_part_of_the_identity_of_a_run() -> None:
    spec = EvaluationSpec()
    assert "protocol" not in spec.identity()
    other = spec.model_copy(update={"protocol": "majority"})
    assert other.model_dump(mode="json")["protocol"] == "majority"
    assert spec_hash(other) != spec_hash(spec)


def test_spec_unknown_protocol_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown protocol 'majoriti'\. Did you mean 'majority'\?"):
        validate({"protocol": "majoriti"}, EvaluationSpec, "mine")


class Chance(nn.Module):
    """Wrong with a fixed probability whatever the image: a random defence that no attack can make worse."""

    sites = frozenset({"forward"})

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.wrong = wrong
        self.plans: list[NoisePlan] = []

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, 2) of label 0."""
        self.plans.append(noise)
        missed = noise.uniform("forward", 0, x[:, 0, 0, 0]) < self.wrong
        return torch.stack([~missed, missed], dim=1).float()


def watch_of(model: nn.Module, count: int, draws: int = 2) -> tuple[Watch, Tensor, NoisePlan]:
    """A watch over grey images of label 0, the images, and an attack's plan of them."""
    x = torch.full((count, 3, 2, 2), 0.5)
    report = NoisePlan.of(3, range(10, 10 + count)).in_lane(1)
    labels = torch.zeros(count, dtype=torch.long)
    return Watch(Target(model), x, labels, report, Linf(0.1), draws), x, report.on("attack")


def test_watch_random_defence_falls_with_the_queries_even_unattacked() -> None:
    """With a chance q to be right, N independent queries all hold with probability q^N: 0.97^40 = 0.296."""
    watch, x, noise = watch_of(Chance(0.03), 400)
    for i in range(20):
        watch(x, noise.at(i))
    found = watch.records(deterministic=False)
    assert {r["queries"] for r in found} == {40}
    expected, spread = 0.97**40, 3 * (0.296 * 0.704 / 400) ** 0.5
    for key in ("failed_at", "control_failed_at"):
        assert sum(r[key] is None for r in found) / 400 == pytest.approx(expected, abs=spread)
    both = sum(r["failed_at"] is None and r["control_failed_at"] is None for r in found) / 400
    assert both == pytest.approx(expected**2, abs=spread)  # the control's draws are its own


def test_watch_no_draw_is_used_twice_or_by_a_score() -> None:
    model = Chance(0.0)
    watch, x, noise = watch_of(model, 2)
    for i in range(3):
        watch(x, noise.at(i))
    watch.control(deterministic=False)
    keys = [
        (plan.stream, plan.lane, example, draw)
        for plan in model.plans
        for example, draw in zip(plan.example_ids.tolist(), plan.draw.tolist(), strict=True)
    ]
    assert len(keys) == len(set(keys)) == 2 * 2 * 3 * 2  # images, control, iterates, queries of each
    assert {stream for stream, *_ in keys} == {"report"}
    assert 0 not in {lane for _, lane, *_ in keys}  # lane 0 is the published score's


def test_watch_numbers_the_first_wrong_query_and_asks_no_more() -> None:
    model = Chance(0.4)
    watch, x, noise = watch_of(model, 1, draws=3)
    for i in range(8):
        watch(x, noise.at(i))
    answers = [bool(a) for plan in model.plans for a in plan.uniform("forward", 0, torch.zeros(3)) < 0.4]
    assert watch.failed_at[10] == answers.index(True) + 1
    assert len(model.plans) == (answers.index(True)) // 3 + 1
    assert watch.shown[10] == 8


def test_watch_is_the_same_for_subsets_in_any_order() -> None:
    whole, x, noise = watch_of(Chance(0.2), 6)
    parted, _, _ = watch_of(Chance(0.2), 6)
    for i in range(4):
        whole(x, noise.at(i))
    for rows in ([5, 1], [0], [4, 3, 2]):
        for i in range(4):
            parted(x[rows], noise.at(i).rows(rows))
    assert parted.records(deterministic=False) == whole.records(deterministic=False)


def test_watch_projects_what_it_is_shown_and_refuses_nan() -> None:
    seen: list[Tensor] = []

    class Seeing(Chance):
        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            seen.append(x)
            return super().forward(x, noise=noise)

    watch, x, noise = watch_of(Seeing(0.0), 2)
    watch(x + 0.5, noise)
    assert float((seen[0] - 0.6).abs().max()) < 1e-6
    with pytest.raises(FloatingPointError, match="not finite"):
        watch(x * torch.nan, noise)


def test_watch_attack_that_shows_nothing_is_judged_by_its_image() -> None:
    watch, x, noise = watch_of(Chance(0.0), 3)
    watch(x[:1], noise.rows([0]))
    watch.at_least({10: 0, 11: 0, 12: 0}, x, noise)
    assert watch.shown == {10: 1, 11: 1, 12: 1}


@pytest.mark.parametrize(
    ("sampler", "options", "calls"),
    [
        ("ddpm", {}, 11),
        ("ddim", {}, 11),
        ("one_step", {}, 1),
        ("heun", {}, 199),  # two calls a step, one in the last
        ("vpsde", {}, 11),
        ("vpsde", {"corrector_steps": 1}, 22),
    ],
)
def test_network_calls_are_those_that_are_made(sampler: str, options: dict[str, Any], calls: int) -> None:
    denoiser = CountingDenoiser(GaussianDenoiser())
    model = PurifiedClassifier(Purifier(denoiser, sampler, steps=100, options=options), parts.ChannelMean())
    before = model.purifier.sampler
    assert network_calls(model, torch.full((1, 3, 4, 4), 0.5), NoisePlan.of(0, [0])) == calls
    assert denoiser.calls == calls
    assert model.purifier.sampler is before


@pytest.mark.parametrize(("name", "options"), sampler_cases(), ids=case_name)
def test_network_calls_that_a_target_tells_are_those_that_are_made(
    name: str, options: dict[str, Any]
) -> None:
    for t_star in (0.1, [0.06, 0.14]) if samplers.get(name).by_row else (0.1,):
        purifier = Purifier(GaussianDenoiser(), name, t_star=t_star, steps=few_steps(name), options=options)
        model = PurifiedClassifier(purifier, parts.ChannelMean())
        made = network_calls(model, torch.full((1, 3, 8, 8), 0.5), NoisePlan.of(0, [0]))
        assert Target(model).calls == made
        assert Target(gradients.get("bpda")(model)).calls == made


@pytest.mark.parametrize(
    ("view", "options", "calls"),
    [("exact", {}, 11), ("bpda", {}, 11), ("surrogate", {"steps": 50}, 6), ("blind", {}, 1)],
)
def test_network_calls_of_a_view_are_its_own(view: str, options: dict[str, Any], calls: int) -> None:
    model = PurifiedClassifier(Purifier(GaussianDenoiser(), "ddpm", steps=100), parts.ChannelMean())
    seen = gradients.get(view)(model, **options)
    assert network_calls(seen, torch.full((1, 3, 4, 4), 0.5), NoisePlan.of(0, [0])) == calls


@pytest.mark.parametrize("path", sorted((ROOT / "specs").glob("*.toml")), ids=lambda p: p.name)
def test_published_spec_names_exist(path: Path) -> None:
    spec = read_spec(path, EvaluationSpec)
    assert path.read_text().startswith("#")
    for registry, name in (
        (datasets, spec.data.name),
        (classifier_sources, spec.classifier.name),
        (denoiser_sources, spec.denoiser.name),
        (samplers, spec.purifier.sampler),
        (threats, spec.threat.norm),
        (protocols, spec.protocol),
    ):
        assert name in registry or name.endswith(".safetensors")
    for knowledge in spec.knowledge:
        assert knowledge.gradient in gradients
        assert knowledge.resolve().sites is not None
    for attack in spec.attacks:
        assert attack.name in attacks
        assert set(attack.options) <= set(accepted_options(attack.name))
