"""EDM's networks and MeanFlow's against answers of the originals, and against published keys and shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.models.networks import dhariwal, networks, songunet
from dbpkit.models.networks.conventions import varied
from tests.derivatives import assert_derivatives
from tests.reference import key_table, reference, row_gap

SONG = ["edm_ddpmpp_edmprecond", "edm_ddpmpp_vpprecond", "edm_ncsnpp_edmprecond", "edm_ncsnpp_veprecond"]
ADM = ["edm_adm_edmprecond", "edm_adm_iddpmprecond"]
FILES = [*SONG, *ADM, "meanflow_unet"]

SINGLE = 1e-5
"""Row-relative rounding of float32; the originals themselves lose up to 2e-5 in the Fourier features."""

FOURIER = 5e-5


def tolerance(file: str) -> float:
    return FOURIER if "ncsnpp" in file else SINGLE


def network_of(file: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """The network that shapes alone describe, but for the width of a head, and arguments and answers.

    It is filled as the opener fills it, from no memory.
    """
    found = reference(file)
    state = {name.removeprefix("model."): t for name, t in found.state.items() if name != "u"}
    name, module = ("dhariwal", dhariwal) if file in ADM else ("songunet", songunet)
    options = module.options_from_shapes({n: tuple(t.shape) for n, t in state.items()})
    if file in ADM:
        options["channels_per_head"] = found.config["_channels_per_head"]
    with torch.device("meta"):
        network = networks.get(name)(**options).eval()
    network.load_state_dict(state, assign=True)
    return network, found.inputs, found.outputs


def answer(network: nn.Module, given: dict[str, Tensor], **changes: Any) -> Tensor:
    classes = given["class_labels"].argmax(1) if "class_labels" in given else None
    times = (given["t"], given["h"]) if "h" in given else given["t"]
    return network(given["x"], times, **{"label": classes, **changes})


@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_network_answers_as_the_original(file: str) -> None:
    network, given, expected = network_of(file)
    augment = given.get("augment_labels", given.get("augment"))
    assert row_gap(answer(network, given), expected["y"]) < tolerance(file)
    assert row_gap(answer(network, given, augment=augment), expected["y_augment"]) < tolerance(file)
    assert row_gap(answer(network, given, augment=torch.zeros_like(augment)), expected["y"]) < tolerance(file)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        *[(file, "qkv_order", "blocks") for file in (*SONG, *ADM)],
        *[(file, "qkv_order", "heads") for file in ADM],
        ("meanflow_unet", "qkv_order", "interleaved"),
        *[(file, "time_order", "cos_sin") for file in (*SONG, "meanflow_unet")],
        *[(file, "time_order", "sin_cos") for file in ADM],
        *[(file, "time_divisor", "half") for file in (SONG[0], SONG[1], "meanflow_unet")],
        *[(file, "time_divisor", "half-1") for file in ADM],
    ],
)
@torch.no_grad()
def test_other_convention_is_a_clear_mismatch(file: str, name: str, value: str) -> None:
    """EDM's labels, logarithms below 2, are where the two divisors differ least."""
    network, given, expected = network_of(file)
    other = varied(network, name, value)
    assert other is not None
    assert row_gap(answer(other, given), expected["y"]) > 100 * tolerance(file)
    assert row_gap(answer(network, given), expected["y"]) < tolerance(file)


@torch.no_grad()
def test_labels_of_songunet_carry_the_root_of_their_number_and_those_of_dhariwal_do_not() -> None:
    for file, other in ((SONG[1], 1.0), (ADM[0], 10**0.5)):
        network, given, expected = network_of(file)
        factor = network.label_dim**0.5 if file in SONG else 1.0
        network.map_label.weight.mul_(other / factor)
        assert row_gap(answer(network, given), expected["y"]) > 100 * SINGLE


@pytest.mark.parametrize("file", FILES)
@torch.no_grad()
def test_eps_of_the_other_kind_of_norm_is_a_mismatch(file: str) -> None:
    """The faintest of all conventions: in single precision hardly more than rounding."""
    network, given, _ = network_of(file)
    given = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    norms = [m for m in network.double().modules() if isinstance(m, nn.GroupNorm)]
    expected = answer(network, given)
    assert {norm.eps for norm in norms} == {1e-5 if file in ADM else 1e-6}
    for norm in norms:
        norm.eps = 1e-6 if file in ADM else 1e-5
    assert row_gap(answer(network, given), expected) > 1e-6


@torch.no_grad()
def test_no_label_is_one_hot_of_nothing() -> None:
    """The layer of SongUNet has a bias, which stays."""
    for file in (SONG[1], ADM[0]):
        network, given, _ = network_of(file)
        found = answer(network, given, label=None)
        network.map_label.weight.zero_()
        assert torch.equal(found, answer(network, given))


@torch.no_grad()
def test_one_time_alone_averages_back_to_zero() -> None:
    network, given, expected = network_of("meanflow_unet")
    found = network(given["state"], given["state_t"])
    assert row_gap(found, expected["average_velocity"]) < SINGLE
    instant = network(given["state"], (given["state_t"], torch.zeros_like(given["state_t"])))
    assert row_gap(instant, expected["velocity"]) < SINGLE


@pytest.mark.parametrize("file", FILES)
def test_derivatives_are_those_of_central_differences(file: str) -> None:
    network, given, _ = network_of(file)
    network, x = network.double(), given["x"][:1].double()
    given = {n: t[:1].double() if t.is_floating_point() else t[:1] for n, t in given.items()}
    assert_derivatives(lambda image: answer(network, {**given, "x": image}), x)


@pytest.mark.parametrize(
    ("table", "name", "parameters"),
    [
        ("edm_cifar10_uncond_vp", "songunet", 55_733_891),
        ("edm_cifar10_cond_vp", "songunet", 55_735_299),
        ("edm_cifar10_uncond_ve", "songunet", 56_397_827),
        ("edm_imagenet64_cond_adm", "dhariwal", 295_899_267),
    ],
)
def test_network_of_full_size_has_the_published_keys_in_their_order(
    table: str, name: str, parameters: int
) -> None:
    shapes = {key.removeprefix("model."): shape for key, shape in key_table(table).items()}
    module = dhariwal if name == "dhariwal" else songunet
    with torch.device("meta"):
        network = networks.get(name)(**module.options_from_shapes(shapes))
    assert [(n, tuple(t.shape)) for n, t in network.state_dict().items()] == list(shapes.items())
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_shapes_of_another_network_are_refused() -> None:
    shapes = {"map_layer0.weight": (8, 8), "enc.16x16_conv.weight": (8, 3, 3, 3)}
    with pytest.raises(UserError, match=r"not of the network 'songunet': .* is missing"):
        songunet.options_from_shapes(shapes)
    with pytest.raises(UserError, match="not of the network 'dhariwal'"):
        dhariwal.options_from_shapes({"conv1.weight": (3,)})


def test_what_a_network_was_not_made_for_is_refused() -> None:
    song = networks.get("songunet")(model_channels=4, channel_mult=(1, 1), num_blocks=1)
    x, t = torch.zeros(1, 3, 32, 32), torch.zeros(1)
    with pytest.raises(UserError, match="not made for class labels"):
        song(x, t, torch.tensor([0]))
    with pytest.raises(UserError, match="not made for two noise labels"):
        song(x, (t, t))
    with pytest.raises(UserError, match="sides must be multiples of 2"):
        song(torch.zeros(1, 3, 31, 32), t)
    adm = networks.get("dhariwal")(img_resolution=8, model_channels=4, channel_mult=(1, 1), num_blocks=1)
    with pytest.raises(UserError, match="not made for augmentation labels"):
        adm(x, t, augment=torch.zeros(1, 9))
    with pytest.raises(UserError, match="img_resolution 6 must be a multiple of 4"):
        networks.get("songunet")(img_resolution=6)
    with pytest.raises(UserError, match="2 or 4 taps"):
        networks.get("songunet")(model_channels=4, resample_filter=(1.0,) * 100_000)
