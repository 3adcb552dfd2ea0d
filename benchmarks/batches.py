"""How far records differ between batch sizes, with and without ``--deterministic``.

python -m benchmarks.batches [EXAMPLES]
"""

import sys
import tempfile
from pathlib import Path

from dbpkit import EvaluationSpec, Execution, RunDirectory, evaluate, read_spec
from dbpkit.foundation.machine import settle
from dbpkit.models.sources import asset


def compare(a: Path, b: Path) -> str:
    """Says how the records and attacked images of two runs differ."""
    first, second = (
        {(r["row"], r["tape"], r["example"]): r for r in RunDirectory(p).records()} for p in (a, b)
    )
    judged = sum(first[k]["predicted"] != second[k]["predicted"] for k in first)
    pixels, changed, attacked = 0.0, 0, 0
    for key, record in first.items():
        if "images" in record:
            x, y = (
                RunDirectory(p).read_images(rs[key]["images"])[key[2]] for p, rs in ((a, first), (b, second))
            )
            attacked += 1
            changed += int(bool((x != y).any()))
            pixels = max(pixels, float(((x != y).float()).mean()))
    return (
        f"{judged} of {len(first)} records judge differently; {changed} of {attacked} attacked images differ,"
        f" in at most {pixels:.2%} of their values"
    )


def run(count: int) -> None:
    """Evaluates the same spec with batch sizes 1, 3 and 16 in both modes."""
    overrides = [
        f"examples.count={count}",
        'knowledge=["white_box", "dw_both"]',
        "attacks.0.options.iterations=5",
    ]
    spec = read_spec(asset("demo.toml"), EvaluationSpec, overrides)
    with tempfile.TemporaryDirectory() as folder:
        for deterministic, micro_batch in ((True, 8), (False, 32)):
            runs = []
            for size in (16, 1, 3):
                out = Path(folder) / f"{deterministic}-{size}"
                evaluate(
                    spec,
                    out,
                    Execution(batch_size=size, micro_batch=micro_batch, deterministic=deterministic),
                )
                runs.append(out)
            for size, out in zip((1, 3), runs[1:], strict=True):
                print(
                    f"deterministic {deterministic}, batch size {size} against 16: {compare(runs[0], out)}",
                    flush=True,
                )


if __name__ == "__main__":
    settle()
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 16)
