"""Files of every layout against what the original networks answered, and what they are taken for."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit import UserError
from dbpkit.models.opening import open_model
from tests.checkpoint_files import as_module, edm_class, lend_persistence, pickled, place, save, score_sde
from tests.reference import Reference, beside_data, reference, row_gap

HEADS = {"num_head_channels": 16}

DENOISERS: dict[str, tuple[dict[str, Any], str, float]] = {
    "scoresde_vp_ddpmpp": ({"image_size": 16}, "Score-SDE DDPM++, VP", 1e-5),
    "scoresde_vp_ddpmpp_deep": ({"image_size": 16}, "Score-SDE DDPM++, VP", 1e-5),
    "scoresde_ve_ncsnpp": ({"image_size": 16}, "Score-SDE NCSN++, VE", 5e-5),
    "guided_unet_legacy": ({"network": HEADS}, "guided-diffusion ADM", 1e-5),
    "guided_unet_neworder": (
        {"network": {"num_head_channels": 8, "qkv_order": "blocks"}},
        "guided-diffusion ADM",
        1e-5,
    ),
    "guided_unet_classcond": ({"network": HEADS}, "guided-diffusion ADM of 10 classes", 1e-5),
    "consistency_unet": ({"network": HEADS}, "consistency model of 10 classes", 5e-5),
    "improved_unet_cifar": ({}, "improved-diffusion U-Net", 1e-5),
    "improved_unet_noshift": (
        {"time": "rescaled", "network": {"num_heads": 4}},
        "guided-diffusion ADM",
        1e-5,
    ),
    "ho_ddpm": ({"image_size": 16}, "Ho et al.'s DDPM", 1e-5),
    "edm_ddpmpp_edmprecond": ({}, "EDM DDPM++", 1e-5),
    "edm_ncsnpp_edmprecond": ({}, "EDM NCSN++", 5e-5),
    "edm_ncsnpp_veprecond": ({"preconditioning": "ve_precond"}, "EDM NCSN++", 5e-5),
    "edm_ddpmpp_vpprecond": ({"preconditioning": "vp_precond"}, "EDM DDPM++ of 10 classes", 1e-5),
    "edm_adm_edmprecond": ({"network": {"channels_per_head": 8}}, "EDM ADM of 10 classes", 1e-5),
    "edm_adm_iddpmprecond": ({"network": {"channels_per_head": 8}}, "EDM ADM of 10 classes", 1e-5),
    "meanflow_unet": ({}, "MeanFlow SongUNet", 1e-5),
}
"""Options that a bare state dict of a reference needs, what it is called, and the largest gap in x0."""

CLASSIFIERS = {
    "cls_bmsookim_wrn": "bmsookim WRN-10-1",
    "cls_diffpure_resnet50": "ResNet-50 on small images",
    "cls_dm_wrn": "DM WRN-10-1",
    "cls_robustbench_preact_resnet18": "PreActResNet-18",
    "cls_robustbench_resnet18": "ResNet-18 on small images",
    "cls_robustbench_standard_wrn": "RobustBench WRN-10-2",
    "cls_trades_subblock_wrn": "TRADES WRN-10-1",
}


def labels(given: Reference) -> list[int | None]:
    """The class of each image of a reference, None where it has none."""
    if "state_label" in given.inputs:
        return [int(k) for k in given.inputs["state_label"]]
    one_hot = given.inputs.get("state_class_labels")
    if one_hot is None:
        return [None] * len(given.inputs["state"])
    return [int(row.argmax()) if bool(row.any()) else None for row in one_hot]


def x0_gap(path: Path, given: Reference, **options: Any) -> float:
    """The largest gap between a file's clean estimates and the original's, each image under its own class."""
    model = None
    gaps = []
    for i, label in enumerate(labels(given)):
        if model is None or label is not None:
            model = open_model(
                path, role="denoiser", **options, **({} if label is None else {"label": label})
            )
        x, sigma = given.inputs["state"][i : i + 1], given.inputs["sigma"][i : i + 1]
        if type(model).__name__ == "VEDenoiser":  # its reference is in units of [0, 1]
            x, sigma = 2 * x - 1, 2 * sigma
        if type(model).__name__ == "MeanFlowDenoiser":  # its reference is the state (1 - t) x0 + t z
            x = x * (1 + sigma[:, None, None, None]).to(x.dtype)
        with torch.no_grad():
            found = model(x, sigma)
        if type(model).__name__ == "VEDenoiser":
            found = (found + 1) / 2
        gaps.append(row_gap(found, given.outputs["x0"][i : i + 1]))
    return max(gaps)


@pytest.mark.parametrize("name", DENOISERS)
def test_bare_state_dict_of_a_denoiser_estimates_x0_as_the_original(name: str, tmp_path: Path) -> None:
    given, (options, title, most) = reference(name), DENOISERS[name]
    path = save(OrderedDict(given.state), tmp_path / "weights.pth")

    model = open_model(path, **options)

    assert f"weights.pth: {title}" in str(model.opened)
    assert x0_gap(path, given, **options) < most


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_state_dict_of_a_classifier_answers_as_the_original(name: str, prefix: str, tmp_path: Path) -> None:
    given = reference(name)
    state = {f"{prefix}{key}": tensor for key, tensor in given.state.items()}
    path = save({"state_dict": state, "epoch": 3} if prefix else state, tmp_path / "weights.pt")

    model = open_model(path, role="classifier")

    with torch.no_grad():
        found = model(given.inputs["x"])
    assert row_gap(found, given.outputs["y"]) < 1e-5
    assert CLASSIFIERS[name] in str(model.opened)
    assert ("of epoch 3" in str(model.opened)) == bool(prefix)


# ------------------------------------------------------------------ averaged weights


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_score_sde_checkpoint_takes_the_nameless_averages(legacy: bool, tmp_path: Path) -> None:
    given = reference("scoresde_vp_ddpmpp")
    path = score_sde(given.state, tmp_path / "checkpoint_8.pth", legacy=legacy)

    model = open_model(path, image_size=16)

    assert str(model.opened) == (
        "checkpoint_8.pth: Score-SDE DDPM++, VP, EMA weights of step 1200; noise at 999 t; 80,707 weights."
    )
    assert x0_gap(path, given, image_size=16) < 1e-5
    assert x0_gap(path, given, image_size=16, weights="model") > 0.1  # each of these is 1 too large


def test_size_of_the_images_is_known_where_the_file_or_the_user_says_it(tmp_path: Path) -> None:
    edm = save(reference("edm_ddpmpp_vpprecond").state, tmp_path / "edm.pt")  # sides are in its names
    other = save(reference("scoresde_vp_ddpmpp").state, tmp_path / "other.pth")

    assert open_model(edm).sample_size == (16, 16)
    assert open_model(other, image_size=16).sample_size == (16, 16)
    assert not hasattr(open_model(other), "sample_size")


def test_ve_averages_lack_the_frozen_frequencies(tmp_path: Path) -> None:
    given = reference("scoresde_ve_ncsnpp")
    path = score_sde(given.state, tmp_path / "checkpoint.pth")

    assert x0_gap(path, given, image_size=16) < 5e-5


@pytest.mark.parametrize("name", ["scoresde_vp_ddpmpp", "scoresde_ve_ncsnpp"])
def test_order_of_the_written_averages_is_the_originals(name: str) -> None:
    names = json.loads(beside_data("fixtures", "ema_order.json").read_text())["fixtures"][name][
        "shadow_params"
    ]

    written = [n for n in sorted(reference(name).state, key=place) if n in names]

    assert written == names


def test_averages_that_do_not_fit_the_names_are_refused(tmp_path: Path) -> None:
    state = reference("scoresde_vp_ddpmpp").state
    content = {"model": state, "ema": {"shadow_params": list(state.values())[:-2]}}

    with pytest.raises(UserError, match=r"211 tensors without names, which do not fit the 212 trained ones"):
        open_model(save(content, tmp_path / "checkpoint.pth"))


def test_damaged_averages_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    state = reference("cls_robustbench_preact_resnet18").state
    damaged = {name: t for name, t in state.items() if not name.startswith("linear.")}

    def said(**content: Any) -> str:
        return str(open_model(save(content, tmp_path / "both.pt")).opened)

    assert "weights at 'model';" in said(model=state, ema=damaged)
    assert "; averaged weights at 'ema' left out: of no known layout" in said(model=state, ema=damaged)
    assert "left out" not in said(model=state, ema=state)
    assert "left out" not in said(model=state, ema={})


def test_averages_alone_take_the_names_of_another_file(tmp_path: Path) -> None:
    given = reference("scoresde_vp_ddpmpp")
    state = {name.removeprefix("module."): given.state[name] for name in sorted(given.state, key=place)}
    bare = {name: t for name, t in state.items() if name != "sigmas"}
    shadow = {"decay": 0.999, "optimization_step": 5, "shadow_params": list(bare.values())}
    averages = save(shadow, tmp_path / "ema_net.pth")

    with pytest.raises(UserError, match=r"212 tensors without names, which fit no published network\. Give"):
        open_model(averages)
    names = str(save({n: t + 1 for n, t in bare.items()}, tmp_path / "net.pth"))
    assert x0_gap(averages, given, image_size=16, names=names) < 1e-5


def test_flowpure_list_holds_a_flow(tmp_path: Path) -> None:
    given = reference("flowpure_vp")
    path = save([given.state, {"state": {}, "param_groups": []}], tmp_path / "flow.pth")

    model = open_model(path, image_size=16)

    assert "FlowPure DDPM++" in str(model.opened)
    assert x0_gap(path, given, image_size=16) < 1e-5


def test_meanflow_checkpoint_takes_its_first_average(tmp_path: Path) -> None:
    given = reference("meanflow_unet")
    wrong = {f"net.{name}": t + 1 for name, t in given.state.items()}
    right = {f"net_ema.{name}": t for name, t in given.state.items()}
    content = {"model": {**wrong, **right, "num_updates": torch.tensor(3)}, "epoch": 9}

    assert x0_gap(save(content, tmp_path / "checkpoint-9.pth"), given) < 1e-5


# ------------------------------------------------------------------ pickled modules


@pytest.mark.parametrize(
    ("name", "cls", "inner"),
    [
        ("edm_ddpmpp_vpprecond", "VPPrecond", "SongUNet"),
        ("edm_ncsnpp_veprecond", "VEPrecond", "SongUNet"),
        ("edm_adm_iddpmprecond", "iDDPMPrecond", "DhariwalUNet"),
        ("edm_adm_edmprecond", "EDMPrecond", "DhariwalUNet"),
    ],
)
def test_edm_pickle_says_its_preconditioning_and_runs_no_source(
    name: str, cls: str, inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend_persistence(monkeypatch)
    given = reference(name)
    kept = {"channels_per_head": 8} if inner == "DhariwalUNet" else {}
    module = as_module(given.state, {"": edm_class(cls), "model": edm_class(inner, **kept)})
    path = pickled({"ema": module, "loss_fn": None, "dataset_kwargs": {}}, tmp_path / "edm-cifar10.pkl")

    assert x0_gap(path, given) < 5e-5


def test_edm_training_state_holds_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lend_persistence(monkeypatch)
    given = reference("edm_ddpmpp_vpprecond")
    module = as_module(given.state, {"": edm_class("VPPrecond"), "model": edm_class("SongUNet")})
    path = save({"net": module, "optimizer_state": {"state": {}}}, tmp_path / "training-state-1.pt")

    assert x0_gap(path, given) < 1e-5


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_whole_pickled_classifier_gives_its_tensors(legacy: bool, tmp_path: Path) -> None:
    given = reference("cls_bmsookim_wrn")
    wrapped = as_module({f"module.{name}": t for name, t in given.state.items()}, {})
    path = save({"net": wrapped, "acc": 95.0, "epoch": 200}, tmp_path / "origin.t7", legacy=legacy)

    model = open_model(path, role="classifier")

    assert row_gap(model(given.inputs["x"]), given.outputs["y"]) < 1e-5
    assert "std 0.2023 0.1994 0.201" in str(model.opened)
    assert "of epoch 200" in str(model.opened)


# ------------------------------------------------------------------ diffusers' state dicts


@pytest.mark.parametrize("old", [False, True], ids=["new names", "names of 2022"])
def test_state_dict_of_diffusers_gives_the_same_network(old: bool, tmp_path: Path) -> None:
    from dbpkit.models.networks.ho_ddpm import ho_ddpm

    with torch.random.fork_rng():
        network = ho_ddpm(
            ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), resolution=16
        ).eval()
    state = network.state_dict()
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    for new, name in names.items() if old else ():
        state = {key.replace(new, name): t for key, t in state.items()}
    path = save(state, tmp_path / "cinic10.pth")

    model = open_model(path, image_size=16, network={"dropout": 0.0})

    x, t = reference("scoresde_vp_ddpmpp").inputs["x"], torch.tensor([3, 500])
    with torch.no_grad():
        assert torch.equal(model.network(x[:2], t).sample, network(x[:2], t).sample)
    assert "diffusers UNet2DModel" in str(model.opened)
    assert "google/ddpm-cifar10-32 (network)" not in str(model.opened)
    assert "google/ddpm-cifar10-32 (network)" in str(open_model(path).opened)


# ------------------------------------------------------------------ what is refused


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "dit": (
        {"x_embedder.proj.weight": (8, 4, 2, 2), "t_embedder.mlp.0.weight": (8, 8)}
        | {"blocks.0.adaLN_modulation.1.weight": (8, 8)},
        "a diffusion transformer .* works on the latents",
    ),
    "timm": (
        {"patch_embed.proj.weight": (8, 3, 4, 4), "blocks.0.attn.qkv.weight": (24, 8)}
        | {"blocks.0.norm1.weight": (8,)},
        "timm builds: classifier = ",
    ),
    "resnet": (
        {"conv1.weight": (8, 3, 7, 7), "bn1.weight": (8,), "layer1.0.conv1.weight": (8, 8, 1, 1)}
        | {"fc.weight": (10, 8)},
        "an ImageNet ResNet, which timm builds",
    ),
    "near": (
        {"all_modules.0.weight": (8, 8), "all_modules.3.GroupNorm_0.weight": (8,)},
        r"the nearest is Score-SDE, of which 'all_modules\.\*\.NIN_0\.W' is missing",
    ),
    "unknown": ({"a.b.c": (3, 3)}, r"its first tensor is 'a\.b\.c', and no layout has such names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_layouts_are_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    shapes, message = REFUSED[case]
    path = save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "weights.pth")

    with pytest.raises(UserError, match=message) as refused:
        open_model(path)
    assert "\n" not in str(refused.value)


def test_two_networks_in_a_file_are_told_apart_only_by_the_user(tmp_path: Path) -> None:
    given = reference("cls_robustbench_preact_resnet18")
    other: dict[str, Tensor] = {
        name: t + 1 if t.is_floating_point() else t for name, t in given.state.items()
    }
    path = save({"netA": given.state, "netB": other}, tmp_path / "two.pth")

    with pytest.raises(UserError, match="PreActResNet-18 at 'netA', PreActResNet-18 at 'netB'"):
        open_model(path)
    assert row_gap(open_model(path, weights="netA")(given.inputs["x"]), given.outputs["y"]) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "denoiser"}, "holds a classifier .* a denoiser was expected"),
        ({"label": 3}, "has no use for the option label = 3. It takes: "),
        ({"kind": "nonsense"}, "unknown layout 'nonsense'"),
        ({"sha256": "00"}, "where 00 was expected"),
        ({"weights": "ema"}, r"at 'ema', but at: state_dict"),
        ({"network": {"depth": 3}}, "depth"),
        ({"network": 3}, "network must be a table, not 3"),
        ({"image_size": "x"}, "image_size must be a whole number of at least 1"),
        ({"sizes": 3}, "has no option 'sizes'"),
        ({"kind": "scoresde"}, "is not of Score-SDE, the kind that was asked for"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save({"state_dict": reference("cls_trades_subblock_wrn").state}, tmp_path / "weights.pt")

    with pytest.raises(UserError, match=message):
        open_model(path, **options)


def test_class_of_all_images_is_said_and_is_one_of_the_network(tmp_path: Path) -> None:
    path = save(dict(reference("guided_unet_classcond").state), tmp_path / "classes.pt")

    assert "class 0 of 10 for every image (label)" in open_model(path).opened
    assert "; class 3 for every image;" in open_model(path, label=3).opened
    with pytest.raises(UserError, match="label = 10 is none of the 10 classes"):
        open_model(path, label=10)


def test_normaliser_in_the_file_is_used(tmp_path: Path) -> None:
    given = reference("cls_robustbench_preact_resnet18")
    state = {f"model.{name}": t for name, t in given.state.items()}
    state |= {"normalize.mean": torch.tensor([0.5, 0.4, 0.3]), "normalize.std": torch.tensor([0.2, 0.3, 0.4])}
    path, x = save(state, tmp_path / "weights.pt"), given.inputs["x"]

    found = open_model(path)

    scaled = x * found_std(state) + state["normalize.mean"][:, None, None]
    assert row_gap(found(scaled), given.outputs["y"]) < 1e-4
    assert "normalised as in the file, mean 0.5 0.4 0.3, std 0.2 0.3 0.4" in str(found.opened)


def found_std(state: Mapping[str, Tensor]) -> Tensor:
    """The deviations of a normaliser, (C, 1, 1)."""
    return state["normalize.std"][:, None, None]


def test_weights_beside_their_configuration_are_not_guessed(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    kept = {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_head_dim": 8}
    kinds = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    diffusers.UNet2DModel(sample_size=32, **kept, **kinds).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"

    with pytest.raises(UserError, match=r"Give the directory '.*' as the denoiser"):
        open_model(file)
    assert open_model(file, network={"attention_head_dim": 8}, image_size=32) is not None
    (tmp_path / "config.json").unlink()
    assert "other settings as those of google/ddpm-cifar10-32 (network)" in str(open_model(file).opened)
