"""`dbpkit check`: is a number from this model and these settings to be trusted?

It looks at the model, attacks it in ways that ought to agree, and runs the planned attackers for a while.
The thing people get wrong: a check that only looks at settings misses a broken gradient. This one attacks.
"""

import contextlib
import inspect
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dbpkit.checks.culprits import Plain
from dbpkit.checks.model import (
    CHECKS,
    PROBE_EXAMPLES,
    Check,
    check_fit,
    check_logits,
    planned_draws,
    purifier_flags,
    sees_noise,
)
from dbpkit.checks.short_attacks import SANITY, gradient_noise, more_iterations_help, shared_attacks
from dbpkit.evaluation.run import Progress, evaluate
from dbpkit.experiment.build import Parts, accepted_options, attack_options, build, of_attacks
from dbpkit.experiment.execution import DEFAULT_EXECUTION, Execution
from dbpkit.experiment.spec import DrawsSpec, EvaluationSpec
from dbpkit.experiment.state import state_changes, state_of
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.inputs import check_images, check_labels, check_length, check_outputs, whole
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.foundation.spec import PartSpec
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.results.flags import Flag
from dbpkit.results.run_directory import RunDirectory
from dbpkit.threats.pixels import L2, Linf, ThreatModel, check_threat

ITERATIONS = 5
"""Of every planned attack that has iterations: enough to see a loss rise, not to measure an accuracy."""

QUICK = of_attacks(eot=2, n_restarts=1, restarts=1, judge_draws=2, keep_draws=2, n_targets=2, queries=20)
"""Most that a check spends on other options of an attack."""

DEFAULT_THREAT = Linf(8 / 255)
"""The field's budget on CIFAR-10, also for short attacks where the threat is none of pixel values."""


class Checked(NamedTuple):
    """What a check found.

    Attributes:
        flags: every flag that came up.
        checks: names of the checks that ran, in their order.
    """

    flags: list[Flag]
    checks: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """What follows from the flags, in a sentence."""
        return verdict(self.flags)

    @property
    def trustworthy(self) -> bool:
        """Whether nothing must be mended."""
        return not any(f.severity == "error" for f in self.flags)


def check(
    model: nn.Module | RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel = DEFAULT_THREAT,
    noise: NoisePlan | None = None,
    eot: int = 10,
    progress: Progress = lambda *_: None,
) -> Checked:
    """Tells whether an attack on a model of your own would prove anything.

    First the model itself is looked at with the first 4 images: gradients, randomness, saturation. If
    nothing is broken, short attacks on all images must agree with each other. Modes, weights, buffers and the
    state of torch's generator are left as they were.

    Args:
        model: maps images in [0, 1] to logits (B, K). With an argument ``noise`` it is a randomised
            classifier such as `PurifiedClassifier`; without one it is taken to be deterministic, and flagged
            if it is not.
        x: images (B, C, H, W) in [0, 1]; 8 to 32 are enough.
        y: labels (B,).
        threat: the budget.
        noise: plan of the B images; ids 0 to B - 1 and seed 0 if not given.
        eot: draws per gradient that you plan to use.
        progress: called before every check.

    Returns:
        Flags, the names of the checks that ran, and a verdict.

    Raises:
        UserError: if images, labels, plan and model do not fit.

    Example:
        >>> import dbpkit
        >>> _, classifier = dbpkit.load_embedded()
        >>> data = dbpkit.load_dataset("embedded").select(slice(0, 4))
        >>> dbpkit.check(classifier, data.x(), data.labels).verdict
        'Trustworthy on these examples. Nothing suspicious was found.'
    """
    check_images(x, "check")
    check_labels(y, len(x), "check")
    check_threat(threat, "check")
    whole(eot, "eot", 1)
    noise = NoisePlan.of(0, range(len(x)), "select") if noise is None else noise
    check_length(noise, len(x), "check")
    if not callable(model) or isinstance(model, type):
        raise UserError(f"check needs a model that can be called, not {shown(model)}.")
    asked: RandomisedClassifier = model if _takes_noise(model) else Plain(model)
    with torch.no_grad(), _left_as_it_was(model):
        check_logits(
            asked(x[:PROBE_EXAMPLES], noise=noise.rows(slice(0, PROBE_EXAMPLES))), x[:PROBE_EXAMPLES], y
        )
        check_outputs(asked(x[:1], noise=noise.rows([0])), 1)  # a model may squeeze one image, not four
    sanity = {**_named(SANITY), "gradient_noise": cast(Check, partial(gradient_noise, eot=eot))}
    return _check(asked, x, y, noise, threat, sanity, progress)


def quick_check(
    spec: EvaluationSpec,
    examples: int = 8,
    execution: Execution = DEFAULT_EXECUTION,
    progress: Progress = lambda *_: None,
) -> Checked:
    """Checks a planned evaluation: the model, attacks that ought to agree, and its own attackers, all short.

    Args:
        spec: the evaluation that is planned; its knowledge settings run with one tape each.
        examples: how many of its examples are looked at.
        execution: device and batch sizes.
        progress: called whenever work is done.

    Returns:
        Every flag that came up, the names of the checks that ran, and a verdict. The attacks are left out if
        the model itself is broken.

    Raises:
        UserError: if the parts do not fit each other at all.
    """
    short = _shortened_spec(spec, min(examples, spec.examples.count or examples))
    parts = build(short, execution.device, execution.memory_bytes)
    x, y = parts.data.x().to(execution.device), parts.data.labels.to(execution.device)
    noise = NoisePlan.of(spec.seed, parts.data.ids, "select")
    check_fit(parts, x[:PROBE_EXAMPLES], y[:PROBE_EXAMPLES])
    found = _check(
        parts.model,
        x,
        y,
        noise,
        parts.threat,
        _planned(spec, parts),
        lambda done, what: progress(done / 2, what),
    )
    flags = [*found.flags, *purifier_flags(parts, spec)]
    if not found.trustworthy:
        return Checked(flags, found.checks)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "check")
        run.claim(short.model_dump(mode="json"))
        run.write_checks([], None)  # they have run above
        flags += evaluate(short, run.path, execution, lambda done, what: progress((1 + done) / 2, what)).flags
    return Checked(flags, (*found.checks, "planned_attacks"))


check_spec = quick_check
"""Its public name, `dbpkit.check_spec`: `check` looks at a model, this at a plan."""


def verdict(flags: Sequence[Flag]) -> str:
    """Says in a sentence what follows from the flags."""
    errors = sorted({f.name for f in flags if f.severity == "error"})
    if errors:
        return f"Do not trust a number from this set-up yet: mend {', '.join(errors)} first (docs/flags.md)."
    if flags:
        return "Nothing is broken; read the warnings before a long run (docs/flags.md)."
    return "Trustworthy on these examples. Nothing suspicious was found."


def _check(
    model: RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    noise: NoisePlan,
    threat: ThreatModel,
    sanity: dict[str, Check],
    progress: Progress,
) -> Checked:
    """All checks, and whether they left the model's state alone; it is put back in any case."""
    module = model.module if isinstance(model, Plain) else model
    with _left_as_it_was(model), shared_attacks():
        before = state_of(module)
        found = _staged(model, x, y, noise, threat, sanity, progress)
        return Checked([*found.flags, *state_changes(before, state_of(module))], found.checks)


def _staged(
    model: RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    noise: NoisePlan,
    threat: ThreatModel,
    sanity: dict[str, Check],
    progress: Progress,
) -> Checked:
    """The checks of the model on the first images; if none finds an error, the short attacks on all."""
    flags: dict[tuple[str, str], Flag] = {}
    names: list[str] = []
    few = slice(0, PROBE_EXAMPLES)
    probed = model, x[few], y[few], noise.rows(few), threat
    stages: list[tuple[dict[str, Check], Any]] = [
        (_named(CHECKS), probed),
        (sanity, (model, x, y, noise, threat if isinstance(threat, Linf | L2) else DEFAULT_THREAT)),
    ]
    total = sum(len(checks) for checks, _ in stages)
    for checks, arguments in stages:
        for name, one in checks.items():
            progress(len(names) / total, name)
            for flag in one(*arguments):
                flags.setdefault((flag.name, flag.row), flag)
            names.append(name)
            if ("untracked_randomness", "") in flags:  # every other check would see its noise
                return Checked(list(flags.values()), tuple(names))
        if any(f.severity == "error" for f in flags.values()):
            break
    return Checked(list(flags.values()), tuple(names))


def _planned(spec: EvaluationSpec, parts: Parts) -> dict[str, Check]:
    """The sanity checks with a spec's attack and draws; of random models only where one is seen."""
    checks = _named(SANITY)
    eot = planned_draws(parts, spec)
    if eot:
        checks["gradient_noise"] = partial(gradient_noise, eot=eot)
    elif not sees_noise(parts, spec):
        del checks["gradient_noise"], checks["worst_of_n_control"]
    options = {a.name: {**accepted_options(a.name), **attack_options(a)} for a in spec.attacks}
    iterated = next((a for a in spec.attacks if "iterations" in options[a.name]), None)
    if iterated is not None:
        checks["more_iterations_help"] = partial(
            more_iterations_help, attack=iterated.name, options=attack_options(iterated)
        )
    return checks


def _shortened_spec(spec: EvaluationSpec, count: int) -> EvaluationSpec:
    """The spec on a few examples, with short attacks, few draws and one tape."""
    draws = DrawsSpec(report=min(4, spec.draws.report), select=min(2, spec.draws.select))
    return spec.model_copy(
        update={
            "examples": spec.examples.model_copy(update={"count": count}),
            "draws": draws,
            "attacks": [_shortened(a) for a in spec.attacks],
            "knowledge": [k.model_copy(update={"tapes": 1}) for k in spec.knowledge],
        }
    )


def _shortened(attack: PartSpec) -> PartSpec:
    """The attack with `ITERATIONS`, and with every option of `QUICK` it has unless the spec asks for less."""
    options = {**accepted_options(attack.name), **attack_options(attack)}
    quick = {k: v if options[k] is None else min(v, options[k]) for k, v in QUICK.items() if k in options}
    if "iterations" in options:
        quick["iterations"] = ITERATIONS
    return PartSpec(name=attack.name, options={**attack.options, **quick})


def _named(checks: Sequence[Any]) -> dict[str, Check]:
    return {one.__name__: one for one in checks}


def _takes_noise(model: Any) -> bool:
    """Whether a model has the argument of a randomised classifier."""
    call = model.forward if isinstance(model, nn.Module) else model
    try:
        return "noise" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # written in C, and silent about itself
        return False


@contextlib.contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """Inside the block, torch's generator is seeded; afterwards it and the model's buffers are restored."""
    module = model.module if isinstance(model, Plain) else model
    buffers = dict(module.named_buffers()) if isinstance(module, nn.Module) else {}
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    device = next((b.device for b in buffers.values()), None)
    try:
        with seeded_generator(0, device):
            yield
    finally:
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
