"""Networks that are programs: TorchScript and torch.export files, loaded only where the user trusts them.

Such a file says what is computed, and so it can compute anything: TorchScript reads and writes files, and
torch.export unpickles. No check of its content could tell.
"""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dbpkit.foundation.checkpoints import kind_of_program
from dbpkit.foundation.errors import UserError, excerpt


class _Program(nn.Module):
    """A network that is a program, as one that can be frozen and put into a mode like any other.

    Args:
        network: what was loaded.
        has_modes: whether it can be put into one; a network of torch.export has the one it was stored in.
    """

    def __init__(self, network: nn.Module, has_modes: bool) -> None:
        super().__init__()
        self.network, self.has_modes = network, has_modes

    def train(self, mode: bool = True) -> "_Program":
        """Puts it into a mode, where it has any."""
        self.training = mode
        if self.has_modes:
            self.network.train(mode)
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network computes."""
        out: Tensor = self.network(*inputs)
        return out


def opened_module(path: str | os.PathLike[str], trusted: bool) -> nn.Module:
    """Loads a TorchScript or torch.export file on the CPU, in eval mode and frozen.

    Args:
        path: a file of ``torch.jit.save`` or ``torch.export.save``.
        trusted: whether the user said that the file may run.

    Raises:
        UserError: if the file is not trusted, is no such program, or cannot be loaded.
    """
    kind = kind_of_program(path)
    name = excerpt(path, 300)
    if kind is None:
        raise UserError(
            f"'{name}' is neither TorchScript nor a file of torch.export. Name it without --trust."
        )
    if not trusted:
        raise UserError(
            f"'{name}' is a program ({kind}), which can read and write files. Give --trust if you trust it,"
            " or get its weights as a state dictionary."
        )
    where = str(Path(os.fsdecode(path)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own formats
            if kind == "TorchScript":
                network = _Program(torch.jit.load(where, map_location="cpu"), has_modes=True)
            else:
                network = _Program(torch.export.load(where).module(), has_modes=False)
    except Exception as error:  # whatever the file's own program raises
        said = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(
            f"'{name}' is a {kind} file that cannot be loaded ({said}). Store it anew."
        ) from error
    return network.requires_grad_(False).eval()
