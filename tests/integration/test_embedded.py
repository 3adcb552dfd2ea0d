"""The models and images the package carries, and the claims made about them that take seconds to verify."""

import hashlib
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch

from dbpkit import NoisePlan, PurifiedClassifier, Purifier, TrainingSpec, load_dataset, load_embedded
from dbpkit.attacks import cross_entropy
from dbpkit.foundation.spec import validate
from dbpkit.models.sources import EMBEDDED_CLASSIFIER, EMBEDDED_DENOISERS, asset
from dbpkit.purification.replay import directional_derivatives
from dbpkit.purification.samplers import samplers
from tests.integration.conftest import comparable, environment

BUILT_IN = ["ddim", "ddpm", "gdmp", "heun", "likelihood", "multi_stage", "one_step", "restart"]
BUILT_IN += ["reverse_only", "vpsde"]


@pytest.fixture(scope="module")
def models():
    return load_embedded()


@pytest.fixture(scope="module")
def data():
    return load_dataset("embedded")


def test_assets_fit_the_budget_and_their_cards() -> None:
    files = [asset(name) for name in (EMBEDDED_CLASSIFIER, *EMBEDDED_DENOISERS.values())]
    assert sum(f.stat().st_size for f in files) <= 10_000_000
    for file in files:
        card = file.with_suffix(".md").read_text()
        assert hashlib.sha256(file.read_bytes()).hexdigest() in card
        table = tomllib.loads(card.split("```toml\n")[1].split("```")[0])
        validate(table, TrainingSpec, file.name)  # the command of the card still runs


def test_embedded_images_are_the_first_test_images(data, data_root: Path) -> None:
    original = load_dataset("cifar10", {"root": str(data_root)}).select(slice(0, 256))
    assert torch.equal(data.images, original.images)
    assert torch.equal(data.labels, original.labels)


def test_embedded_classifier_is_right_on_most_images(models, data) -> None:
    # The card says 93.15 % of 10,000; a sample of 256 lies within four standard errors (1.58 points each).
    accuracy = float((models[1](data.x()).argmax(1) == data.labels).float().mean())
    assert accuracy > 0.9315 - 4 * 0.0158


def test_embedded_purifier_keeps_the_class_of_most_images(models, data) -> None:
    # Four standard errors (2.5 points each at n = 256) below the 80 % required of all 10,000 test images.
    model = PurifiedClassifier(Purifier(models[0], "ddim", steps=100), models[1])
    with torch.no_grad():
        logits = model(data.x(), noise=NoisePlan.of(0, data.ids))
    assert float((logits.argmax(1) == data.labels).float().mean()) > 0.80 - 4 * 0.025


@pytest.mark.parametrize("sampler", BUILT_IN)
def test_exact_gradient_agrees_with_finite_differences_on_the_embedded_model(
    sampler: str, models, data
) -> None:
    """Float64 network, fixed noise, along a random direction and along the gradient."""
    denoiser, classifier = (m.double() for m in load_embedded())
    steps = {"heun": 4, "likelihood": 2, "multi_stage": 50, "vpsde": 50}.get(sampler, 100)
    model = PurifiedClassifier(Purifier(denoiser, sampler, steps=steps), classifier)
    x, y = data.x()[:2].double(), data.labels[:2]
    plan = NoisePlan.of(3, data.ids[:2])
    direction = plan.on("control").normal("probe", 0, x)
    direction /= direction.flatten(1).norm(dim=1)[:, None, None, None]
    # Central differences of a piecewise smooth function: the error is O(h^2) between kinks of ReLU and clip.
    exact, numeric = directional_derivatives(
        lambda z: cross_entropy(model(z, noise=plan), y), x, direction, 1e-6
    )
    assert torch.allclose(exact, numeric, rtol=1e-4, atol=1e-7)


def test_every_built_in_sampler_is_covered_above() -> None:
    assert {name for name in samplers if not name.startswith("tests_")} == set(BUILT_IN)


@pytest.mark.slow
def test_evaluation_killed_three_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """The embedded models, `kill -9` at growing numbers of records, then resumed: bit-equal records."""
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'knowledge = ["white_box", "dw_both"]\n[purifier]\nsampler = "ddpm"\nsteps = 50\n'
        "[examples]\ncount = 4\n"
        '[draws]\nreport = 2\n[[attacks]]\nname = "pgd"\noptions = { iterations = 2, eot = 2 }\n'
    )
    command = [
        sys.executable,
        "-m",
        "dbpkit.cli",
        "evaluate",
        str(spec),
        "--batch-size",
        "2",
        "--json",
        "--out",
    ]
    subprocess.run(
        [*command, str(tmp_path / "whole")], env=environment(), check=True, stdout=subprocess.DEVNULL
    )
    killed = tmp_path / "killed"
    for least in (6, 12, 20):
        process = subprocess.Popen([*command, str(killed)], env=environment(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while lines(killed) < least and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, "finished before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(killed)], env=environment(), check=True, stdout=subprocess.DEVNULL)
    assert comparable(killed) == comparable(tmp_path / "whole")
    assert (killed / "records.jsonl").read_bytes() == (tmp_path / "whole" / "records.jsonl").read_bytes()


def lines(run: Path) -> int:
    path = run / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0
