"""The networks of Score-SDE against outputs of the original class, and against published key tables."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.models.networks.conventions import varied
from dbpkit.models.networks.ncsnpp import NCSNpp
from dbpkit.models.networks.ncsnpp_blocks import resampled
from dbpkit.models.networks.shapes_ncsnpp import options_from_shapes
from dbpkit.models.weights import Architecture
from tests.derivatives import assert_derivatives
from tests.oracles import uniform
from tests.reference import Reference, beside_data, key_table, reference, row_gap

TOLERANCES = {"scoresde_vp_ddpmpp": 1e-5, "scoresde_vp_ddpmpp_deep": 1e-5, "flowpure_vp": 1e-5} | {
    "scoresde_ve_ncsnpp": 5e-5  # the original itself is 3e-5 from its own float64: sines of large angles
}
TABLES = {
    "scoresde_vp_cifar10_ddpmpp_continuous": (4, 61_804_419),
    "scoresde_vp_cifar10_ddpmpp_deep_continuous": (8, 106_632_579),
    "addt_ncsnpp_vp_deep": (8, 106_632_579),
}
"""Residual blocks and trained numbers of the published networks."""
VE = {"embedding_type": "fourier", "fir": True, "progressive_input": "residual"} | {
    "scale_by_sigma": True,
    "centered": False,
}
each_reference = pytest.mark.parametrize("name", list(TOLERANCES))


def unwrapped(names: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("module."): value for name, value in names.items()}


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def opened(name: str) -> tuple[NCSNpp, Reference]:
    """The network that a file's shapes describe, made without memory and filled from it."""
    found = reference(name)
    state = unwrapped(found.state)
    options = options_from_shapes({n: tuple(t.shape) for n, t in state.items()}, image_size=16)
    with torch.device("meta"):
        network = NCSNpp(**options)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False), found


@each_reference
def test_output_is_that_of_the_original(name: str) -> None:
    network, found = opened(name)
    answer = network(found.inputs["x"], found.inputs["t"])
    assert row_gap(answer, found.outputs["y"]) < TOLERANCES[name]


@each_reference
def test_options_are_read_off_the_shapes(name: str) -> None:
    found = reference(name)
    shapes = {n: tuple(t.shape) for n, t in unwrapped(found.state).items()}
    options = options_from_shapes(shapes, image_size=16)
    model, data = found.config["model"], found.config["data"]
    expected = {key: model[key] for key in options if key in model}
    assert options == {**expected, "image_channels": 3, "image_size": 16, "centered": data["centered"]}
    assert {"nf", "ch_mult", "num_res_blocks", "attn_resolutions", "fir", "num_scales"} <= expected.keys()


@each_reference
def test_other_convention_is_another_network(name: str) -> None:
    network, found = opened(name)
    for convention, value in (("time_order", "cos_sin"), ("time_divisor", "half")):
        other = varied(network, convention, value)
        if convention == "time_divisor" and network.fourier:  # its frequencies are in the file
            assert other is None
            continue
        assert other is not None
        gap = row_gap(other(found.inputs["x"], found.inputs["t"]), found.outputs["y"])
        assert gap > 0.01  # smallest for FlowPure, whose times are below 1


@each_reference
def test_option_that_no_file_shows_is_seen_in_the_output(name: str) -> None:
    found = reference(name)
    state = unwrapped(found.state)
    options = options_from_shapes({n: tuple(t.shape) for n, t in state.items()}, image_size=16)
    flags = (
        ["skip_rescale", "centered", "scale_by_sigma"]
        if options["fir"]
        else ["skip_rescale", "centered", "fir"]
    )
    for flag in flags:
        network = NCSNpp(**{**options, flag: not options.get(flag, True)}).eval()
        network.load_state_dict(state)
        with torch.no_grad():
            assert row_gap(network(found.inputs["x"], found.inputs["t"]), found.outputs["y"]) > 0.05, flag


@each_reference
def test_derivatives_are_those_of_central_differences(name: str) -> None:
    network, found = opened(name)
    t = found.inputs["t"].double()[1:2]
    assert_derivatives(lambda x: network.double()(x, t), found.inputs["x"][1:2])


@pytest.mark.parametrize("name", list(TABLES))
def test_published_keys_shapes_order_and_size(name: str) -> None:
    table = unwrapped(key_table(name))
    blocks, numbers = TABLES[name]
    options = options_from_shapes(table)
    assert (options["num_res_blocks"], options["nf"], options["ch_mult"]) == (blocks, 128, [1, 2, 2, 2])
    with torch.device("meta"):
        network = NCSNpp(**options)
        by_default = NCSNpp(num_res_blocks=blocks, num_scales=options["num_scales"])
    assert list(shapes_of(network).items()) == list(table.items())
    assert shapes_of(by_default) == table
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == numbers


def test_parameters_lie_in_the_order_of_the_nameless_averages() -> None:
    """The lists of the original class, of fixtures and of published configurations."""
    orders = json.loads(beside_data("fixtures", "ema_order.json").read_text())
    for name in TOLERANCES:
        order = orders["fixtures"][name]["shadow_params"]
        network, _ = opened(name)
        assert [f"module.{n}" for n, _ in network.named_parameters()] == order
    published = orders["published_configurations"]
    for name, options in (
        ("vp/cifar10_ddpmpp_deep_continuous", {"num_res_blocks": 8}),
        ("ve/cifar10_ncsnpp_continuous", VE),
    ):
        with torch.device("meta"):
            network = NCSNpp(**options, num_scales=1000)  # type: ignore[arg-type]
        assert [f"module.{n}" for n, _ in network.named_parameters()] == published[name]["shadow_params"]
        assert sum(p.numel() for p in network.parameters()) == published[name]["numbers"]
        assert len(network.state_dict()) == published[name]["state_dict_keys"]


@pytest.mark.parametrize(
    "options",
    [
        {"nf": 8, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [32]},
        {"nf": 8, "ch_mult": [1, 1, 2], "num_res_blocks": 3, "attn_resolutions": []},
        {"nf": 4, "ch_mult": [3, 1], "num_res_blocks": 2, "attn_resolutions": [32, 16], "image_channels": 1},
        {"nf": 8, "ch_mult": [2, 2], "num_res_blocks": 1, "attn_resolutions": [16], **VE, "num_scales": 10},
    ],
)
def test_options_come_back_from_the_shapes_of_their_network(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        shapes = shapes_of(NCSNpp(**options))
    found = options_from_shapes({**shapes, "optimiser.step": ()})
    assert found | options == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "it has no 'all_modules.0.weight'"),
        (lambda s: {**s, "all_modules.2.weight": (8,)}, "'all_modules.2.weight' is no convolution"),
        (lambda s: {n: v for n, v in s.items() if "all_modules.3." not in n}, "residual blocks make no such"),
        (lambda s: {**s, "sigmas": ()}, "their shapes do not fit together"),
        (lambda s: {**s, "all_modules.3.Conv_0.weight": (9, 8, 3, 3)}, "a width of 9 is no multiple of 8"),
    ],
)
def test_other_shapes_are_refused_in_one_sentence(change: Any, message: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1))
    with pytest.raises(UserError, match="are not of the network 'ncsnpp': ") as caught:
        options_from_shapes(change(shapes))
    assert message in str(caught.value)


def test_filter_is_the_binomial_one_by_plain_loops() -> None:
    """Rows of (1, 3, 3, 1) / 8 at every second place; upwards the same between zeros, twice as large."""
    row = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    x = uniform(1, 2, 4, 6)

    def along(values: list[float], up: bool) -> list[float]:
        padded = [0.0, *values, 0.0]
        if not up:
            return [sum(w * padded[2 * i + k] for k, w in enumerate(row)) for i in range(len(values) // 2)]
        spread = [0.0, 0.0, *(v for value in values for v in (value, 0.0)), 0.0]
        return [2 * sum(w * spread[i + k] for k, w in enumerate(row)) for i in range(2 * len(values))]

    def both(image: list[list[float]], up: bool) -> list[list[float]]:
        rows = [along(r, up) for r in image]
        return [list(r) for r in zip(*[along(list(c), up) for c in zip(*rows, strict=True)], strict=True)]

    for up in (False, True):
        expected = torch.tensor([[both(c.tolist(), up) for c in x[0]]], dtype=torch.float64)
        torch.testing.assert_close(resampled(x, not up, True), expected)


def small(**options: Any) -> NCSNpp:
    return NCSNpp(**{"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, **options})


def test_first_answer_is_0_as_the_last_layer_starts_there() -> None:
    x = uniform(2, 3, 8, 8).float()
    assert torch.equal(small()(x, torch.tensor([1.0, 500.0])), torch.zeros_like(x))


def test_times_that_are_whole_numbers_are_those_times() -> None:
    network, x = opened("scoresde_vp_ddpmpp")[0].double(), uniform(2, 3, 16, 16)
    whole = torch.tensor([3, 700])
    assert torch.equal(network(x, whole), network(x, whole.double()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nf": 6}, "nf must be a multiple of 4, not 6"),
        ({"scale_by_sigma": True}, "scale_by_sigma needs embedding_type = 'fourier'"),
        ({"progressive_input": "residual"}, "needs fir = true"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NCSNpp(**options)


def test_wrong_sides_and_labels_are_refused() -> None:
    network, t = small(), torch.tensor([1.0])
    with pytest.raises(UserError, match="must be multiples of 2, not \\(7, 8\\)"):
        network(torch.zeros(1, 3, 7, 8), t)
    with pytest.raises(UserError, match="takes no class label"):
        network(torch.zeros(1, 3, 8, 8), t, torch.tensor([0]))


@pytest.mark.parametrize("options", [{"num_scales": 10**9}, {"nf": 2**31 - 4, **VE}])
def test_file_cannot_ask_for_tables_that_fill_the_memory(options: dict[str, Any]) -> None:
    """Tables are no parameters, which are counted against the file's."""
    with pytest.raises(UserError, match="must be a whole number"):
        Architecture("denoiser", "ncsnpp", options).build()


def test_drawn_frequencies_are_no_parameters() -> None:
    """They are not trained, whatever is asked of the parameters."""
    network: Any = small(**VE, fourier_scale=4.0)
    drawn: Tensor = network.all_modules[0].W
    assert "all_modules.0.W" in network.state_dict()
    assert all(p is not drawn for p in network.parameters())
    assert 0.5 < float(drawn.std()) / 4 < 2
