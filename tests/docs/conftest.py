"""A user's folder, with everything that the pages take for granted, in small."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dbpkit.cli import listing
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from tests.checkpoint_files import save, score_sde
from tests.docs.pages import ROOT, blocks
from tests.reference import reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folder as current one; what its modules register is forgotten afterwards."""
    place = tmp_path_factory.mktemp("user")
    for block in blocks("python", "toml"):
        if block.name:
            (place / block.name).write_text(block.text)
    for name in ("specs", "benchmarks", "Makefile"):
        (place / name).symlink_to(ROOT / name)
    _images(place)
    path = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        patch.setenv("COLUMNS", "200")
        _weights(place)
        yield place
    sys.path[:] = path


@pytest.fixture(autouse=True)
def _forgotten(folder: Path) -> Iterator[None]:
    """What a user's modules register is forgotten after every test, and so are the modules."""
    every = [registry for registry in listing.REGISTRIES.values() if list(registry)]  # imports their parts
    registries = {registry: dict(registry._parts) for registry in every}  # in the order of registration
    settings = dict(known)
    yield
    for registry, parts in registries.items():
        registry._parts = parts
    known.clear()
    known.update(settings)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


def _images(place: Path) -> None:
    """Image files: a folder of two classes, some loose ones, and an archive."""
    pixels = NoisePlan.of(0, range(8)).uniform("probe", 0, torch.zeros(8, 32, 32, 3))
    arrays = (255 * pixels).byte().numpy()
    for number, array in enumerate(arrays):
        path = place / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    for name in ("a.png", "b.png", "photo.png"):
        Image.fromarray(arrays[0]).save(place / name)
    np.savez(place / "test.npz", images=arrays, labels=np.arange(8) % 10)


def _weights(place: Path) -> None:
    """Weights of the networks that a page's module defines, and a diffusers directory."""
    import my_module

    generator = torch.Generator().manual_seed(0)
    first = torch.nn.Conv2d(3, 16, 3, stride=2, padding=1)
    network = torch.nn.Sequential(
        first, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 10)
    )
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator)
    save_file(network.state_dict(), place / "classifier.safetensors")
    for name in ("denoiser", "tuned"):
        state = my_module.NoisePredictor().state_dict()
        save_file({n: torch.zeros_like(t) for n, t in state.items()}, place / f"{name}.safetensors")
    from diffusers import UNet2DModel

    sides = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    UNet2DModel(sample_size=32, **sides, **kinds).save_pretrained(place / "my-unet")
    denoiser, classifier = reference("scoresde_vp_ddpmpp"), reference("cls_trades_subblock_wrn")
    score_sde(denoiser.state, place / "checkpoint_8.pth")
    save({"state_dict": {f"module.{n}": t for n, t in classifier.state.items()}}, place / "Standard.pt")
