"""Outputs of the field's original networks: small random weights, inputs and answers, as numbers.

Some lie in ``tests/golden/networks``; the others are looked for at ``$DBPKIT_DATA/../fixtures``, and key
tables of full-size checkpoints at ``$DBPKIT_DATA/../spec/checkpoint-keys``. A test that needs one skips
without it.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden" / "networks"


class Reference(NamedTuple):
    """One file of reference outputs.

    Attributes:
        state: the whole state dict under the original's keys; trained values as float32.
        inputs: arguments, by name without ``in.``.
        outputs: what the original answered, by name without ``out.``.
        config: the original's own arguments.
        about: all metadata, as text.
    """

    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    config: dict[str, Any]
    about: dict[str, str]


def beside_data(*parts: str) -> Path:
    """A path beside the folder of data; the test skips if nothing lies there."""
    data = os.environ.get("DBPKIT_DATA")
    found = Path(data).parent.joinpath(*parts) if data else None
    if found is None or not found.exists():
        pytest.skip(f"no {'/'.join(parts)} beside the data")
    return found


def reference(name: str) -> Reference:
    """Reads a file of reference outputs; the test skips if it is not there."""
    path = GOLDEN / f"{name}.safetensors"
    path = path if path.is_file() else beside_data("fixtures", f"{name}.safetensors")
    with safe_open(path, "pt") as file:
        about = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        parts[kind][rest] = tensor.float() if kind == "state" and tensor.dtype == torch.float16 else tensor
    return Reference(parts["state"], parts["in"], parts["out"], json.loads(about["config"]), about)


def key_table(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published checkpoint of full size, in its order; the test skips without them."""
    rows = beside_data("spec", "checkpoint-keys", f"{name}.tsv").read_text().splitlines()
    cells = [row.split("\t") for row in rows if row and not row.startswith("#")]
    return {c[0]: tuple(int(n) for n in c[1].strip("()[] ").replace(",", " ").split()) for c in cells}


def row_gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference within an image, relative to the largest value of that image."""
    gap = (found.double() - expected.double()).flatten(1).abs().amax(1)
    return float((gap / expected.double().flatten(1).abs().amax(1)).max())
