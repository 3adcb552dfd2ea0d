"""Every benchmark, one after the other: ``python -m benchmarks.run``."""

import platform

import torch

from benchmarks import gradient
from dbpkit.memory import keep_freed_memory

if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    keep_freed_memory()  # as the command line does
    gradient.seconds()
    gradient.memory()
    gradient.noise()
