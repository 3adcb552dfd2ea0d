"""The report's picture: a few images, clean, attacked and purified."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit.evaluation.rows import Rows
from dbpkit.foundation.errors import UserError
from dbpkit.results.run_directory import RunDirectory

STRIP_EXAMPLES = 8
"""Examples shown as pictures in the report."""


@torch.no_grad()
def write_strip(rows: Rows, begin: Callable[[], object] = lambda: None) -> None:
    """Stores clean, attacked and purified images of the first examples, for the report's picture.

    One that is there and shows what is recorded is kept: whoever only asks for a summary makes no images.

    Args:
        rows: of the run.
        begin: called before images are made.
    """
    spec, parts, run = rows.spec, rows.parts, rows.run
    index = torch.arange(min(STRIP_EXAMPLES, len(parts.data)))
    batch = rows.batch(index)
    ids = batch.noise.example_ids.tolist()
    tensors, said = {"ids": batch.noise.example_ids, "clean": batch.x.cpu()}, {}
    plans = {
        "clean": batch.noise,
        **{k.name: k.resolve().apply(batch.noise, 0) for k in spec.knowledge},
    }
    attacked = {}
    for row in plans:
        records = run.some(row, 0, ids)
        if len(records) < len(ids):
            continue
        attacked[row] = batch.x
        if row != "clean":
            shards = {f: run.read_images(f) for f in {records[i]["images"] for i in ids}}
            attacked[row] = torch.stack([shards[records[i]["images"]][i] for i in ids]).to(batch.x)
            tensors[f"{row}.x_adv"] = attacked[row].cpu()
        said[row] = [records[i]["predicted"][0] for i in ids]
    about = {"class_names": list(parts.data.class_names), "labels": batch.y.tolist(), "predicted": said}
    purified = [] if parts.undefended is None else list(attacked)
    if _is_there(run, tensors, about, {f"{row}.x_pure" for row in purified}):
        return
    begin()
    for row in purified:
        # An unrepeated plan is draw 0, the first column of the row's predictions.
        tensors[f"{row}.x_pure"] = parts.model.purifier(attacked[row], noise=plans[row]).cpu()
    run.write_strip(tensors, about)


def _is_there(run: RunDirectory, tensors: dict[str, Tensor], about: dict[str, Any], more: set[str]) -> bool:
    """Whether a run's picture has these images, these words and more images of these names."""
    try:
        old, told = run.read_strip()
    except UserError:  # it is damaged
        return False
    same = told == about and old.keys() == tensors.keys() | more
    return same and all(np.array_equal(old[name], image.numpy()) for name, image in tensors.items())
