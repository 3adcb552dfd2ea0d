"""TorchScript and torch.export files: refused unless they are trusted, and then what was stored."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from dbpkit.foundation.checkpoints import kind_of_program, read_checkpoint
from dbpkit.foundation.errors import UserError
from dbpkit.models.programs import opened_module


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network whose mode matters."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).eval()


@pytest.fixture(scope="module")
def programs(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network as a program of each kind."""
    folder = tmp_path_factory.mktemp("programs")
    torch.jit.script(network).save(str(folder / "script.pt"))
    torch.export.save(torch.export.export(network, (torch.ones(1, 3, 5, 5),)), folder / "export.pt2")
    return {"TorchScript": folder / "script.pt", "torch.export": folder / "export.pt2"}


@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
def test_program_is_loaded_only_where_it_is_trusted(
    kind: str, programs: dict[str, Path], network: nn.Module
) -> None:
    path = programs[kind]
    assert kind_of_program(path) == kind
    for refused in (lambda: opened_module(path, trusted=False), lambda: read_checkpoint(path)):
        with pytest.raises(
            UserError, match=rf"{path.name}.* program \({kind}\).*Give --trust if you trust it"
        ):
            refused()
    loaded = opened_module(path, trusted=True)
    x = torch.linspace(0, 1, 75).reshape(1, 3, 5, 5)
    assert torch.equal(loaded(x), network(x))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.requires_grad_(False).eval().parameters())


def test_other_files_are_no_programs(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(2)}, path)  # noqa: TID251
    assert kind_of_program(path) is None
    with pytest.raises(UserError, match=r"weights\.pt' is neither TorchScript nor a file of torch\.export"):
        opened_module(path, trusted=True)


@pytest.mark.parametrize("name", ["x/code/__torch__.py", "x/archive_format"])
def test_damaged_program_is_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(UserError, match=r"damaged\.pt' is a .* file that cannot be loaded") as raised:
        opened_module(path, trusted=True)
    assert "\n" not in str(raised.value)
