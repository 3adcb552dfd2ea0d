"""Runs one piece of work in a fresh process for each line of standard input, so that it can be killed.

Importing takes seconds and is done once: every piece of work is a fork of this process, which itself computes
nothing. Prints the process id when it starts and the exit status when it has ended.
"""

import os
import signal
import sys
from collections.abc import Callable

import torch

from dbpkit import Execution, evaluate, train
from dbpkit.analyses.run import analyse
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.packaged import code_sha256
from dbpkit.foundation.spec import validate
from dbpkit.training.spec import TrainingSpec
from tests.integration.test_training import DENOISER
from tests.parts import TINY

SHORT = {
    **DENOISER,
    "objective_options": {"report_times": [50]},
    "optimiser": {"updates": 12, "batch_size": 4, "lr": 2e-3},
    "checkpoint_updates": 3,
}
CHOSEN = {"compression": {"images": 4, "tapes": 1}, "shares": {"images": 4, "draws": 2, "iterations": 2}}


def _spec() -> EvaluationSpec:
    return validate(TINY, EvaluationSpec, "tiny")


WORK: dict[str, Callable[[str], object]] = {
    "evaluate": lambda out: evaluate(_spec(), out, Execution(batch_size=3)),
    "analyse": lambda out: analyse(_spec(), out, CHOSEN),
    "train": lambda out: train(validate(SHORT, TrainingSpec, "short"), out, execution=Execution("cpu")),
}


def _child(name: str, out: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        WORK[name](out)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def main() -> None:
    """Serves until standard input ends."""
    torch.set_num_threads(1)
    code_sha256()  # once: the sources may be edited while this runs
    for line in sys.stdin:
        name, _, out = line.strip().partition(" ")
        pid = os.fork()
        if pid == 0:
            _child(name, out)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
