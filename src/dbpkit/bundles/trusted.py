"""With which parts a bundle is judged: those that the verifier names, and of its own spec only safe ones.

The spec of a bundle is a stranger's. No import path in it is followed, and no part that may fetch files from
another machine is made, unless the verifier names it or trusts the bundle as a whole.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dbpkit.bundles.opening import Opened
from dbpkit.experiment.build import Parts, build
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError, excerpt
from dbpkit.foundation.overrides import override
from dbpkit.foundation.registry import names_of, trust
from dbpkit.foundation.spec import differences, validate
from dbpkit.results.protocols import DEFAULT, recorded_protocol

JUDGES = ("classifier", "denoiser", "purifier", "data")
"""Keys of a spec that a verifier may change: who judges, and where the clean images are."""

FETCHING = frozenset({"robustbench", "timm", "torchvision", "transformers", "diffusers", "huggingface"})
"""Parts that may fetch files over the network, or read them with another library's reader."""

GIVEN = "given"
"""Name of parts that were handed over as objects."""

_PATH = re.compile(r"[\w.]+:\w+")

Named = Mapping[str, str | None]
"""What the verifier names: classifier, denoiser and data; None leaves that of the bundle."""


class CannotJudgeError(UserError):
    """What is missing to judge a bundle; no mistake of the verifier and none of the bundle."""


def chosen_spec(opened: Opened, named: Named, overrides: Sequence[str]) -> tuple[EvaluationSpec, list[str]]:
    """Returns the bundle's spec with the verifier's parts, and the leaves in which it is another.

    Raises:
        UserError: if an override is none, or changes more than who judges.
    """
    table = opened.run.spec()["spec"]
    where = f"{opened.path}: spec.json"
    recorded = validate(table, EvaluationSpec, where)
    changed = recorded.model_dump(mode="json")
    for part, name in named.items():
        if name is not None and changed[part]["name"] != name:
            changed[part] = {**changed[part], "name": name, "options": {}}
    for text in overrides:
        key = text.partition("=")[0].partition(".")[0].strip()
        if key not in JUDGES:
            raise UserError(
                f"--set '{excerpt(text, 80)}' would change what the bundle claims. Of a bundle you can set"
                f" {', '.join(JUDGES)}."
            )
        override(changed, text, EvaluationSpec)
    spec = validate(changed, EvaluationSpec, where)
    return spec, differences(table, spec.model_dump(mode="json"))


def judging_parts(spec: EvaluationSpec, typed: Sequence[str], trusts: bool, execution: Execution) -> Parts:
    """Makes the parts that judge.

    Args:
        spec: of `chosen_spec`.
        typed: names and values that the verifier wrote; import paths among them may be followed.
        trusts: whether the bundle may name code, too.
        execution: device.

    Raises:
        CannotJudgeError: if a part is not there, or is one that nobody vouched for.
    """
    for part in ("classifier", "denoiser", "data"):
        name = getattr(spec, part).name
        if name == GIVEN:
            raise CannotJudgeError(
                f"the {part} was an object in Python, which no spec names. Give yours with --{part}."
            )
        if name in FETCHING and name not in typed and not trusts:
            raise CannotJudgeError(
                f"the bundle's {part} '{name}' may fetch files from the network. Name it yourself:"
                f" --{part} {name}, or give --trust."
            )
    for value in typed:
        if _PATH.fullmatch(value):
            trust(value)
    try:
        return build(judged_spec(spec), execution.device, execution.budget)
    except UserError as error:
        raise CannotJudgeError(f"its parts cannot be made: {error}") from error


def guarded(opened: Opened, trusts: bool) -> contextlib.AbstractContextManager[None]:
    """Inside, no import path is followed that the verifier did not type; parts are made here."""
    remedy = "Name your own with --classifier, --denoiser or --data, or give --trust if you trust the bundle."
    return contextlib.nullcontext() if trusts else names_of(f"bundle '{opened.path}'", remedy)


def judged_spec(spec: EvaluationSpec) -> EvaluationSpec:
    """Returns the spec without what judging needs not: attacks, and a protocol of the sender's own."""
    protocol = recorded_protocol(spec.protocol)
    asks = protocol is not None and not protocol.judges_iterates
    changes: dict[str, Any] = {"attacks": EvaluationSpec().attacks}
    return spec.model_copy(update={**changes, "protocol": spec.protocol if asks else DEFAULT})
