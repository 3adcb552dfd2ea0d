"""The PyTorch port of Ho et al.'s DDPM under diffusers' names, against answers of the original."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.models.diffusers import build_unet
from dbpkit.models.networks import networks
from dbpkit.models.networks.ho_ddpm import (
    diffusers_name,
    ho_ddpm_to_diffusers,
    options_from_shapes,
    unet_config,
)
from tests.derivatives import assert_derivatives
from tests.oracles import fill, uniform
from tests.reference import key_table, reference, row_gap

pytest.importorskip("diffusers")

SINGLE = 1e-5
"""Row-relative rounding of float32."""


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def network_of(**changes: Any) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    found = reference("ho_ddpm")
    config, state = ho_ddpm_to_diffusers(found.state)
    network = build_unet({**config, **changes}).eval()
    network.load_state_dict(state)
    return network, found.inputs, found.outputs


@torch.no_grad()
def test_renamed_network_answers_as_the_original() -> None:
    network, given, expected = network_of()
    assert row_gap(network(given["x"], given["t"]).sample, expected["y"]) < SINGLE


@torch.no_grad()
def test_registered_network_takes_the_renamed_state_and_answers_alike() -> None:
    found = reference("ho_ddpm")
    with torch.device("meta"):  # as the opener fills it, from no memory
        network = networks.get("ho_ddpm")(**options_from_shapes(shapes_of(found.state))).eval()
    network.load_state_dict(ho_ddpm_to_diffusers(found.state)[1], assign=True)
    out = network(found.inputs["x"], found.inputs["t"]).sample
    assert row_gap(out, found.outputs["y"]) < SINGLE


@torch.no_grad()
def test_padding_on_all_sides_is_a_clear_mismatch_and_another_eps_a_faint_one() -> None:
    for change, least in ({"downsample_padding": 1}, 0.1), ({"norm_eps": 1e-5}, SINGLE):
        network, given, expected = network_of(**change)
        assert row_gap(network(given["x"], given["t"]).sample, expected["y"]) > least


@torch.no_grad()
def test_times_are_embedded_as_the_paper_does() -> None:
    """The reference file has one channel a group, so that norms take away all that depends on time."""
    network, t = networks.get("ho_ddpm")(ch=64, ch_mult=(1,), num_res_blocks=1, attn_resolutions=()), [0, 250]
    steps = [math.exp(-math.log(10_000) * k / 31) for k in range(32)]
    expected = [[f(time * w) for f in (math.sin, math.cos) for w in steps] for time in t]
    found = network.time_proj(torch.tensor(t)).double()
    assert torch.allclose(
        found, torch.tensor(expected, dtype=torch.float64), atol=1e-4
    )  # sin of 250, float32
    fill(network, seed=0)
    x = uniform(1, 3, 8, 8, seed=1)
    first, second, other = (network(x, torch.tensor([time])).sample for time in (250, 251, 250))
    assert torch.equal(first, other)
    assert row_gap(second, first) > 100 * SINGLE


def test_first_weights_predict_no_noise_at_all() -> None:
    network = networks.get("ho_ddpm")(ch=32, ch_mult=(1, 1), num_res_blocks=1)
    assert not network(uniform(1, 3, 8, 8).float(), torch.tensor([250])).sample.any()


def test_derivatives_are_those_of_central_differences() -> None:
    found = reference("ho_ddpm")
    network = networks.get("ho_ddpm")(**options_from_shapes(shapes_of(found.state))).eval()
    network.load_state_dict(ho_ddpm_to_diffusers(found.state)[1])
    network.double()
    t = found.inputs["t"][1:2]
    assert_derivatives(lambda image: network(image, t).sample, found.inputs["x"][1:2])


def test_full_size_has_the_published_keys_of_both_sides() -> None:
    table = key_table("hao_ddpm_cifar10")
    with torch.device("meta"):
        network = networks.get("ho_ddpm")()
        config, state = ho_ddpm_to_diffusers({name: torch.empty(shape) for name, shape in table.items()})
    assert shapes_of(state) == shapes_of(network.state_dict())
    assert options_from_shapes(table).items() >= {"ch": 128, "ch_mult": (1, 2, 2, 2)}.items()
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    assert len(state) == 328
    assert config["block_out_channels"] == [128, 256, 256, 256]


def test_state_of_the_library_keeps_its_names_but_for_those_of_2022() -> None:
    options = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (16,)}
    state = networks.get("ho_ddpm")(**options).state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    aged = {
        next(
            (name.replace(f".{new}.", f".{was}.") for new, was in old.items() if f".{new}." in name), name
        ): t
        for name, t in state.items()
    }
    assert aged.keys() != state.keys()
    for given in (state, aged):
        config, renamed = ho_ddpm_to_diffusers(given)
        assert list(renamed) == list(state)
        assert all(torch.equal(renamed[name], state[name]) for name in state)
        assert config["block_out_channels"] == [32, 64]
    assert options.items() <= options_from_shapes(shapes_of(aged)).items()


def test_levels_of_the_way_up_are_counted_from_the_other_end() -> None:
    assert diffusers_name("up.0.block.2.nin_shortcut.bias", 4) == "up_blocks.3.resnets.2.conv_shortcut.bias"
    assert diffusers_name("up.3.upsample.conv.weight", 4) == "up_blocks.0.upsamplers.0.conv.weight"
    assert diffusers_name("down.1.attn.0.proj_out.bias", 4) == "down_blocks.1.attentions.0.to_out.0.bias"
    with pytest.raises(UserError, match=r"'down\.1\.other' is unknown"):
        diffusers_name("down.1.other", 4)


def test_attention_of_six_resolutions_is_at_the_fifth() -> None:
    """CelebA-HQ's network: 256 pixels, attention at 16."""
    shapes: dict[str, tuple[int, ...]] = {"conv_in.weight": (128, 3, 3, 3)}
    for level, factor in enumerate((1, 1, 2, 2, 4, 4)):
        shapes |= {f"down.{level}.block.{i}.conv1.weight": (128 * factor, 128, 3, 3) for i in range(2)}
    found = options_from_shapes({**shapes, "down.4.attn.0.q.weight": (512, 512, 1, 1)})
    assert found["attn_resolutions"] == (16,)
    assert found["resolution"] == 256
    assert unet_config(**found)["down_block_types"].index("AttnDownBlock2D") == 4


def test_tensors_of_another_network_are_refused() -> None:
    with pytest.raises(UserError, match=r"not of the network 'ho_ddpm': 'conv_in\.weight' is missing"):
        options_from_shapes({"conv1.weight": (3, 3)})
    with pytest.raises(UserError, match="do not fit together"):
        options_from_shapes({"conv_in.weight": (128,)})
