"""Recorded runs that pages quote: the page says what the file says, and its commands are right."""

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from dbpkit import EvaluationSpec, TrainingSpec, read_spec
from tests.docs.pages import ROOT

RECORD = json.loads((ROOT / "benchmarks/results/addt-clean.json").read_text())
PAGE = (ROOT / "docs/evidence/addt.md").read_text().replace("−", "-").replace("**", "")


@pytest.mark.parametrize("table", ["dw_both", "dw_both_other_classifier"])
def test_tables_of_the_page_are_the_recorded_ones(table: str) -> None:
    sampler = ""
    shown = {}
    for line in PAGE.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 5:
            sampler = cells[0].lower() or sampler
            shown[sampler, cells[1].removesuffix(" of the four")] = cells[2:]
        elif len(cells) == 4 and "/255" in cells[0] and table == "dw_both_other_classifier":
            shown["ddim", cells[0]] = cells[1:]
    for row in RECORD[table]["rows"]:
        said = re.findall(r"-?\d+\.\d", " ".join(shown[row["sampler"], row["eps"]]))
        keys = ("clean_fine_tune", "addt", "difference", "low", "high")
        assert [float(v) for v in said] == [row[k] for k in keys if row[k] is not None]


def test_recorded_white_box_is_in_the_text() -> None:
    text = " ".join(PAGE.split())
    for row in RECORD["white_box"]["rows"]:
        interval = f"({row['low']:.1f} to {row['high']:+.1f})"
        if row["eps"] == "average":
            assert f"average {row['difference']:+.1f} {interval}" in text
        else:
            models = f"{row['eps']} {row['clean_fine_tune']:.1f} to {row['addt']:.1f} %"
            assert f"{models}, {row['difference']:+.1f} {interval}" in text


def test_commands_of_the_record_name_specs_and_settings_that_there_are(tmp_path: Path) -> None:
    record = tmp_path / "recorded"
    code = 'dbpkit() { printf \'%s\\037\' "$@" >> "$RECORD"; printf \'\\036\' >> "$RECORD"; }\n'
    script = code + "\n".join(RECORD["commands"])
    subprocess.run(["bash", "-c", script], check=True, cwd=ROOT, env={"RECORD": str(record)})
    found = [line.split("\037")[:-1] for line in record.read_text().split("\036")[:-1]]
    assert len(found) == 2 + 16 + 8
    for words in found[:2]:
        spec = read_spec(ROOT / words[1], TrainingSpec)
        assert spec.optimiser.updates == RECORD["training"]["updates"]
        assert spec.optimiser.batch_size == RECORD["training"]["batch_size"]
    for words in found[2:18]:
        spec = read_spec(
            ROOT / words[1],
            EvaluationSpec,
            [b for a, b in pairwise(words) if a == "--set"],
        )
        assert spec.examples.count == RECORD["dw_both"]["images"]
        assert [k.name for k in spec.knowledge] == ["dw_both"]
        assert spec.denoiser.options["path"].startswith("runs/")
    made = {words[3] for words in found[2:18]}
    assert {place for words in found[18:] for place in words[1:3]} == made
