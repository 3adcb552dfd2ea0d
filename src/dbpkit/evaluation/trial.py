"""Attacks are tried on one example before a run begins, and a failed one leaves its traceback.

An option that only fails when it is used would otherwise be found after an hour, in a directory that is then
bound to the wrong spec.
"""

import traceback
from pathlib import Path
from typing import Any

import torch

from dbpkit.evaluation.counting import passes
from dbpkit.evaluation.rows import UNDEFENDED, Rows
from dbpkit.experiment.build import Parts, accepted_options, attack_of, attack_options, single_draw
from dbpkit.experiment.spec import AttackSpec, DesignSpec, EvaluationSpec
from dbpkit.foundation.errors import NonFiniteError, OutputError, UserError

FEWEST: dict[str, int] = {"iterations": 2, "eot": 1, "queries": 2, "gradients": 2}
"""What options are lowered to in a trial, where an attack has them."""


def try_attacks(spec: EvaluationSpec, parts: Parts, rows: Rows) -> None:
    """Runs every attack with few iterations on one example: on the model and on the classifier alone.

    An example may be at fault itself, so an attack is refused only if it fails on the first, the middle and
    the last one.

    Raises:
        UserError: if an attack fails, or a model returns no logits.
    """
    last = len(parts.data) - 1
    for attack in spec.attacks:
        options = attack_options(attack)
        if parts.undefended is not None:
            alone = attack.model_copy(update={"design": DesignSpec()})
            _try(alone, single_draw(attack), UNDEFENDED.name, rows, (0, last // 2, last))
        for row in _first_of_each_gradient(spec):
            _try(attack, options, row, rows, (0, last // 2, last))


def report_failure(folder: Path, name: str, error: BaseException) -> Path:
    """Writes an error's traceback under ``errors/`` in a run directory; returns the file."""
    path = folder / "errors" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
    return path


def one_line(error: BaseException) -> str:
    """An error as one line: its type and message."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def place_of(error: BaseException) -> str:
    """Where an error was raised: ``"my_attack.py, line 12"``; of the last line outside installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "unknown place"


def _first_of_each_gradient(spec: EvaluationSpec) -> list[str]:
    """One attacker for every gradient and its options; the others differ in the noise they know."""
    found: dict[str, str] = {}
    for knowledge in spec.knowledge:
        found.setdefault(f"{knowledge.gradient} {knowledge.gradient_options}", knowledge.name)
    return list(found.values())


def _try(
    attack: AttackSpec, options: dict[str, Any], row: str, rows: Rows, positions: tuple[int, int, int]
) -> None:
    """One attack on one attacker's view; on other examples too where it fails."""
    known = accepted_options(attack.name)
    fewer = {
        k: least for k, least in FEWEST.items() if k in known and _is_more(options.get(k, known[k]), least)
    }
    made = attack_of(attack, {**options, **fewer})
    failure: Exception | None = None
    for position in dict.fromkeys(positions):
        try:
            differentiated = rows.try_one(row, made, torch.tensor([position]))
        except NonFiniteError as error:  # the example may be at fault
            failure = error
        except OutputError:
            raise
        except UserError as error:
            raise UserError(f"attack '{attack.name}' cannot be used: {error}") from error
        except Exception as error:
            failure = error
        else:
            if not differentiated and not attack.design.resolve().plain:
                _refuse_idle_design(attack, rows)
            return
    if failure is not None:
        raise UserError(
            f"attack '{attack.name}' fails on every example that was tried: {one_line(failure)}"
            f" ({place_of(failure)}). Fix it or its options and run the same command again."
        ) from failure


def _refuse_idle_design(attack: AttackSpec, rows: Rows) -> None:
    """Raises UserError if an attack with all its iterations takes no gradient that a design could make."""
    alone = rows.spec.model_copy(update={"attacks": [attack]})
    parts = rows.parts._replace(attacks=[(attack.name, attack_of(attack, attack_options(attack)))])
    counted = passes(alone, parts, rows.execution)
    if not any(row.gradient for row in counted):
        raise UserError(
            f"attack '{attack.name}' takes no gradients, so its design changes nothing. Leave design out, or"
            " use an attack that differentiates, such as pgd."
        )


def _is_more(value: Any, least: int) -> bool:
    return type(value) is int and value > least
