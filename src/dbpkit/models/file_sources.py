"""Models in files of any known layout, as sources that a spec can name."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dbpkit.foundation.options import Count, Length
from dbpkit.models.opening import open_model
from dbpkit.models.sources import classifier_sources, denoiser_sources


@classifier_sources.register("file")
def classifier_from_file(
    path: str,
    kind: str | None = None,
    weights: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[Length, ...] | None = None,
    image_size: Count | None = None,
    network: Mapping[str, Any] | None = None,
    sha256: str | None = None,
) -> nn.Module:
    """A classifier in a file of any layout that dbpkit knows, such as RobustBench's.

    Args:
        path: the file.
        kind: layout of the file; recognised by its tensors if unset.
        weights: where in the file they lie, such as ``model``; unset takes averaged ones where there are any.
        mean: per-channel mean subtracted from pixels in [0, 1]; unset takes the file's or the layout's.
        std: per-channel deviation they are divided by.
        image_size: side of the images it was made for.
        network: options of the network that shapes do not show.
        sha256: digest that the file must have; unset takes any.
    """
    return open_model(
        path, kind, role="classifier", weights=weights, mean=mean, std=std, image_size=image_size,
        network=network, sha256=sha256,
    )  # fmt: skip


@denoiser_sources.register("file")
def denoiser_from_file(
    path: str,
    kind: str | None = None,
    weights: str | None = None,
    label: int | None = None,
    prediction: str | None = None,
    time: str | None = None,
    time_scale: float | None = None,
    time_index: str | None = None,
    schedule: Any = None,
    steps: Count | None = None,
    image_range: tuple[float, float] | None = None,
    variance: str | None = None,
    sigma_data: float | None = None,
    preconditioning: str | None = None,
    image_size: Count | None = None,
    network: Mapping[str, Any] | None = None,
    names: str | None = None,
    sha256: str | None = None,
) -> nn.Module:
    """A denoiser in a file of any layout that dbpkit knows, such as Score-SDE's.

    Args:
        path: the file.
        kind: layout of the file; recognised by its tensors if unset.
        weights: where in the file they lie, such as ``model``; unset takes averaged ones where there are any.
        label: class that a conditional network is told, of all images.
        prediction: what the network predicts: noise, v, x0 or score.
        time: what the network's time is: discrete, rescaled or continuous.
        time_scale: factor of continuous times.
        time_index: nearest or floor, how a level becomes an index.
        schedule: name or table of options of the noise schedule.
        steps: number of its times.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        variance: drop or learned, for networks with twice as many channels.
        sigma_data: standard deviation of the data, for EDM's preconditioning.
        preconditioning: denoiser adapter in place of the layout's.
        image_size: side of the images it was made for.
        network: options of the network that shapes do not show, such as ``num_heads``.
        names: another file of the network, where this one is a list of averaged tensors without names.
        sha256: digest that the file must have; unset takes any.
    """
    options = {k: v for k, v in locals().items() if k not in ("path", "kind")}
    return open_model(path, kind, role="denoiser", **options)
