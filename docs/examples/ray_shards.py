"""One evaluation as tasks of a Ray cluster.

    python ray_shards.py SPEC DIR SHARDS [GPUS_PER_SHARD]

DIR is a run directory that all machines see. Ray starts a task again whose machine is lost; a task that began
anew goes on from what it had recorded.
"""

import sys
from pathlib import Path


def evaluate_shard(spec: str, out: str, rank: int, world: int) -> bool:
    """Does one shard in a worker; returns whether it concluded the run."""
    from dbpkit import EvaluationSpec, Execution, RunDirectory, read_spec
    from dbpkit.evaluation.run import evaluate_share

    execution = Execution("auto", deterministic=True, rank=rank, world=world)
    read = read_spec(Path(spec), EvaluationSpec)
    return evaluate_share(read, RunDirectory(out), execution) is not None


def main(spec: str, out: str, shards: int, gpus: float = 0.0) -> None:
    """Starts all shards and waits for them; then writes the page."""
    import ray

    from dbpkit import report

    ray.init()
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(evaluate_shard)
    ray.get([task.remote(spec, out, rank, shards) for rank in range(shards)])
    print(report([Path(out)]))


if __name__ == "__main__":
    words = sys.argv[1:]
    main(words[0], words[1], int(words[2]), *map(float, words[3:]))
