"""Models named by their file: in a spec, on the command line, converted, and trusted."""

import json
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from dbpkit import UserError, convert, load_classifier, load_denoiser, load_weights, open_model
from dbpkit.foundation import registry
from dbpkit.models.sources import source
from dbpkit.models.weights import Architecture, save_weights
from tests.checkpoint_files import save, score_sde
from tests.reference import reference


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As with --trust, and not after the test."""
    monkeypatch.setattr(registry, "_trusting", True)
    return iter(())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A training checkpoint of Score-SDE."""
    return score_sde(reference("scoresde_vp_ddpmpp").state, tmp_path / "checkpoint_8.pth")


def test_file_is_a_source_by_its_path_alone(checkpoint: Path, tmp_path: Path) -> None:
    plain = checkpoint.rename(tmp_path / "checkpoint.of.mine")

    assert source(str(plain)) == ("file", {"path": str(plain)})
    assert source("nowhere.pth") == ("file", {"path": "nowhere.pth"})
    assert source("embedded") == ("embedded", {})
    assert source("module:factory") == ("module:factory", {})


def test_denoiser_and_classifier_by_path(checkpoint: Path, tmp_path: Path) -> None:
    classifier = save(reference("cls_trades_subblock_wrn").state, tmp_path / "Standard.pt")
    x = reference("cls_trades_subblock_wrn").inputs["x"]

    assert load_denoiser(str(checkpoint))(2 * x - 1, torch.tensor(0.5)).shape == x.shape
    assert load_classifier(str(classifier))(x).shape == (len(x), 10)
    with pytest.raises(UserError, match=r"holds a denoiser \(Score-SDE\); a classifier was expected"):
        load_classifier(str(checkpoint))
    with pytest.raises(UserError, match=r"weights file 'nowhere\.pth' is missing"):
        load_denoiser("nowhere.pth")


def test_options_of_a_file_reach_the_adapter(checkpoint: Path) -> None:
    denoiser = load_denoiser("file", {"path": str(checkpoint), "image_range": [0, 1], "time_scale": 500})

    assert tuple(denoiser.image_range) == (0, 1)  # type: ignore[attr-defined]
    assert denoiser.time_scale == 500  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="denoiser 'file' has no option 'nonsense'"):
        load_denoiser("file", {"path": str(checkpoint), "nonsense": 3})


def test_foreign_safetensors_are_opened_like_any_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    given, path = reference("cls_robustbench_preact_resnet18"), tmp_path / "network.safetensors"
    save_file(given.state, path)

    assert torch.allclose(load_classifier(str(path))(given.inputs["x"]), given.outputs["y"], atol=1e-5)


def test_folder_of_diffusers_is_a_denoiser_and_others_name_their_file(tmp_path: Path) -> None:
    from diffusers import UNet2DModel

    sides = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    UNet2DModel(sample_size=8, **sides, **kinds).save_pretrained(tmp_path / "pipeline" / "unet")
    other = tmp_path / "addt"
    other.mkdir()
    save({"a.weight": torch.zeros(1)}, other / "diffusion_model.pt")

    assert load_denoiser(str(tmp_path / "pipeline"))(torch.zeros(1, 3, 8, 8), torch.ones(())).shape == (
        1,
        3,
        8,
        8,
    )
    with pytest.raises(UserError, match=r"is a folder\. Name the weights file in it: .*diffusion_model\.pt"):
        load_denoiser(str(other))


def test_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    for load in (open_model, load_weights):
        with pytest.raises(
            UserError, match=r"is a folder\. Name the file in it; a diffusers directory is loaded"
        ):
            load(tmp_path)


# ------------------------------------------------------------------ convert


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scoresde_vp_ddpmpp", {"image_size": 16}),
        ("edm_ddpmpp_vpprecond", {"preconditioning": "vp_precond", "label": 3}),
        ("meanflow_unet", {}),
        ("cls_bmsookim_wrn", {}),
        ("cls_diffpure_resnet50", {"mean": (0.5, 0.5, 0.5)}),
    ],
)
def test_converted_file_is_the_same_model_to_the_bit(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    given, path = reference(name), tmp_path / "original.pth"
    save(OrderedDict(given.state), path)

    made = convert(path, tmp_path / "new.safetensors", **options)

    old, (new, about) = open_model(path, **options), load_weights(made.path, made.sha256)
    arguments = [given.inputs["x"]] if about.kind == "classifier" else [given.inputs["x"], torch.tensor(0.7)]
    with torch.no_grad():
        assert torch.equal(old(*arguments), new(*arguments))
    plain = [json.loads(json.dumps(found.as_json())) for found in (about, old.architecture)]
    assert plain[0] == plain[1]
    card = made.card.read_text()
    assert made.sha256 in card
    assert f"Taken for: {old.opened}" in card


def test_convert_replaces_nothing_and_refuses_other_names(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    convert(checkpoint, out)
    before = out.read_bytes()

    with pytest.raises(UserError, match=r"new\.safetensors' exists already"):
        convert(checkpoint, out)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        convert(checkpoint, tmp_path / "new.pth")
    assert out.read_bytes() == before


# ------------------------------------------------------------------ trust


def test_program_is_refused_and_run_where_it_is_trusted(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, x = tmp_path / "program.pt", torch.ones(2, 3, 8, 8)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    torch.jit.trace(network, x).save(str(path))

    with pytest.raises(UserError, match=r"TorchScript.*--trust"):
        load_classifier(str(path))
    request.getfixturevalue("trusting")
    assert torch.equal(load_classifier(str(path))(x), network(x))


def test_import_path_in_a_weights_file_is_followed_only_where_trusted(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.parts import ChannelMean

    module = ModuleType("users_network")  # which no test has typed in this process
    module.Own = ChannelMean
    monkeypatch.setitem(sys.modules, module.__name__, module)
    described = Architecture("classifier", "users_network:Own", {}, class_names=("a", "b", "c"))
    path = tmp_path / "own.safetensors"
    save_weights(path, ChannelMean(3.0), described)

    with pytest.raises(UserError, match=r"'users_network:Own' is an import path that '.*' names"):
        load_classifier(str(path))
    request.getfixturevalue("trusting")
    assert float(load_classifier(str(path)).scale) == 3.0  # type: ignore[arg-type]
