"""The commands that train, judge and explain, as a user calls them."""

import json
from pathlib import Path

import pytest

from tests.integration.test_cli import run

__all__ = ["run"]

TRAIN = """
objective = "denoising"
init = "embedded"
data = "embedded"
test_data = "embedded"
[objective_options]
perturbation = "addt"
guide = { name = "embedded", options = { mirror = false } }
report_times = [50]
[optimiser]
updates = 1
batch_size = 2
lr = 1e-4
"""


def test_train_finetunes_the_embedded_denoiser_and_purifies_with_it(run, tmp_path: Path) -> None:
    (tmp_path / "addt.toml").write_text(TRAIN)
    code, out, _ = run(
        "train", tmp_path / "addt.toml", "--out", tmp_path / "run", "--device", "cpu", "--json"
    )
    assert code == 0
    assert json.loads(out)["guide_sha256"]
    assert (tmp_path / "run" / "samples").is_dir()
    weights = tmp_path / "run" / "weights.safetensors"
    code, out, _ = run("quality", weights, "--images", "4", "--t-star", "0.05", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["metric"] == "Frechet distance of embedded classifier features"
    assert found["images"] == 4
    assert "singular" in found["warning"]


def test_quality_prints_the_value_beside_its_floor(run) -> None:
    code, out, _ = run("quality", "embedded", "--images", "4", "--t-star", "0.05")
    assert code == 0
    assert "real images against the same" in out
    assert "from real images noised to t* = 0.05" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quality", "embedded", "--inception", "gone.pt"], "Inception file 'gone.pt' is missing"),
        (["quality", "embedded", "--images", "9999"], "images 9999 is outside 2 to 128"),
        (["quality", "embedded", "--device", "cuda:99"], "device 'cuda:99' was asked for"),
        (["quality", "embeded"], "unknown denoiser 'embeded'. Did you mean 'embedded'"),
        (["analyse", "SPEC", "--out", "OUT", "compresion"], "unknown analysis 'compresion'. Did you mean"),
        (["train", "SPEC", "--out", "OUT"], "unknown key"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    run, tiny_toml: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    places = {"SPEC": str(tiny_toml), "OUT": str(tmp_path / "run")}
    code, _, err = run(*[places.get(word, word) for word in words])
    assert code == 2
    assert message in err
    assert err.strip().splitlines()[-1].startswith("error: ")


def test_analyse_prints_sentences_records_and_goes_on(run, tiny_toml: Path, tmp_path: Path) -> None:
    words = ["analyse", tiny_toml, "--out", tmp_path / "run", "compression"]
    words += ["--set", "analyses.compression.images=2", "--set", "analyses.compression.tapes=1"]
    code, out, _ = run(*words)
    assert code == 0
    assert "With its randomness fixed" in out
    records = (tmp_path / "run" / "analyses" / "compression" / "records.jsonl").read_text()
    code, _, _ = run(*words)
    assert code == 0
    assert (tmp_path / "run" / "analyses" / "compression" / "records.jsonl").read_text() == records
    code, out, _ = run(*words, "--json")
    assert json.loads(out)[0]["name"] == "compression"


def test_analyse_other_options_put_the_old_records_aside(run, tiny_toml: Path, tmp_path: Path) -> None:
    words = ["analyse", tiny_toml, "--out", tmp_path / "run", "compression", "--json"]
    words += ["--set", "analyses.compression.images=1"]
    for tapes in (1, 2):
        run(*words, "--set", f"analyses.compression.tapes={tapes}")
    folders = sorted(p.name for p in (tmp_path / "run" / "analyses").iterdir())
    assert folders == ["compression", "compression.1.old"]


def test_list_names_perturbations_levels_and_analyses(run) -> None:
    _, out, _ = run("list", "--json")
    listed = json.loads(out)
    assert {"addt", "linf", "mse", "none", "random-order"} <= listed["perturbations"].keys()
    assert set(listed["noise-levels"]) == {"ddpm", "edm", "purification", "vpsde"}
    assert "compression" in listed["analyses"]
    assert set(listed["adversaries"]) == {"pgd"}
    assert all(
        text
        for kind in ("adversaries", "perturbations", "noise-levels", "analyses")
        for text in listed[kind].values()
    )
