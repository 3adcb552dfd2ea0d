"""The newcomer's page: short specs, and the lines that it shows are what the opener says."""

import re
from pathlib import Path

import pytest
import torch

from dbpkit.foundation.checkpoints import Checkpoint
from dbpkit.models import opening
from dbpkit.models.layouts import Asked, layouts
from tests.checkpoint_files import shapes_only
from tests.docs.pages import ROOT, blocks
from tests.reference import key_table

PAGE = "how-to/your-models.md"


def test_specs_have_at_most_twelve_lines() -> None:
    specs = [b for b in blocks("toml") if b.place == PAGE and b.name]

    assert [b.name for b in specs] == ["first.toml", "second.toml"]
    assert all(len(b.text.strip().splitlines()) <= 12 for b in specs)


def test_every_layout_that_is_opened_is_in_the_table() -> None:
    words = {
        "scoresde": "Score-SDE", "flowpure": "FlowPure", "guided_diffusion": "guided-diffusion", "edm": "EDM",
        "consistency": "consistency models", "meanflow": "MeanFlow", "ho_ddpm": "Ho et al.'s DDPM",
        "diffusers": "UNet2DModel", "wide_resnet": "RobustBench", "wide_resnet_bmsookim": "bmsookim",
        "wide_resnet_dm": "Gowal et al.", "preact_resnet18": "PreActResNet-18", "resnet18": "ResNet-18",
        "resnet50_cifar": "-50 on small images",
    }  # fmt: skip
    table = "\n".join(line for line in (ROOT / "docs" / PAGE).read_text().splitlines() if line[:1] == "|")

    assert {name for name in layouts if not layouts.get(name)().refusal} == words.keys()
    assert [name for name, word in words.items() if word not in table] == []


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("scoresde_vp_cifar10_ddpmpp_deep_continuous", "Score-SDE DDPM++ (deep), VP"),
        ("robustbench_standard_wrn28_10", "RobustBench WRN-28-10 of 10 classes"),
    ],
)
def test_lines_of_the_page_are_the_openers(table: str, content: str) -> None:
    page = " ".join((ROOT / "docs" / PAGE).read_text().split())
    checkpoint, asked = Checkpoint("torch zip", shapes_only(key_table(table))), Asked({})
    for name, stored in checkpoint.content.items():
        if name.endswith("num_batches_tracked"):
            stored.dtype = torch.int64

    name, layout, weights = opening.recognised(checkpoint, None, asked, Path("file"))
    reading = opening.read(layout, weights, asked, Path("file"), name)

    assert reading.title == content
    said = [content, *reading.conventions, *asked.guesses]
    assert [words for words in said if words not in page] == []
    assert re.search(re.escape(content) + r", (EMA )?weights", page)
