"""What is looked at before every run: whether all fits, what the model is, and its settings.

`docs/reference/flags.md` explains every flag.
"""

import json
from collections.abc import Callable
from dataclasses import replace

from dbpkit.checks.check import Checked, Planned, Probe, checks, run_check
from dbpkit.checks.draws import EOT_DRAWS, gradient_noise
from dbpkit.checks.fit import check_fit
from dbpkit.checks.outputs import undone
from dbpkit.experiment.build import Parts, accepted_options, attack_options, make_view
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.noise import NoisePlan

PROBE_EXAMPLES = 4
DENOISED_EXAMPLES = 8
"""Images that a denoiser alone is asked about, at one call each."""

NOISE_EXAMPLES = 2
"""Images whose gradients are drawn again and again before a run."""


class SharedPreflight:
    """`preflight` for several runs of one process, which looks at the same model on the same images once.

    The settings of every run are checked, and the noise of the gradient once for every attack and budget.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Checked] = {}

    def __call__(self, parts: Parts, spec: EvaluationSpec, progress: Callable[[float, str], None]) -> Checked:
        """Runs the checks that no earlier run has had."""
        return preflight(parts, spec, progress, self._seen)


def preflight(
    parts: Parts,
    spec: EvaluationSpec,
    progress: Callable[[float, str], None] = lambda *_: None,
    seen: dict[str, Checked] | None = None,
) -> Checked:
    """Runs the checks of the model and of the settings on the first few examples.

    Args:
        parts: models and data.
        spec: what will be evaluated with them.
        progress: called before every check with the share that is done, 0, and its name.
        seen: what checks of the model found, by what they looked at; those are not run again.

    Returns:
        The flags, each once, and the names of the checks that ran.

    Raises:
        UserError: if the parts do not fit each other at all.
    """
    wide = probe_of(parts, spec, DENOISED_EXAMPLES)
    probe = replace(wide.first(PROBE_EXAMPLES), more=wide)
    check_fit(parts, probe.x, probe.y)
    seen = {} if seen is None else seen
    model = _looked_at(spec, parts, probe)
    if model not in seen:
        seen[model] = _of_model(probe, progress)
    found = seen[model]
    if all(k.gradient == "unsquashed" for k in spec.knowledge):
        found = found._replace(flags=undone(found.flags))
    if found.trustworthy and averages(spec) and probe.planned.sees_noise:
        table = spec.model_dump(mode="json")
        noise = json.dumps([model, *(table[key] for key in ("threat", "attacks", "knowledge"))])
        if noise not in seen:
            progress(0.0, "checks: gradient noise")
            noisy = gradient_noise(probe.first(NOISE_EXAMPLES), draws=EOT_DRAWS // 2)
            seen[noise] = Checked([], ()).then(noisy, "gradient_noise")
        found = found.then(seen[noise].flags, "gradient_noise")
    return check_settings(probe, found.once())


def _of_model(probe: Probe, progress: Callable[[float, str], None]) -> Checked:
    """What the checks of the model find."""
    found = Checked([], ())
    these = checks.of("model", probe)
    for number, check in enumerate(these, 1):
        progress(0.0, f"checks ({number} of {len(these)}): {check.name.replace('_', ' ')}")
        found = found.then(run_check(check, probe), check.name)
    return found


def _looked_at(spec: EvaluationSpec, parts: Parts, probe: Probe) -> str:
    """What the checks of the model look at, in words that are equal for equal models and images."""
    table = spec.model_dump(mode="json")
    own = [table.get(key) for key in ("data", "classifier", "denoiser", "purifier", "precision", "seed")]
    more = probe.more or probe
    ids = parts.data.ids[: len(more.x)].tolist()
    weights = {name: digest for name, digest in parts.hashes.items() if name != "data_sha256"}
    return json.dumps([weights, own, ids, probe.planned.sees_noise], sort_keys=True)


def passes_of(parts: Parts, spec: EvaluationSpec) -> tuple[int, int, int]:
    """Returns what the checks before a run ask of a sound model, for an estimate of their time.

    Returns:
        How many images are looked at, how many rows the model classifies, and how many it differentiates.
    """
    count = min(PROBE_EXAMPLES, len(parts.data))
    few = min(NOISE_EXAMPLES, len(parts.data))
    noise = averages(spec) > 0 and sees_noise(parts, spec)
    # Repeated calls 3, another order 1, moved pixels 2, heads 2, differences 2 and 8; one image, thrice.
    return count, 18 * count + (3 if noise else 1), 3 * count + 2 + (few * (EOT_DRAWS // 2) if noise else 0)


def check_settings(probe: Probe, found: Checked) -> Checked:
    """Adds what the checks of the settings find: where purification starts, in how many steps, and more."""
    for check in checks.of("settings", probe):
        found = found.then(run_check(check, probe), check.name)
    return found


def probe_of(parts: Parts, spec: EvaluationSpec, examples: int) -> Probe:
    """Returns the probe of the first examples, on the model's device."""
    data = parts.data.select(slice(0, examples))
    device = own_device(parts.model)
    x, y = data.x().to(device), data.labels.to(device)
    noise = NoisePlan.of(spec.seed, data.ids, "select")
    return Probe(parts.model, x, y, noise, parts.threat, planned(parts, spec))


def planned(parts: Parts, spec: EvaluationSpec) -> Planned:
    """Returns what a spec plans: its first attack with iterations, and the most draws per gradient."""
    options = {a.name: {**accepted_options(a.name), **attack_options(a)} for a in spec.attacks}
    iterated = next((a for a in spec.attacks if "iterations" in options[a.name]), None)
    found = Planned(sees_noise=sees_noise(parts, spec), spec=spec)
    if averages(spec):
        found = replace(found, eot=averages(spec))
    if iterated is not None:
        found = replace(found, attack=iterated.name, options=attack_options(iterated))
    return found


def averages(spec: EvaluationSpec) -> int:
    """Returns the most draws per gradient of a spec's attacks; 0 if none averages."""
    options = [{**accepted_options(a.name), **attack_options(a)} for a in spec.attacks]
    return max((int(o["eot"]) for o in options if "eot" in o), default=0)


def sees_noise(parts: Parts, spec: EvaluationSpec) -> bool:
    """Whether anything is random for one of a spec's attackers."""
    settings = [k.resolve() for k in spec.knowledge]
    views = [make_view(parts.model, k.gradient, k.gradient_options) for k in settings]
    return not all(k.leaves_nothing_random(v.sites) for k, v in zip(settings, views, strict=True))
