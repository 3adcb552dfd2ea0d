"""`dbpkit check`: is a number from this model and these settings to be trusted?

It looks at the model, attacks it in ways that ought to agree, and runs the planned attackers for a while. A
check that only looks at settings misses a broken gradient; this one attacks.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.checks import Checked, Planned, Probe, checks, run_check
from dbpkit.checks.attacking import shared_attacks
from dbpkit.checks.culprits import Plain
from dbpkit.checks.fit import check_fit, check_logits
from dbpkit.checks.preflight import DENOISED_EXAMPLES, PROBE_EXAMPLES, check_settings, probe_of
from dbpkit.evaluation.run import Progress, evaluate
from dbpkit.experiment.build import accepted_options, attack_options, build, of_attacks
from dbpkit.experiment.execution import Execution, check_execution, kernels
from dbpkit.experiment.spec import AttackSpec, DrawsSpec, EvaluationSpec
from dbpkit.experiment.state import state_changes, state_of
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.inputs import check_images, check_labels, check_length, check_outputs, whole
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.foundation.precision import current_precision, precise
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.purification.purifier import takes_noise
from dbpkit.results.run_directory import RunDirectory
from dbpkit.threats.pixels import L2, Linf, ThreatModel, check_threat

ITERATIONS = 5
"""Of every planned attack that has iterations: enough to see a loss rise, not to measure an accuracy."""

QUICK = of_attacks(eot=2, n_restarts=1, restarts=1, judge_draws=2, keep_draws=2, n_targets=2, queries=20)
"""Most that a check spends on other options of an attack."""

DEFAULT_THREAT = Linf(8 / 255)
"""The field's budget on CIFAR-10, also for short attacks where the threat is none of pixel values."""


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
    asked: RandomisedClassifier = model if takes_noise(model) else Plain(model)
    with precise(current_precision()):
        with torch.no_grad(), _left_as_it_was(model):
            check_logits(
                asked(x[:PROBE_EXAMPLES], noise=noise.rows(slice(0, PROBE_EXAMPLES))), x[:PROBE_EXAMPLES], y
            )
            check_outputs(asked(x[:1], noise=noise.rows([0])), 1)  # a model may squeeze one image, not four
        return _check(Probe(asked, x, y, noise, threat, Planned(eot=eot)), progress)


def quick_check(
    spec: EvaluationSpec,
    examples: int = 8,
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
) -> Checked:
    """Checks a planned evaluation: the model, attacks that ought to agree, and its own attackers, all short.

    Args:
        spec: the evaluation that is planned; its knowledge settings run with one tape each.
        examples: how many of its examples are looked at.
        execution: device and batch sizes; None takes a GPU if there is one, and what is fastest there.
        progress: called whenever work is done.

    Returns:
        Every flag that came up, the names of the checks that ran, and a verdict. The attacks are left out if
        the model itself is broken.

    Raises:
        UserError: if the parts do not fit each other at all.
    """
    execution = check_execution(execution)
    with kernels(execution.deterministic, spec.precision):
        return _checked(spec, examples, execution, progress)


def _checked(spec: EvaluationSpec, examples: int, execution: Execution, progress: Progress) -> Checked:
    """All checks of a planned evaluation, in its precision."""
    short = _shortened_spec(spec, min(examples, spec.examples.count or examples))
    parts = build(short, execution.device, execution.budget)
    probe = probe_of(parts, spec, len(parts.data))
    check_fit(parts, probe.x[:PROBE_EXAMPLES], probe.y[:PROBE_EXAMPLES])
    found = check_settings(probe, _check(probe, lambda done, what: progress(done / 2, what)))
    if not found.trustworthy:
        return found
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "check")
        run.claim(short.model_dump(mode="json"))
        run.write_checks([], None)  # they have run above
        made = evaluate(short, run.path, execution, lambda done, what: progress((1 + done) / 2, what))
    return found.then(made.flags, "planned_attacks")


check_spec = quick_check
"""Its public name, `dbpkit.check_spec`: `check` looks at a model, this at a plan."""


def _check(probe: Probe, progress: Progress) -> Checked:
    """All checks, and whether they left the model's state alone; it is put back in any case."""
    model = probe.model
    module = model.module if isinstance(model, Plain) else model
    with _left_as_it_was(model), shared_attacks():
        before = state_of(module)
        found = _staged(probe, progress).once()
        return found.then(state_changes(before, state_of(module)))


def _staged(probe: Probe, progress: Progress) -> Checked:
    """The checks of the model and its behaviour; if none finds an error, the short attacks on all images."""
    pixels = probe if isinstance(probe.threat, Linf | L2) else probe.under(DEFAULT_THREAT)
    few = replace(probe.first(PROBE_EXAMPLES), more=probe.first(DENOISED_EXAMPLES))
    stages = [
        (checks.of("model", probe), few),
        (checks.of("behaviour", probe), probe),
        (checks.of("short attacks", probe), pixels),
    ]
    total = sum(len(chosen) for chosen, _ in stages)
    found = Checked([], ())
    for chosen, images in stages:
        for one in chosen:
            progress(len(found.checks) / total, one.name)
            found = found.then(run_check(one, images), one.name)
            if any((f.name, f.row) == ("untracked_randomness", "") for f in found.flags):
                return found  # every other check would see its noise
        if chosen is not stages[0][0] and not found.trustworthy:
            break  # an attack on a broken model shows nothing new
    return found


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


def _shortened(attack: AttackSpec) -> AttackSpec:
    """The attack with `ITERATIONS`, and with every option of `QUICK` it has unless the spec asks for less."""
    options = {**accepted_options(attack.name), **attack_options(attack)}
    quick = {k: v if options[k] is None else min(v, options[k]) for k, v in QUICK.items() if k in options}
    if "iterations" in options:
        quick["iterations"] = ITERATIONS
    return attack.model_copy(update={"options": {**attack.options, **quick}})


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
