"""``dbpkit verify``: does a claim stand when its images are judged again by somebody else's models?

The thing people get wrong: that a verified number is a strong one. Verifying shows that these images, within
the budget, do to this model what the bundle says. It does not show that no stronger attack exists.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

from dbpkit.bundles.archive import BundleError
from dbpkit.bundles.entries import headline_row
from dbpkit.bundles.found import HashFound
from dbpkit.bundles.judging import Court
from dbpkit.bundles.opening import Opened, opened_bundle
from dbpkit.bundles.tally import Fresh, RowTally
from dbpkit.bundles.trusted import CannotJudgeError, chosen_spec, guarded, judged_spec, judging_parts
from dbpkit.bundles.verdict import Verification, verdict_of
from dbpkit.evaluation.run import Progress
from dbpkit.evaluation.session import hashes_of
from dbpkit.experiment.build import Parts
from dbpkit.experiment.execution import Execution
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.inputs import check_seed, whole
from dbpkit.foundation.noise import permutation
from dbpkit.results.run_directory import RunDirectory


def verify(
    bundle: str | Path,
    *,
    classifier: str | None = None,
    denoiser: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    examples: int | None = None,
    rows: Sequence[str] | None = None,
    fresh: int | None = None,
    fresh_seed: int | None = None,
    trust: bool = False,
    device: str = "auto",
    parts: Parts | None = None,
    progress: Progress = lambda *_: None,
) -> Verification:
    """Judges the images of a bundle again with your models, and says whether its claim stands.

    Args:
        bundle: the file.
        classifier: name, weights file or import path of your classifier; None takes the bundle's.
        denoiser: the same of your denoiser.
        data: the same of your data, for clean images come from you.
        overrides: ``"data.options.root=/my/data"`` each: options of these parts, and of the purifier.
        examples: judge so many, chosen by the fresh seed; None judges all.
        rows: rows of the table; None judges all.
        fresh: fresh draws of each image of the headline row; None takes as many as were recorded, 0 none.
        fresh_seed: of the fresh draws and the choice of examples; None takes one that nobody could foresee.
        trust: follow the import paths of the bundle's spec. They can run any code.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        parts: models and data as objects, for a run that was made from objects.
        progress: called with the share that is done, in [0, 1], and the row.

    Returns:
        The verdict with its reasons and counts; ``cannot be judged`` if something that it needs is missing.

    Raises:
        UserError: if the file is no bundle as it was written, or an argument is wrong.

    Example:
        >>> dbpkit.verify("demo.zip").verdict  # doctest: +SKIP
        'stands'
    """
    seed = secrets.randbits(32) if fresh_seed is None else check_seed(fresh_seed)
    named = {"classifier": classifier, "denoiser": denoiser, "data": data}
    with opened_bundle(bundle) as opened:
        (spec, changed), luck = chosen_spec(opened, named, overrides), _draws(opened, fresh, seed)
        chosen, wanted, execution = _rows(opened, rows), _wanted(opened, examples, seed), Execution(device)
        typed = [v for v in named.values() if v] + [_value(text) for text in overrides]
        try:
            with guarded(opened, trust):
                parts = parts or judging_parts(spec, typed, trust, execution)
                _refuse_missing(opened, parts, wanted)
                court = Court(opened, judged_spec(spec), parts, execution.device)
                tallies = _judged(court, chosen, wanted, luck, progress)
        except CannotJudgeError as error:
            return Verification.impossible(opened, changed, seed, str(error))
        found, left = luck.found() if luck else None, _left_out(opened, parts)
        hashes = _hashes(opened.run, parts)
        return verdict_of(opened, tallies, found, hashes, parts.threat.eps, changed, seed, left)


def _judged(
    court: Court, chosen: Sequence[str], wanted: set[int] | None, luck: Fresh | None, progress: Progress
) -> list[RowTally]:
    """Judges the rows again; models that cannot judge these images are missing ones."""
    tallies = []
    try:
        for number, row in enumerate(chosen):
            progress(number / len(chosen), row)
            tallies.append(court.judge(row, wanted, luck if luck and luck.row == row else None))
    except BundleError:
        raise
    except (UserError, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:300]
        raise CannotJudgeError(f"your models fail on its images: {type(error).__name__}: {said}") from error
    progress(1.0, "done")
    return tallies


def _rows(opened: Opened, rows: Sequence[str] | None) -> list[str]:
    """The rows to judge, in the order of the table."""
    there = [row.name for row in opened.summary.rows]
    for row in rows or ():
        if row not in there:
            raise unknown_name(f"row in '{opened.path}':", row, there)
    return [row for row in there if rows is None or row in rows]


def _draws(opened: Opened, fresh: int | None, seed: int) -> Fresh | None:
    """The fresh draws that are asked for."""
    row = headline_row([row.name for row in opened.summary.rows])
    if row is None or fresh == 0:
        return None
    recorded = int(opened.run.columns().rows[row].draws.max())
    draws = recorded if fresh is None else whole(fresh, "fresh", 1, 100_000)
    return Fresh(row, seed, draws)


def _wanted(opened: Opened, examples: int | None, seed: int) -> set[int] | None:
    """The examples to judge: chosen by a seed that the sender did not know."""
    ids = sorted({i for group in opened.run.columns().rows.values() for i in set(group.example.tolist())})
    if examples is None or whole(examples, "examples", 1) >= len(ids):
        return None
    return {ids[k] for k in permutation(seed, len(ids), 0)[:examples].tolist()}


def _refuse_missing(opened: Opened, parts: Parts, wanted: set[int] | None) -> None:
    """Refuses data that lack examples of the run."""
    have = set(parts.data.ids.tolist())
    for group in opened.run.columns().rows.values():
        ids = set(group.example.tolist())
        lacking = sorted((ids if wanted is None else ids & wanted) - have)
        if lacking:
            raise CannotJudgeError(
                f"your data '{parts.data.name}' lack {len(lacking)} of its examples (no. {lacking[0]})."
                " Name the data of the bundle with --data, or its folder with --set data.options.root=FOLDER."
            )


def _left_out(opened: Opened, parts: Parts) -> list[int]:
    """Examples of the verifier's data that the spec chooses, and a run that calls itself finished lacks."""
    if opened.manifest.unfinished:
        return []
    there = [set(group.example.tolist()) for group in opened.run.columns().rows.values()]
    return sorted(set(parts.data.ids.tolist()) - set.intersection(*there))


def _hashes(run: RunDirectory, parts: Parts) -> list[HashFound]:
    """Hashes of weights and data beside those that the run noted."""
    session = max(run.sessions() or [{}], key=lambda s: s.get("examples") or 0)
    shared = min(session.get("examples") or 0, len(parts.data))
    own = hashes_of(parts, shared) if shared else parts.hashes
    names = [name for name in own if name in session or name != "purifier_sha256"]
    return [HashFound(name.removesuffix("_sha256"), session.get(name) or "", own[name]) for name in names]


def _value(text: str) -> str:
    """The value of an override as it was written."""
    return text.partition("=")[2].strip().strip("'\"")
