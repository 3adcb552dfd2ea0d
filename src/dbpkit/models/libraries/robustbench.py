"""Classifiers of RobustBench's model zoo, which normalise inside."""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from dbpkit.foundation.errors import UserError
from dbpkit.models.libraries.library import Logits, built, imported
from dbpkit.models.sources import classifier_sources
from dbpkit.models.stages import staged

INSTALL = (
    "pip install git+https://github.com/RobustBench/robustbench, with the torchvision made for your torch"
)


@classifier_sources.register("robustbench")
def robustbench(
    model: str,
    dataset: Literal["cifar10", "cifar100", "imagenet"] = "cifar10",
    threat: Literal["Linf", "L2", "corruptions", "corruptions_3d"] = "Linf",
    folder: str = "models",
    download: bool = False,
    size: Any = None,
) -> nn.Module:
    """A classifier of RobustBench by name, data set and threat; the library reads its files with torch.load.

    Args:
        model: its id there, such as ``Gowal2021Improving_70_16_ddpm_100m``, or ``Standard``.
        dataset: what it was trained on.
        threat: the leaderboard that it is on.
        folder: holds ``DATASET/THREAT/MODEL.pt``.
        download: whether the library may fetch what is not there.
        size: what images are resized to before, a side or ``{ size, mode, antialias }``; unset, not at all.

    Raises:
        UserError: if the library is missing, has no such model, or the file is missing or does not fit.
    """
    library = imported("robustbench.utils", "robustbench", INSTALL)
    place = Path(folder).expanduser() / dataset / threat.removesuffix("_3d")
    files = [place / f"{model}.pt", place / f"{model}.pt_m0.pt"]  # the second of an ensemble
    if not download and not any(file.is_file() for file in files):
        raise UserError(
            f"classifier 'robustbench': file '{files[0]}' is missing, and nothing is fetched unasked. Put it"
            " there, set folder, or set download = true in its options."
        )
    network = built(
        lambda: library.load_model(
            model_name=model, model_dir=str(Path(folder).expanduser()), dataset=dataset, threat_model=threat
        ),
        f"classifier 'robustbench': model '{model}' for {dataset}, {threat},",
    )
    return staged(Logits(network), resize=size)
