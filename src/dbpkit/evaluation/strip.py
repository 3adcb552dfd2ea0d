"""The report's picture: a few images, clean, attacked and purified."""

import torch

from dbpkit.evaluation.rows import Rows

STRIP_EXAMPLES = 8
"""Examples shown as pictures in the report."""


@torch.no_grad()
def write_strip(rows: Rows) -> None:
    """Stores clean, attacked and purified images of the first examples, for the report's picture."""
    spec, parts, run = rows.spec, rows.parts, rows.run
    index = torch.arange(min(STRIP_EXAMPLES, len(parts.data)))
    batch = rows.batch(index)
    ids = batch.noise.example_ids.tolist()
    tensors, said = {"ids": batch.noise.example_ids, "clean": batch.x.cpu()}, {}
    plans = {
        "clean": batch.noise,
        **{k.name: k.resolve().apply(batch.noise, 0) for k in spec.knowledge},
    }
    for row, noise in plans.items():
        records = run.some(row, 0, ids)
        if len(records) < len(ids):
            continue
        x_adv = batch.x
        if row != "clean":
            shards = {f: run.read_images(f) for f in {records[i]["images"] for i in ids}}
            x_adv = torch.stack([shards[records[i]["images"]][i] for i in ids]).to(batch.x)
            tensors[f"{row}.x_adv"] = x_adv.cpu()
        if parts.undefended is not None:
            # An unrepeated plan is draw 0, the first column of the row's predictions.
            tensors[f"{row}.x_pure"] = parts.model.purifier(x_adv, noise=noise).cpu()
        said[row] = [records[i]["predicted"][0] for i in ids]
    about = {
        "class_names": parts.data.class_names,
        "labels": batch.y.tolist(),
        "predicted": said,
    }
    run.write_strip(tensors, about)
