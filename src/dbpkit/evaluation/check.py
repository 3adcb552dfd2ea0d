"""`dbpkit check`: the checks of an evaluation on a few examples, before a long run.

The thing people get wrong: a check that only looks at settings misses a broken gradient. This one attacks.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from dbpkit.evaluation.build import accepted_options
from dbpkit.evaluation.run import DEFAULT_EXECUTION, Execution, Progress, evaluate
from dbpkit.evaluation.spec import DrawsSpec, EvaluationSpec, ExamplesSpec, KnowledgeSpec
from dbpkit.results.flags import Flag
from dbpkit.spec import PartSpec

QUICK = {"iterations": 5, "eot": 2}
"""Attack settings of a check: enough to see a loss rise, not to measure an accuracy."""


def quick_check(
    spec: EvaluationSpec,
    examples: int = 8,
    execution: Execution = DEFAULT_EXECUTION,
    progress: Progress = lambda *_: None,
) -> list[Flag]:
    """Runs the preflight and short attacks (white box and DW_Both) on a few examples.

    Args:
        spec: the evaluation that is planned.
        examples: how many of its examples are looked at.
        execution: device and batch sizes.
        progress: called whenever work is done.

    Returns:
        Every flag that came up.
    """
    count = min(examples, spec.examples.count or examples)
    short = spec.model_copy(
        update={
            "examples": ExamplesSpec(count=count, first=spec.examples.first),
            "draws": DrawsSpec(report=4, select=2),
            "attacks": [_shortened(a) for a in spec.attacks],
            "knowledge": [KnowledgeSpec.model_validate(name) for name in ("white_box", "dw_both")],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        return evaluate(short, Path(folder) / "check", execution, progress).flags


def verdict(flags: Sequence[Flag]) -> str:
    """Says in a sentence what follows from the flags."""
    errors = sorted({f.name for f in flags if f.severity == "error"})
    if errors:
        return f"Do not trust a number from this set-up yet: mend {', '.join(errors)} first (docs/flags.md)."
    if flags:
        return "Nothing is broken; read the warnings before a long run (docs/flags.md)."
    return "Nothing suspicious was found on these examples."


def _shortened(attack: PartSpec) -> PartSpec:
    known = accepted_options(attack.name)
    return PartSpec(
        name=attack.name,
        options={**attack.options, **{k: v for k, v in QUICK.items() if k in known}},
    )
