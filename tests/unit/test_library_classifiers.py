"""Classifiers of other libraries: what they see, whose weights they have, and what is missing.

The libraries need not be installed: stand-ins of their published interface are put in their place, and tests
with the libraries themselves run where they can be imported.
"""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dbpkit import UserError, load_classifier
from dbpkit.foundation.noise import seeded_generator
from dbpkit.models.sources import classifier_sources

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Network(nn.Module):
    """Logits of images of 8 x 8 pixels, which notes what it saw."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, classes)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return self.fc(x.flatten(1))


def seen_by(network: nn.Module, x: Tensor) -> Tensor:
    """What the innermost network saw of images."""
    inner = next(part for part in network.modules() if isinstance(part, Network))
    network(x)
    return inner.seen[-1]


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (x - mean) / std


def images(side: int) -> Tensor:
    """Two images of no pattern."""
    return (torch.arange(2.0 * 3 * side * side).reshape(2, 3, side, side) * 0.37) % 1


def stored(path: Path, classes: int = 3) -> Path:
    """A training state, whose weights are those of a seed."""
    with seeded_generator(5):
        network = Network(classes)
    if path.suffix == ".safetensors":
        save_file(network.state_dict(), path)
    else:
        state = {f"module.{k}": v for k, v in network.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, path)  # noqa: TID251 - such files are read
    return path


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Puts a stand-in in a module's place."""

    def placed(name: str, **content: Any) -> ModuleType:
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return placed


@pytest.fixture
def timm(put: Callable[..., ModuleType]) -> ModuleType:
    """A stand-in of timm with one model."""
    config = {"input_size": (3, 8, 8), "mean": MEAN, "std": STD, "interpolation": "bicubic", "num_classes": 3}

    def create_model(
        name: str, pretrained: bool, pretrained_cfg_overlay: dict[str, Any], **more: Any
    ) -> Network:
        network = Network(more.get("num_classes", 3))
        network.pretrained_cfg = {**config, **pretrained_cfg_overlay}  # type: ignore[assignment]
        if pretrained:
            network.load_state_dict(network.pretrained_cfg["state_dict"])  # type: ignore[index]
        return network

    return put(
        "timm",
        is_model=lambda name: name == "tiny",
        list_models=lambda: ["tiny", "large"],
        get_pretrained_cfg=lambda name: SimpleNamespace(hf_hub_id="timm/tiny.in1k"),
        create_model=create_model,
    )


def test_timm_normalises_and_resizes_as_its_configuration_says(timm: ModuleType) -> None:
    model = load_classifier("timm", {"model": "tiny", "pretrained": False})
    assert torch.allclose(seen_by(model, images(8)), normalised(images(8)), atol=1e-6)
    smaller = functional.interpolate(images(16), (8, 8), mode="bicubic", antialias=True)
    assert torch.allclose(seen_by(model, images(16)), normalised(smaller), atol=1e-5)


@pytest.mark.parametrize(
    ("resize", "antialias"), [("bilinear", True), ("bilinear", False), ("bicubic", False)]
)
def test_timm_resizes_as_it_is_told(timm: ModuleType, resize: str, antialias: bool) -> None:
    options = {"model": "tiny", "pretrained": False, "resize": resize, "antialias": antialias}
    model = load_classifier("timm", options)
    expected = functional.interpolate(images(12), (8, 8), mode=resize, antialias=antialias)
    assert torch.allclose(seen_by(model, images(12)), normalised(expected), atol=1e-5)


def test_timm_resizing_off_leaves_images(timm: ModuleType) -> None:
    model = load_classifier("timm", {"model": "tiny", "pretrained": False, "resize": "off"})
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        model(images(16))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_timm_weights_of_a_file(timm: ModuleType, tmp_path: Path, ending: str) -> None:
    path = stored(tmp_path / f"w.{ending}", classes=7)
    model = load_classifier("timm", {"model": "tiny", "weights": str(path), "classes": 7})
    own = Network(7)
    own.load_state_dict({k.rpartition("network.")[2]: v for k, v in model.state_dict().items()})
    assert torch.equal(model(images(8)), own(normalised(images(8))))
    with pytest.raises(UserError, match=r"model 'tiny' cannot be made .*size mismatch"):
        load_classifier("timm", {"model": "tiny", "weights": str(path)})


def test_timm_random_weights_are_the_same_every_time_and_leave_the_generator(timm: ModuleType) -> None:
    before = torch.random.get_rng_state()
    first, second = (load_classifier("timm", {"model": "tiny", "pretrained": False}) for _ in range(2))
    assert torch.equal(first(images(8)), second(images(8)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_timm_gradient_reaches_pixels_of_another_size(timm: ModuleType) -> None:
    model = load_classifier("timm", {"model": "tiny", "pretrained": False}).double()
    x = images(16).double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    step = torch.zeros_like(x)
    step[1, 2, 5, 9] = 1e-4
    difference = (model(x + step) - model(x - step))[:, 0].sum() / 2e-4
    assert gradient[1, 2, 5, 9].item() == pytest.approx(difference.item(), rel=1e-6)


def test_timm_weights_of_the_cache_only_unless_asked(
    timm: ModuleType, put: Callable[..., ModuleType], tmp_path: Path
) -> None:
    asked: list[str] = []

    def fetch(repository: str, name: str) -> str:
        asked.append(f"{repository}/{name}")
        return str(stored(tmp_path / name))

    hub = put("huggingface_hub", hf_hub_download=fetch, try_to_load_from_cache=lambda *_: None)
    with pytest.raises(
        UserError, match=r"'model.safetensors' of 'timm/tiny.in1k' is not in the Hub's cache .* Set"
    ):
        load_classifier("timm", {"model": "tiny"})
    assert asked == []
    load_classifier("timm", {"model": "tiny", "download": True})
    assert asked == ["timm/tiny.in1k/model.safetensors"]
    hub.try_to_load_from_cache = lambda *_: str(tmp_path / "model.safetensors")  # type: ignore[attr-defined]
    load_classifier("timm", {"model": "tiny"})
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "tinny", "pretrained": False}, "there is no model 'tinny' in timm. Did you mean 'tiny'?"),
        ({"model": "hf-hub:owner/name"}, "there is no model 'hf-hub:owner/name' in timm"),
        ({"model": "tiny", "classes": 10}, "tell their own classes apart"),
        ({"model": "tiny", "weights": "nowhere.pth"}, "nowhere.pth"),
        ({"model": "tiny", "size": 3}, "size"),
    ],
)
def test_timm_mistakes_are_one_sentence(timm: ModuleType, options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as raised:
        load_classifier("timm", options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def vision(put: Callable[..., ModuleType]) -> ModuleType:
    """A stand-in of torchvision.models with one model of two published weights."""
    preset = SimpleNamespace(
        crop_size=[8],
        resize_size=[10],
        mean=list(MEAN),
        std=list(STD),
        interpolation=SimpleNamespace(value="bilinear"),
    )
    entry = SimpleNamespace(
        url="https://example.org/models/tiny-0123abcd.pth",
        meta={"categories": ["cat", "dog", "eel"]},
        transforms=lambda: preset,
    )

    class Weights(dict):  # type: ignore[type-arg]
        __members__: ClassVar = {"V1": entry}
        DEFAULT = entry

    put("torchvision")
    return put(
        "torchvision.models",
        list_models=lambda module: ["tiny"],
        get_model_weights=lambda name: Weights(V1=entry),
        get_model=lambda name, weights, num_classes=3: Network(num_classes),
    )


def test_torchvision_sees_what_its_transforms_make(vision: ModuleType, tmp_path: Path) -> None:
    path = stored(tmp_path / "w.pth")
    model: Any = load_classifier("torchvision", {"model": "tiny", "weights": str(path)})
    smaller = functional.interpolate(images(16), (8, 8), mode="bilinear", antialias=True)
    assert torch.allclose(seen_by(model, images(16)), normalised(smaller), atol=1e-5)
    assert model.class_names == ("cat", "dog", "eel")


def test_torchvision_weights_of_the_cache_only_unless_asked(
    vision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(url: str, place: str, digits: str | None) -> None:
        asked.append((url, digits))
        stored(Path(place))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(UserError, match=r"not in torch's cache \('.*tiny-0123abcd\.pth'\), and nothing is"):
        load_classifier("torchvision", {"model": "tiny"})
    assert asked == []
    first = load_classifier("torchvision", {"model": "tiny", "download": True})
    second = load_classifier("torchvision", {"model": "tiny", "variant": "V1"})
    assert asked == [("https://example.org/models/tiny-0123abcd.pth", "0123abcd")]
    assert torch.equal(first(images(8)), second(images(8)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "tinny"}, "there is no model 'tinny' in torchvision. Did you mean 'tiny'?"),
        ({"model": "tiny", "variant": "V3"}, "unknown variant of torchvision's 'tiny' 'V3'"),
        ({"model": "tiny", "weights": "EMPTY"}, "holds no tensors"),
        ({"model": "tiny", "weights": "SEVEN"}, "does not fit this model"),
    ],
)
def test_torchvision_mistakes_are_one_sentence(
    vision: ModuleType, tmp_path: Path, options: dict[str, str], said: str
) -> None:
    files = {"EMPTY": tmp_path / "empty.pth", "SEVEN": stored(tmp_path / "seven.pth", classes=7)}
    torch.save({"epoch": 3}, files["EMPTY"])  # noqa: TID251 - such files are read
    given = {k: str(files.get(v, v)) for k, v in options.items()}
    with pytest.raises(UserError) as raised:
        load_classifier("torchvision", given)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def bench(put: Callable[..., ModuleType]) -> list[dict[str, str]]:
    """A stand-in of RobustBench; the calls of its loader."""
    calls: list[dict[str, str]] = []

    def load_model(model_name: str, **options: str) -> Network:
        if model_name == "Unknown":
            raise KeyError(model_name)
        calls.append({"model_name": model_name, **options})
        return Network()

    put("robustbench")
    put("robustbench.utils", load_model=load_model)
    return calls


def test_robustbench_loads_by_name_data_set_and_threat(bench: list[dict[str, str]], tmp_path: Path) -> None:
    file = tmp_path / "cifar100" / "L2" / "Someone2024.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    options = {"model": "Someone2024", "dataset": "cifar100", "threat": "L2", "folder": str(tmp_path)}
    model = load_classifier("robustbench", options)
    assert bench == [
        {
            "model_name": "Someone2024",
            "dataset": "cifar100",
            "threat_model": "L2",
            "model_dir": str(tmp_path),
        }
    ]
    assert torch.equal(seen_by(model, images(8)), images(8))  # it normalises inside
    resized = load_classifier("robustbench", {**options, "size": 8})
    assert torch.equal(
        seen_by(resized, images(16)), functional.interpolate(images(16), (8, 8), mode="bilinear")
    )


def test_robustbench_fetches_only_if_asked(bench: list[dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"file '.*cifar10/Linf/Standard\.pt' is missing, and nothing is fetched"
    ):
        load_classifier("robustbench", {"model": "Standard", "folder": str(tmp_path)})
    assert bench == []
    load_classifier("robustbench", {"model": "Standard", "folder": str(tmp_path), "download": True})
    assert len(bench) == 1
    with pytest.raises(UserError, match="model 'Unknown' for cifar10, Linf, cannot be made"):
        load_classifier("robustbench", {"model": "Unknown", "download": True})


PROCESSOR = {
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "do_resize": True,
    "do_normalize": True,
    "resample": 3,
    "size": {"height": 8, "width": 8},
    "rescale_factor": 1 / 255,
}


@pytest.fixture
def faces(put: Callable[..., ModuleType], tmp_path: Path) -> SimpleNamespace:
    """A stand-in of transformers with a model in a folder."""
    about: dict[str, list[str]] = {"missing_keys": [], "mismatched_keys": []}
    calls: list[dict[str, Any]] = []

    class Answering(Network):
        config = SimpleNamespace(id2label={2: "eel", 0: "cat", 1: "dog"})

        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=super().forward(x), loss=None)

    def from_pretrained(place: str, **options: Any) -> tuple[nn.Module, dict[str, list[str]]]:
        calls.append({"place": place, **options})
        return Answering().half(), about

    put("transformers", AutoModelForImageClassification=SimpleNamespace(from_pretrained=from_pretrained))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return SimpleNamespace(folder=tmp_path, about=about, calls=calls)


def test_transformers_sees_what_its_processor_makes(faces: SimpleNamespace) -> None:
    model: Any = load_classifier("transformers", {"model": str(faces.folder)})
    smaller = functional.interpolate(images(16), (8, 8), mode="bicubic", antialias=True)
    assert torch.allclose(seen_by(model, images(16)), normalised(smaller), atol=1e-5)
    assert model(images(8)).shape == (2, 3)
    assert model(images(8)).dtype == torch.float32  # files of half precision too
    assert model.class_names == ("cat", "dog", "eel")
    (call,) = faces.calls
    assert (call["local_files_only"], call["use_safetensors"], call["trust_remote_code"]) == (
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("changes", "side", "normalises"),
    [
        (
            {"size": {"shortest_edge": 10}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}},
            8,
            True,
        ),
        ({"size": 8}, 8, True),
        ({"size": {"shortest_edge": 8}}, 8, True),
        ({"do_resize": False}, None, True),
        ({"do_normalize": False}, 8, False),
    ],
)
def test_transformers_forms_of_a_processor(
    faces: SimpleNamespace, changes: dict[str, object], side: int | None, normalises: bool
) -> None:
    (faces.folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **changes}))
    model: Any = load_classifier("transformers", {"model": str(faces.folder)})
    assert (model.resize and model.resize.size) == (side and (side, side))
    expected = normalised(images(8)) if normalises else images(8)
    assert torch.allclose(seen_by(model, images(8)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is missing or no JSON"),
        ("[]", "holds no table"),
        (json.dumps({**PROCESSOR, "rescale_factor": 1 / 127.5}), "rescale_factor"),
        (json.dumps({**PROCESSOR, "rescale_offset": True}), "not in [0, 1]"),
        (json.dumps({**PROCESSOR, "image_mean": "half"}), "image_mean of its image processor is no list"),
        (
            json.dumps({**PROCESSOR, "size": {"longest_edge": 8}}),
            "the size of its image processor is not known",
        ),
    ],
)
def test_transformers_other_processors_are_one_sentence(
    faces: SimpleNamespace, content: str, said: str
) -> None:
    (faces.folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError) as raised:
        load_classifier("transformers", {"model": str(faces.folder)})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_transformers_model_without_a_head_is_refused(faces: SimpleNamespace) -> None:
    faces.about["missing_keys"].append("classifier.weight")
    with pytest.raises(
        UserError, match=r"has no weights for 1 tensors \(classifier.weight, \.\.\.\), so it is no"
    ):
        load_classifier("transformers", {"model": str(faces.folder)})


def test_transformers_pickled_weights_are_refused(faces: SimpleNamespace) -> None:
    (faces.folder / "model.safetensors").rename(faces.folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no model.safetensors. Save it with save_pretrained"):
        load_classifier("transformers", {"model": str(faces.folder)})
    with pytest.raises(UserError, match=r"'/nowhere/at/all' is not a folder"):
        load_classifier("transformers", {"model": "/nowhere/at/all"})


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("timm", "timm"),
        ("transformers", "transformers"),
        ("torchvision", "torchvision.models"),
        ("robustbench", "robustbench.utils"),
    ],
)
def test_library_missing_or_broken_says_what_to_install(
    source: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    assert source in classifier_sources
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(
        UserError, match=f"classifier '{source}' needs the library .* which is missing: .*install"
    ):
        load_classifier(source, {"model": "x"})
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(
        UserError, match=f"'{module}' is installed and cannot be imported .operator torchvision::nms"
    ):
        load_classifier(source, {"model": "x"})


def real(name: str) -> Any:
    """The library itself; the test is skipped where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def test_timm_itself_with_weights_of_a_file(tmp_path: Path) -> None:
    own = real("timm").create_model("resnet10t", num_classes=5).eval()
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    options = {"model": "resnet10t", "weights": str(tmp_path / "w.safetensors"), "classes": 5}
    model = load_classifier("timm", options)
    x = images(own.pretrained_cfg["input_size"][1])
    mean, std = (torch.tensor(own.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    assert torch.allclose(model(x), own((x - mean) / std), atol=1e-5)
    assert model(images(32)).shape == (2, 5)


def test_torchvision_itself_with_weights_of_a_file(tmp_path: Path) -> None:
    own = real("torchvision.models").get_model("squeezenet1_1", weights=None, num_classes=5).eval()
    save_file(own.state_dict(), tmp_path / "w.safetensors")
    options = {"model": "squeezenet1_1", "weights": str(tmp_path / "w.safetensors"), "classes": 5}
    model = load_classifier("torchvision", options)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert torch.allclose(model(images(224)), own((images(224) - mean) / std), atol=1e-5)


def test_transformers_itself_from_a_folder(tmp_path: Path) -> None:
    library = real("transformers")
    config = library.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        id2label={0: "cat", 1: "dog", 2: "eel"},
    )
    own = library.ViTForImageClassification(config).eval()
    own.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    model: Any = load_classifier("transformers", {"model": str(tmp_path)})
    assert torch.allclose(model(images(8)), own(normalised(images(8))).logits, atol=1e-5)
    assert model.class_names == ("cat", "dog", "eel")
    library.ViTModel(config).save_pretrained(tmp_path / "headless")
    (tmp_path / "headless" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    with pytest.raises(UserError, match="so it is no finished image classifier"):
        load_classifier("transformers", {"model": str(tmp_path / "headless")})
