"""How much of an evaluation is recorded; the table of a run that was stopped looks like any other."""

import numpy as np

from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import expected_rows


def counted(run: RunDirectory) -> tuple[int, int]:
    """Returns how many results of a run are recorded, and how many there will be; 0 if that is not known."""
    spec, columns = run.recorded_spec(), run.columns()
    asked = max((s.get("examples") or 0 for s in run.sessions()), default=0) or spec.examples.count
    tapes = expected_rows(spec)
    done = sum(
        int(np.count_nonzero(columns.rows[row].tape < tapes[row])) for row in tapes if row in columns.rows
    )
    return done, (asked or 0) * sum(tapes.values())


def unfinished(run: RunDirectory) -> str:
    """Returns how much of a run is still to be done, in a sentence; nothing if it is finished."""
    columns = run.columns()
    if not columns.rows and not columns.failed:
        return "Unfinished: no result of an evaluation is recorded yet."
    done, wanted = counted(run)
    if done >= wanted:
        return ""
    failed = f", {len(columns.failed)} failed" if columns.failed else ""
    return (
        f"Unfinished: {done} of {wanted} results are recorded{failed} (one for each row, tape and example)."
        " Run the same evaluation again to go on."
    )
