"""Networks trained elsewhere: the adapter against diffusers' own arithmetic and against closed forms."""

import json
import math
import pickle  # noqa: TID251 - to make a file that must be refused
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.models.denoisers import VPDenoiser, from_pretrained
from dbpkit.models.diffusers import load_unet
from dbpkit.models.schedule import discrete_sigmas
from dbpkit.models.sources import denoiser_from_diffusers, denoiser_from_weights
from dbpkit.models.weights import load_weights, save_weights
from dbpkit.purification.diffusion import Purifier
from tests.oracles import uniform
from tests.reference import row_gap

PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random network, as save_pretrained writes it."""
    diffusers = pytest.importorskip("diffusers")
    with seeded_generator(0):
        network = diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            norm_num_groups=4,
        )
    folder = tmp_path_factory.mktemp("pretrained") / "network"
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the directory that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "network"))


def scheduler(**options: Any) -> Any:
    """Diffusers' DDPM scheduler, which reconstructs x0 in its own way."""
    return pytest.importorskip("diffusers").DDPMScheduler(clip_sample=False, **options)


def change_json(path: Path, **values: object) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drawn(shape: tuple[int, ...], draw: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normals."""
    return NoisePlan.of(5, range(shape[0]), draw=draw).normal("probe", 0, torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("i", [0, 1, 100, 500, 999])
def test_from_pretrained_x0_equals_diffusers_own(copy: Path, kind: str, i: int) -> None:
    reference = scheduler(prediction_type=kind)
    reference.save_pretrained(copy / "scheduler")
    denoiser = from_pretrained(str(copy))
    sigma = discrete_sigmas()[i].float()
    x = drawn((2, 3, 8, 8), 0).clamp(-1, 1) + sigma * drawn((2, 3, 8, 8), 1)
    state = x / (1 + sigma**2).sqrt()
    out = denoiser.network(state, torch.full((2,), i)).sample
    stepped = reference.step(out, i, state, generator=torch.Generator().manual_seed(0))
    expected = stepped.pred_original_sample
    # Both are float32. With the noise prediction x0 = x - sigma * z cancels terms as large as x
    # (554 at i = 999), so there the rounding is relative to x; v and x0 are predicted at their own size.
    largest = float(x.abs().max()) if kind == "epsilon" else 0.0
    assert (denoiser(x, sigma) - expected).abs().max() <= max(1e-5, 1e-6 * largest)


@pytest.mark.parametrize(("kind", "prediction"), PREDICTIONS.items())
def test_load_unet_scheduler_beside_it_gives_the_prediction(copy: Path, kind: str, prediction: str) -> None:
    scheduler(prediction_type=kind).save_pretrained(copy)
    assert (copy / "scheduler_config.json").is_file()
    assert load_unet(str(copy)).prediction == prediction


def test_load_unet_pipeline_directory_finds_network_and_scheduler(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "unet")
    scheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text("{}")
    assert load_unet(str(tmp_path)).prediction == "v"
    assert load_unet(str(tmp_path), "unet").prediction == "v"
    assert load_unet(str(tmp_path / "unet")).prediction == "v"


def test_load_unet_named_subfolder_is_used(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "ema")
    assert load_unet(str(tmp_path), "ema").prediction == "noise"


def test_load_unet_without_scheduler_predicts_noise(saved: Path) -> None:
    assert load_unet(str(saved)).prediction == "noise"


def test_from_pretrained_prediction_given_wins(saved: Path) -> None:
    assert from_pretrained(str(saved), prediction="v").prediction == "v"


def test_load_unet_network_is_frozen_float32_in_eval_mode(copy: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    diffusers.UNet2DModel.from_pretrained(copy, low_cpu_mem_usage=False).half().save_pretrained(copy)
    network = load_unet(str(copy)).network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_load_unet_leaves_the_global_generator(saved: Path) -> None:
    before = torch.get_rng_state()
    load_unet(str(saved))
    assert torch.equal(torch.get_rng_state(), before)


def test_load_unet_relative_path_is_local(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent.parent)
    assert load_unet(f"{copy.parent.name}/network").prediction == "noise"


@pytest.mark.parametrize(
    ("options", "index"),
    [
        ({"beta_schedule": "squaredcos_cap_v2"}, 500),
        ({"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}, 300),
        ({"beta_schedule": "sigmoid", "prediction_type": "sample"}, 300),
        ({"num_train_timesteps": 4000, "beta_end": 0.01}, 1200),
        ({"trained_betas": [0.1, 0.2, 0.3]}, 1),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, 900),
    ],
)
def test_other_schedules_estimate_what_diffusers_does(
    copy: Path, options: dict[str, Any], index: int
) -> None:
    """Diffusers' own step at this index reports the clean image that it estimates; their table is float32."""
    made = scheduler(**options)
    made.save_pretrained(copy / "scheduler")
    denoiser, network = from_pretrained(str(copy)), load_unet(str(copy)).network
    state = uniform(2, 3, 8, 8, seed=1, low=-1.0, high=1.0).float()
    with torch.no_grad():
        expected = made.step(network(state, index).sample, index, state).pred_original_sample
        sigma = denoiser.schedule.levels()[index]
        found = denoiser(state * (1 + sigma**2).sqrt().float(), sigma)
    assert row_gap(found, expected) < 2e-5
    assert isinstance(denoiser, VPDenoiser)
    assert json.loads(json.dumps(denoiser.described[1]))  # goes into a weights file


def test_linear_schedule_is_described_as_ever(copy: Path) -> None:
    scheduler().save_pretrained(copy / "scheduler")
    assert from_pretrained(str(copy)).described == ("vp", {"prediction": "noise"})
    assert from_pretrained(str(copy), prediction="v_prediction").described == ("vp", {"prediction": "v"})


def test_purifier_follows_the_schedulers_times(copy: Path) -> None:
    made = scheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=400)
    made.save_pretrained(copy / "scheduler")
    levels = Purifier(from_pretrained(str(copy)), "ddim", t_star=0.1, steps=200).sampler.levels
    bars = made.alphas_cumprod[torch.arange(40, -1, -2)].double()
    assert levels[:-1] == pytest.approx(((1 - bars) / bars).sqrt().tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400}, {"trained_betas": [0.1] * 9}],
)
def test_weights_file_of_it_keeps_the_schedule(copy: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """As training does that goes on from it."""
    scheduler(**options).save_pretrained(copy / "scheduler")
    denoiser = denoiser_from_diffusers(str(copy), time_index="floor", image_range=(0, 1))
    save_weights(tmp_path / "weights.safetensors", denoiser, denoiser.architecture)
    again, _ = load_weights(tmp_path / "weights.safetensors")
    assert again.schedule.sigmas == denoiser.schedule.sigmas
    assert (again.time_index, again.image_range) == ("floor", (0.0, 1.0))
    x = uniform(1, 3, 8, 8, seed=1).float()
    assert again(x, torch.tensor(0.3)).equal(denoiser(x, torch.tensor(0.3)))
    other = denoiser_from_weights(tmp_path / "weights.safetensors", time_index="nearest")
    assert other.time_index == other.architecture.denoiser_options["time_index"] == "nearest"
    assert (again.time_index, other.schedule.sigmas) == ("floor", denoiser.schedule.sigmas)


def test_load_unet_scheduler_without_betas_is_named(copy: Path) -> None:
    change = {"_class_name": "KarrasVeScheduler", "sigma_max": 100.0}
    (copy / "scheduler_config.json").write_text(json.dumps(change))
    with pytest.raises(UserError, match=r"schedule that is not known \('KarrasVeScheduler', without betas\)"):
        load_unet(str(copy))


def test_load_unet_betas_that_are_none_are_named(copy: Path) -> None:
    scheduler().save_pretrained(copy / "scheduler")
    change_json(copy / "scheduler" / "scheduler_config.json", beta_end=3.0)
    with pytest.raises(UserError, match="describes no noise schedule: the noise levels of a schedule must"):
        load_unet(str(copy))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, ("flow", {"time_scale": 1000.0})),
        ("CMStochasticIterativeScheduler", {}, ("consistency", {"sigma_data": 0.5, "sigma_min": 0.002})),
        ("EDMEulerScheduler", {}, ("edm", {"sigma_data": 0.5})),
        ("DDIMScheduler", {}, ("vp", {"prediction": "noise"})),
        ("DPMSolverMultistepScheduler", {}, ("vp", {"prediction": "noise"})),
    ],
)
def test_scheduler_chooses_the_adapter(
    copy: Path, name: str, options: dict[str, Any], expected: tuple[str, dict[str, Any]]
) -> None:
    getattr(pytest.importorskip("diffusers"), name)(**options).save_pretrained(copy / "scheduler")
    assert from_pretrained(str(copy)).described == expected


def test_flow_matching_step_is_that_of_diffusers(copy: Path) -> None:
    made = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler()
    made.save_pretrained(copy / "scheduler")
    made.set_timesteps(sigmas=[0.4])  # from noise share 0.4 to 0 in one step
    denoiser, network = from_pretrained(str(copy)), load_unet(str(copy)).network
    state = uniform(2, 3, 8, 8, seed=1, low=-1.0, high=1.0).float()
    with torch.no_grad():
        expected = made.step(network(state, made.timesteps[0]).sample, made.timesteps[0], state).prev_sample
        found = denoiser(state / 0.6, torch.tensor(0.4 / 0.6))
    assert row_gap(found, expected) < 1e-5


def test_edm_step_is_that_of_diffusers(copy: Path) -> None:
    made = pytest.importorskip("diffusers").EDMEulerScheduler()
    made.save_pretrained(copy / "scheduler")
    made.set_timesteps(5)
    denoiser, network = from_pretrained(str(copy)), load_unet(str(copy)).network
    x, sigma, t = uniform(2, 3, 8, 8, seed=1, low=-1.0, high=1.0).float(), made.sigmas[3], made.timesteps[3]
    with torch.no_grad():
        answer = network(made.scale_model_input(x, t), t).sample
        expected = made.step(answer, t, x).pred_original_sample
        found = denoiser(x, sigma)
    assert row_gap(found, expected) < 1e-5


def test_variance_exploding_network_has_fourier_times(copy: Path) -> None:
    """A fourier network divides by sigma itself, and its pipeline's images lie in [0, 1]."""
    diffusers = pytest.importorskip("diffusers")
    config = {**json.loads((copy / "config.json").read_text()), "time_embedding_type": "fourier"}
    with seeded_generator(0):
        network = diffusers.UNet2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    network.save_pretrained(copy)
    with pytest.raises(UserError, match=r"expects continuous noise levels \(fourier embedding\)"):
        load_unet(str(copy))
    diffusers.ScoreSdeVeScheduler().save_pretrained(copy / "scheduler")
    denoiser = from_pretrained(str(copy))
    u, sigma = uniform(2, 3, 8, 8, seed=1).float(), torch.tensor(0.7)
    with torch.no_grad():
        expected = 2 * (u + sigma**2 * network(u, sigma[None].expand(2)).sample) - 1
        assert row_gap(denoiser(2 * u - 1, 2 * sigma), expected) < 1e-5


def test_class_conditional_network_is_told_its_label(copy: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = {**json.loads((copy / "config.json").read_text()), "num_class_embeds": 5}
    with seeded_generator(0):
        network = diffusers.UNet2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    network.save_pretrained(copy)
    with pytest.raises(UserError, match=r"class-conditional .* label = 0"):
        Purifier(from_pretrained(str(copy)))
    x = uniform(2, 3, 8, 8, seed=1, low=-1.0, high=1.0).float()
    sigma = discrete_sigmas()[100]
    signal = (1 + sigma**2).rsqrt().float()
    with torch.no_grad():
        found = [from_pretrained(str(copy), label=label)(x, sigma) for label in (1, 4)]
        answer = network(signal * x, 100, torch.tensor([4, 4])).sample
    assert row_gap(found[1], x - sigma.float() * answer) < 1e-5
    assert row_gap(found[0], found[1]) > 1e-3


@pytest.mark.parametrize("kind", ["fixed_small", "learned_range", "learned"])
def test_network_with_a_variance_head_is_read_as_its_scheduler_says(copy: Path, kind: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = {**json.loads((copy / "config.json").read_text()), "out_channels": 6}
    with seeded_generator(0):
        network = diffusers.UNet2DModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    network.save_pretrained(copy)
    scheduler(variance_type=kind).save_pretrained(copy / "scheduler")
    denoiser = from_pretrained(str(copy))
    assert denoiser.variance == ("learned" if kind == "learned_range" else "drop")
    x, sigma = uniform(1, 3, 8, 8, seed=1, low=-1.0, high=1.0).float(), discrete_sigmas()[100]
    with torch.no_grad():
        answer = network((1 + sigma**2).rsqrt().float() * x, 100).sample[:, :3]
        assert row_gap(denoiser(x, sigma), x - sigma.float() * answer) < 1e-5


def test_load_unet_unknown_prediction_type_is_refused(copy: Path) -> None:
    scheduler().save_pretrained(copy)
    change_json(copy / "scheduler_config.json", prediction_type="flow")
    with pytest.raises(
        UserError, match=r"has prediction_type 'flow'. Available: epsilon, sample, v_prediction"
    ):
        load_unet(str(copy))


@pytest.mark.parametrize("content", ["{", "[1]"])
@pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
def test_load_unet_unreadable_json_is_named(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(
        UserError, match=f"'.*/{name}' (is not readable JSON|must hold a JSON object, not a list)"
    ):
        load_unet(str(copy))


@pytest.mark.parametrize("path", ["/nowhere/network", "./nowhere", "~/no/where", "nowhere"])
def test_load_unet_missing_directory_is_refused_without_network(path: str) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(
        UserError, match=f"network '{path}' is not a directory. Correct the path, or give a Hub id"
    ):
        load_unet(path)


def test_load_unet_empty_directory_lists_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(UserError, match=r"/config\.json' and '.*/unet/config\.json' are missing"):
        load_unet(str(tmp_path))
    with pytest.raises(UserError, match=r"no diffusers network: '.*/ema/config\.json' is missing"):
        load_unet(str(tmp_path), "ema")


def test_load_unet_without_weights_is_refused(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"holds no weights; expected '{WEIGHTS}'"):
        load_unet(str(copy))


class _Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.victim,)


def test_load_unet_pickle_that_would_run_something_is_refused(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Malicious(copy / "victim")))
    with pytest.raises(UserError, match=r"would call 'pathlib\.Path\.mkdir'"):
        load_unet(str(copy))
    assert not (copy / "victim").exists()


@pytest.mark.parametrize("old_names", [False, True])
def test_load_unet_pickle_only_gives_the_same_network(copy: Path, old_names: bool) -> None:
    """Also with the names of 2022, which diffusers' own reader of safetensors knows too."""
    network = load_unet(str(copy)).network
    state = network.state_dict()
    if old_names:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, old in names.items():
            state = {k.replace(f".{new}.", f".{old}."): v for k, v in state.items()}
        assert any("query" in k for k in state)
        save_file(state, copy / WEIGHTS)
        assert load_unet(str(copy)).network.state_dict().keys() == network.state_dict().keys()
    (copy / WEIGHTS).unlink()
    torch.save(state, copy / "diffusion_pytorch_model.bin")  # noqa: TID251 - what is read
    found = load_unet(str(copy)).network
    assert not found.training
    for name, tensor in found.state_dict().items():
        assert tensor.equal(network.state_dict()[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict"),
        ({"a": 1}, "holds no state dict"),
        ({"a": torch.ones(2)}, "tensors are missing"),
    ],
)
def test_load_unet_pickle_of_something_else_is_refused(copy: Path, content: Any, message: str) -> None:
    (copy / WEIGHTS).unlink()
    torch.save(content, copy / "diffusion_pytorch_model.bin")  # noqa: TID251
    with pytest.raises(UserError, match=message):
        load_unet(str(copy))


def test_load_unet_truncated_weights_are_one_sentence(copy: Path) -> None:
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"network '.*' cannot be loaded .*damaged") as raised:
        load_unet(str(copy))
    assert "\n" not in str(raised.value)


def test_load_unet_weights_of_other_width_are_one_sentence(copy: Path) -> None:
    change_json(copy / "config.json", block_out_channels=[8, 32])
    with pytest.raises(UserError, match=r"network '.*' cannot be loaded .*do not belong together") as raised:
        load_unet(str(copy))
    assert "\n" not in str(raised.value)


def test_load_unet_tensors_missing_are_never_left_random(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    del tensors["conv_out.bias"]
    save_file(tensors, copy / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors are missing .* 0 are unknown \(first 'conv_out\.bias'\)"):
        load_unet(str(copy))


def test_load_unet_tensors_left_over_are_refused(copy: Path) -> None:
    change_json(copy / "config.json", add_attention=False)
    with pytest.raises(
        UserError, match=r"0 tensors are missing .* [1-9]\d* are unknown \(first '.*attentions"
    ):
        load_unet(str(copy))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_load_unet_tensors_of_a_wrapped_module_are_named_so(copy: Path, prefix: str) -> None:
    tensors = load_file(copy / WEIGHTS)
    save_file({prefix + name: t for name, t in tensors.items()}, copy / WEIGHTS)
    with pytest.raises(
        UserError, match=rf"names like '{prefix}.*Save the module inside \(model\.module\) again"
    ):
        load_unet(str(copy))


def test_load_unet_half_precision_variant_is_read(copy: Path) -> None:
    whole = load_unet(str(copy)).network.state_dict()
    halves = {name: t.half() for name, t in load_file(copy / WEIGHTS).items()}
    save_file(halves, copy / "diffusion_pytorch_model.fp16.safetensors")
    (copy / WEIGHTS).unlink()
    for name, tensor in load_unet(str(copy)).network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole[name].half().float())
    save_file(halves, copy / "diffusion_pytorch_model.ema.safetensors")
    with pytest.raises(
        UserError, match=r"holds the variants ema, fp16, and not 'diffusion.*Copy the one you want"
    ):
        load_unet(str(copy))


@pytest.mark.parametrize(
    "name",
    ["evil.bin", "diffusion_pytorch_model-1.bin", "../network.safetensors", "/etc/passwd", "x.gguf", None, 5],
)
def test_load_unet_index_may_name_safetensors_beside_it_only(copy: Path, name: Any) -> None:
    """The library opens a file by its suffix, and would unpickle one that the index calls .bin."""
    (copy / "evil.bin").write_bytes(pickle.dumps(_Malicious(copy / "victim")))
    (copy.parent / "network.safetensors").write_bytes((copy / WEIGHTS).read_bytes())
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(copy / WEIGHTS), name)}
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"index\.json' names .* where a file 'diffusion_pytorch_model-\.\.\."
    ):
        load_unet(str(copy))
    assert not (copy / "victim").exists()


def test_load_unet_shards_beside_the_index_are_read(copy: Path) -> None:
    whole = load_unet(str(copy)).network.state_dict()
    shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
    (copy / WEIGHTS).rename(copy / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load_file(copy / shard), shard)}
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert all(torch.equal(t, whole[n]) for n, t in load_unet(str(copy)).network.state_dict().items())


def test_load_unet_quantised_network_is_refused(copy: Path) -> None:
    change_json(copy / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UserError, match="is a quantised network, which has no exact gradients"):
        load_unet(str(copy))


class Unfit(ModuleType):
    """A diffusers whose own imports fail, as with a torchvision made for another torch."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("Failed to import diffusers.models: operator torchvision::nms does not exist")


def test_load_unet_libraries_that_do_not_fit_are_blamed_themselves(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", Unfit("diffusers"))
    with pytest.raises(
        UserError, match=r"torchvision::nms does not exist\)\. The network's files are not to blame: install"
    ):
        load_unet(str(copy))


@pytest.mark.parametrize("path", [None, 5, {}, ["x"]])
def test_load_unet_path_that_is_none_raises(path: Any) -> None:
    with pytest.raises(UserError, match="a diffusers network is named by its directory or Hub id, not by"):
        from_pretrained(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "holds a UNet2DConditionModel, not a UNet2DModel"),
        ({"class_embed_type": "timestep"}, "is told a class as 'timestep', not by its number"),
        ({"time_embedding_type": "fourier"}, "expects continuous noise levels"),
    ],
)
def test_load_unet_other_kind_of_network_is_refused(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    change_json(copy / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_unet(str(copy))


def test_load_unet_hub_unreachable_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match="network 'nobody/nothing' is not a local directory and cannot be fetched"
    ) as raised:
        load_unet("nobody/nothing")
    assert "\n" not in str(raised.value)


def test_load_unet_without_diffusers_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install diffusers"):
        load_unet(str(tmp_path))


MEAN, DEVIATION = 0.2, 0.5


class GaussianNetwork(nn.Module):
    """The ideal network for pixels drawn from N(MEAN, DEVIATION**2), written in variance-preserving terms.

    With state u = a x0 + sqrt(b) z, b = 1 - a**2: u ~ N(a MEAN, a**2 DEVIATION**2 + b), so its score is
    linear; E[x0 | u] follows from Gaussian conditioning, E[z | u] and v from their definitions.
    """

    def __init__(self, prediction: str, time: str) -> None:
        super().__init__()
        self.prediction = prediction
        self.time = time

    def forward(self, u: Tensor, times: Tensor) -> Tensor:
        """The prediction for states (B, C, H, W) at times (B,)."""
        alpha_bar = torch.tensor([self.alpha_bar(float(t)) for t in times], dtype=u.dtype)[
            :, None, None, None
        ]
        a, b = alpha_bar.sqrt(), 1 - alpha_bar
        variance = alpha_bar * DEVIATION**2 + b
        x0 = MEAN + a * DEVIATION**2 / variance * (u - a * MEAN)
        z = b.sqrt() / variance * (u - a * MEAN)
        return {"x0": x0, "noise": z, "v": a * z - b.sqrt() * x0, "score": -(u - a * MEAN) / variance}[
            self.prediction
        ]

    def alpha_bar(self, t: float) -> float:
        """Ho et al. 2020 for an index 0..999; Song et al. 2021 for 999 times a time in (0, 1]."""
        if self.time == "discrete":
            assert t == int(t)
            return math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(int(t) + 1))
        t = t / 999
        return math.exp(-(0.1 * t + (20 - 0.1) * t**2 / 2))


@pytest.mark.parametrize("time", ["discrete", "continuous"])
@pytest.mark.parametrize("prediction", ["noise", "v", "x0", "score"])
def test_vp_denoiser_ideal_network_gives_the_posterior_mean(prediction: str, time: str) -> None:
    denoiser = VPDenoiser(GaussianNetwork(prediction, time), prediction, time)
    sigma = discrete_sigmas()[[3, 100, 400, 999]]  # 0.02, 0.3, 2 and 157
    x = MEAN + DEVIATION * drawn((4, 1, 2, 2), 0, torch.float64)
    x = x + sigma[:, None, None, None] * drawn((4, 1, 2, 2), 1, torch.float64)
    variance = sigma[:, None, None, None] ** 2
    expected = (DEVIATION**2 * x + variance * MEAN) / (DEVIATION**2 + variance)
    # float64; at sigma = 157 the score enters times sigma**2 = 2.5e4, and rounding is 1e-16 of that
    assert (denoiser(x, sigma) - expected).abs().max() < 1e-9


def test_vp_denoiser_continuous_time_is_999_times_the_sde_time() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, u: Tensor, times: Tensor) -> Tensor:
            seen.append(times)
            return u

    t = torch.tensor([0.001, 0.1, 1.0], dtype=torch.float64)
    sigma = torch.expm1(
        0.1 * t + 19.9 * t**2 / 2
    ).sqrt()  # Song et al. 2021, eq. 29: 1 / alpha_bar = 1 + sigma**2
    VPDenoiser(Spy(), "noise", "continuous")(torch.zeros(3, 1, 2, 2, dtype=torch.float64), sigma)
    assert seen[0].tolist() == pytest.approx([0.999, 99.9, 999.0], rel=1e-9)


def test_vp_denoiser_level_between_two_takes_the_nearer_index() -> None:
    seen: list[int] = []

    class Spy(nn.Module):
        def forward(self, u: Tensor, times: Tensor) -> Tensor:
            seen.extend(times.tolist())
            return u

    low, high = discrete_sigmas()[[200, 201]]
    sigma = torch.stack([low ** (1 - w) * high**w for w in (0.0, 0.4, 0.6, 1.0)])
    VPDenoiser(Spy())(torch.zeros(4, 1, 2, 2), sigma)
    assert seen == [200, 200, 201, 201]
