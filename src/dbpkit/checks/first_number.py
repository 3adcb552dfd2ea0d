"""What the first number of a model must say of itself: its attack is shorter than published ones."""

from collections.abc import Callable

from dbpkit.checks.check import Checked
from dbpkit.checks.preflight import SharedPreflight
from dbpkit.experiment.build import Parts, accepted_options, attack_options
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.results.flags import Flag

SHORT_ATTACK = "short_attack"
"""Name of the flag."""

PUBLISHED = {"iterations": 20, "eot": 10}
"""PGD of the published rows: Liu et al. 2025, section 5; their chain has 1,000 steps."""

PUBLISHED_STEPS = 1000


class FirstNumber(SharedPreflight):
    """`preflight` of an evaluation without a spec, which also says that its attack is short."""

    def __call__(self, parts: Parts, spec: EvaluationSpec, progress: Callable[[float, str], None]) -> Checked:
        """Runs the checks before a run, and adds the flag of `short_attack`."""
        return super().__call__(parts, spec, progress).then(short_attack(spec))


def short_attack(spec: EvaluationSpec) -> list[Flag]:
    """Returns a warning if an evaluation spends less than the published settings, with both; else nothing."""
    here, there, remedy = [], [], []
    for place, attack in enumerate(spec.attacks):
        options = {**accepted_options(attack.name), **attack_options(attack)}
        for name, value in PUBLISHED.items():
            if isinstance(own := options.get(name), int) and own < value:
                here.append(f"{attack.name} with {name} = {own}")
                there.append(f"{name} = {value}")
                remedy.append(f"--set attacks.{place}.options.{name}={value}")
    if spec.purifier.is_diffusion and spec.purifier.steps < PUBLISHED_STEPS:
        here.append(f"a chain of {spec.purifier.steps} steps")
        there.append(f"{PUBLISHED_STEPS} steps")
        remedy.append(f"--steps {PUBLISHED_STEPS}")
    if not here:
        return []
    message = (
        f"This is a first number, measured with {', '.join(here)}; published rows have {', '.join(there)}"
        f" (Liu et al. 2025), and the longer attack may leave less right. For those: {' '.join(remedy)}"
    )
    return [Flag(SHORT_ATTACK, "warning", f"{message}, and more images.")]
