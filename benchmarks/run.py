"""Every benchmark, one after the other: ``python -m benchmarks.run``."""

import platform

import torch

from benchmarks import gradient
from dbpkit.foundation.machine import settle

if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    settle()  # as the command line does
    gradient.seconds()
    gradient.memory()
    gradient.noise()
