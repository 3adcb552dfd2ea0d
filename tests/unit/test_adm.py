"""The networks of guided-diffusion and its relatives against the originals' outputs and published keys."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.models.networks.adm import ADM
from dbpkit.models.networks.adm_blocks import Residual
from dbpkit.models.networks.conventions import CONVENTIONS, varied
from dbpkit.models.networks.shapes_adm import options_from_shapes
from tests.derivatives import assert_derivatives
from tests.oracles import fill, uniform
from tests.reference import Reference, key_table, reference, row_gap

HIDDEN: dict[str, dict[str, Any]] = {
    "consistency_unet": {"num_head_channels": 16},
    "guided_unet_classcond": {"num_head_channels": 16},
    "guided_unet_legacy": {"num_head_channels": 16},
    "guided_unet_neworder": {"num_head_channels": 8, "qkv_order": "blocks"},
    "improved_unet_cifar": {},
    "improved_unet_noshift": {"resblock_updown": False},
}
"""What the fixtures' weights do not show, as they are too narrow for heads of 64 channels."""
TOLERANCE = 1e-5
PUBLISHED: dict[str, dict[str, Any]] = {
    "256x256_diffusion": {"num_classes": 1000},
    "64x64_diffusion": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_res_blocks": 3,
        "attention_resolutions": [2, 4, 8],
        "num_classes": 1000,
        "qkv_order": "blocks",
    },
    "128x128_diffusion": {
        "channel_mult": [1, 1, 2, 3, 4],
        "attention_resolutions": [4, 8, 16],
        "num_classes": 1000,
        "num_head_channels": None,
    },
    "512x512_diffusion": {
        "channel_mult": [0.5, 1, 1, 2, 2, 4, 4],
        "attention_resolutions": [16, 32, 64],
        "num_classes": 1000,
    },
    "cifar10_uncond_50M_500K": {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_res_blocks": 3,
        "attention_resolutions": [2, 4],
        "resblock_updown": False,
        "num_head_channels": None,
    },
    "cd_imagenet64_l2": {
        "model_channels": 192,
        "channel_mult": [1, 2, 3, 4],
        "num_res_blocks": 3,
        "attention_resolutions": [2, 4, 8],
        "num_classes": 1000,
        "learn_sigma": False,
        "qkv_order": "blocks",
        "qkv_dims": 2,
    },
}
"""Settings of published files, from the READMEs of their repositories."""
each_reference = pytest.mark.parametrize("name", list(HIDDEN))


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def opened(name: str, **changes: Any) -> tuple[ADM, Reference]:
    """The network that a file's shapes describe, with the rest, made without memory and filled."""
    found = reference(name)
    options = options_from_shapes({n: tuple(t.shape) for n, t in found.state.items()})
    with torch.device("meta"):
        network = ADM(**{**options, **HIDDEN[name], **changes})
    network.load_state_dict(found.state, assign=True)
    return network.eval().requires_grad_(False), found


def answer(network: torch.nn.Module, found: Reference) -> Tensor:
    with torch.no_grad():
        return network(found.inputs["x"], found.inputs["t"], found.inputs.get("label"))


@each_reference
def test_output_is_that_of_the_original(name: str) -> None:
    network, found = opened(name)
    assert row_gap(answer(network, found), found.outputs["y"]) < TOLERANCE


@each_reference
def test_options_are_read_off_the_shapes(name: str) -> None:
    found = reference(name)
    options = options_from_shapes({n: tuple(t.shape) for n, t in found.state.items()})
    model = found.config["model"]
    expected = {key: model[key] for key in options if key in model}
    learnt = model["out_channels"] == 6
    order = {
        "qkv_order": "blocks" if model.get("use_new_attention_order") or "consistency" in name else "heads"
    }
    dims = {"image_channels": 3, "learn_sigma": learnt, "qkv_dims": 2 if "consistency" in name else 1}
    assert {**options, **HIDDEN[name]} == {"num_head_channels": None, "resblock_updown": False} | {
        **expected,
        **order,
        **dims,
    }


@each_reference
def test_other_convention_is_another_network(name: str) -> None:
    network, found = opened(name)
    tried = 0
    for convention, values in CONVENTIONS.items():
        for value in values:
            if any(getattr(m, convention, None) == value for m in network.modules()):
                continue
            other = varied(network, convention, value)
            assert other is not None
            gap = row_gap(answer(other, found), found.outputs["y"])
            if name == "improved_unet_noshift" and convention != "qkv_order":
                assert (
                    gap < TOLERANCE
                )  # added before a norm of one channel a group, which takes it away again
            else:
                assert gap > 0.05, value
            tried += 1
    assert tried == 4  # two orders of rows, one of halves, one divisor


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("guided_unet_legacy", {"num_head_channels": 32}),
        ("improved_unet_cifar", {"num_heads": 2}),
    ],
)
def test_option_that_no_file_shows_is_seen_in_the_output(name: str, changes: dict[str, Any]) -> None:
    network, found = opened(name, **changes)
    assert row_gap(answer(network, found), found.outputs["y"]) > 0.05


@pytest.mark.parametrize("name", ["guided_unet_legacy", "consistency_unet", "improved_unet_cifar"])
def test_derivatives_are_those_of_central_differences(name: str) -> None:
    network, found = opened(name)
    label = found.inputs["label"][:1] if "label" in found.inputs else None
    double, t = network.double(), found.inputs["t"][:1]
    assert_derivatives(lambda x: double(x, t, label), found.inputs["x"][:1])


def test_published_keys_shapes_order_and_size() -> None:
    table = key_table("guided_diffusion_256_uncond")
    with torch.device("meta"):
        network, by_default = ADM(**options_from_shapes(table)), ADM()
    assert list(shapes_of(network).items()) == list(table.items())
    assert shapes_of(by_default) == table
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 552_814_086
    assert {m.heads for m in network.modules() if hasattr(m, "heads")} == {8, 16}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_settings_come_back_from_the_shapes_of_their_network(name: str) -> None:
    options = PUBLISHED[name]
    with torch.device("meta"):
        shapes = shapes_of(ADM(**options))
    found = options_from_shapes(shapes)
    assert found | options == found
    with torch.device("meta"):
        assert shapes_of(ADM(**found)) == shapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "it has no 'time_embed.0.weight'"),
        (lambda s: {**s, "time_embed.0.weight": (4, 0)}, "their shapes do not fit together"),
        (
            lambda s: {n: v for n, v in s.items() if "output_blocks.1" not in n},
            "blocks on the way up make no such",
        ),
        (
            lambda s: {n: v for n, v in s.items() if "input_blocks.3" not in n},
            "blocks on the way up make no such",
        ),
    ],
)
def test_other_shapes_are_refused_in_one_sentence(change: Any, message: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(small(channel_mult=(1, 2, 2)))
    with pytest.raises(UserError, match="are not of the network 'adm': ") as caught:
        options_from_shapes(change(shapes))
    assert message in str(caught.value)


def small(**options: Any) -> ADM:
    given = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}
    return ADM(**{**given, "num_head_channels": 16, **options})


@pytest.mark.parametrize("options", [{}, {"learn_sigma": False}, {"resblock_updown": False}, {"qkv_dims": 2}])
def test_first_answer_is_0_as_the_last_layer_starts_there(options: dict[str, Any]) -> None:
    channels = 3 if options == {"learn_sigma": False} else 6
    found = small(**options)(uniform(2, 3, 8, 8).float(), torch.tensor([1, 500]))
    assert torch.equal(found, torch.zeros(2, channels, 8, 8))


def test_convolutions_of_either_kind_are_the_same_attention() -> None:
    flat, square, x, t = small(), small(qkv_dims=2), uniform(2, 3, 8, 8), torch.tensor([1, 500])
    fill(flat, 3)
    state = {
        n: t[..., None] if "qkv.w" in n or "proj_out.w" in n else t for n, t in flat.state_dict().items()
    }
    square.double().load_state_dict(state)
    torch.testing.assert_close(square(x, t), flat(x, t))


def test_time_that_is_added_is_added_before_the_second_norm() -> None:
    """In words of its own: the fixture's groups have one channel, so it shows nothing of this."""
    block = Residual(32, 64, embedding_size=8, dropout=0.0, scale_shift=False)
    fill(block, 7)
    x, e = uniform(2, 32, 4, 4), uniform(2, 8, seed=1)
    w = {name.replace(".", "_"): p for name, p in block.named_parameters()}
    first = functional.group_norm(x, 32, w["in_layers_0_weight"], w["in_layers_0_bias"])
    h = functional.conv2d(functional.silu(first), w["in_layers_2_weight"], w["in_layers_2_bias"], padding=1)
    h = h + (functional.silu(e) @ w["emb_layers_1_weight"].T + w["emb_layers_1_bias"])[:, :, None, None]
    h = functional.silu(functional.group_norm(h, 32, w["out_layers_0_weight"], w["out_layers_0_bias"]))
    h = functional.conv2d(h, w["out_layers_3_weight"], w["out_layers_3_bias"], padding=1)
    kept = functional.conv2d(x, w["skip_connection_weight"], w["skip_connection_bias"])
    torch.testing.assert_close(block(x, e), kept + h)
    assert not torch.allclose(block(x, e), block(x, 2 * e))


def test_wrong_sides_and_labels_are_refused() -> None:
    t, x = torch.tensor([1]), torch.zeros(1, 3, 8, 8)
    with pytest.raises(UserError, match="must be multiples of 2, not \\(7, 8\\)"):
        small()(torch.zeros(1, 3, 7, 8), t)
    with pytest.raises(UserError, match="takes no class label"):
        small()(x, t, torch.tensor([0]))
    with pytest.raises(UserError, match=r"trained with 5 classes\. Give it a label"):
        small(num_classes=5)(x, t)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_channels": 24}, "must be a multiple of 32, not 24"),
        ({"channel_mult": [1, 0.4]}, "must be a multiple of 32, not 12"),
        ({"num_head_channels": 24}, "attention of 64 channels cannot have heads of 24 channels"),
        ({"num_head_channels": None, "num_heads": 3}, "attention of 64 channels cannot have 3 heads"),
    ],
)
def test_widths_that_do_not_divide_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)
