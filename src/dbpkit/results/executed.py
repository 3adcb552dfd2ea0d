"""How the records of a run were computed, in one clause for the caption of its table."""

from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = 2
"""Different executions that are named; of a run that was continued in more, the last ones."""


def executed(sessions: Sequence[Mapping[str, Any]]) -> str:
    """Returns how a run's sessions were executed: device, rows, memory and threads.

    Args:
        sessions: entries of ``env.json``.

    Returns:
        A clause without a full stop; empty for a run without sessions.

    Example:
        >>> executed([{"device": "cpu", "micro_batch": 32, "memory_bytes": 2 * 2**30, "threads": 2}])
        'on cpu, 32 rows at a time, 2.0 GiB for graphs, 2 threads'
    """
    clauses = list(dict.fromkeys(_clause(session) for session in sessions))
    more = len(clauses) - SHOWN
    said = "; then ".join(clauses[-SHOWN:])
    return f"{said}; {more} more before" if more > 0 else said


def _clause(session: Mapping[str, Any]) -> str:
    """One session; what an old one did not note is left out."""
    parts = [f"on {session.get('device', 'an unknown device')}"]
    if rows := session.get("micro_batch"):
        parts.append(f"{rows} rows at a time" if rows > 1 else "1 row at a time")
    if "memory_bytes" in session:
        memory = session["memory_bytes"]
        parts.append(f"{memory / 2**30:.1f} GiB for graphs" if memory else "every step replayed")
    threads = session.get("threads")
    if threads and str(session.get("device", "")).startswith("cpu"):
        parts.append(f"{threads} threads" if threads > 1 else "1 thread")
    if session.get("deterministic"):
        parts.append("deterministic")
    if session.get("compile"):
        parts.append("compiled")
    return ", ".join(parts)
