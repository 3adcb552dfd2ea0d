"""Commands that make a denoiser or a classifier, and judge one as a generative model."""

from typing import TYPE_CHECKING, Annotated

import typer

from dbpkit.cli import printing
from dbpkit.cli.options import (
    AUTO,
    AsJson,
    Compile,
    Device,
    Out,
    Plugin,
    Precision,
    Sampler,
    Seed,
    Set,
    SpecFile,
    Steps,
    Talk,
    Trust,
)
from dbpkit.cli.progress import working
from dbpkit.cli.root import app, begin
from dbpkit.foundation.options import MOST

if TYPE_CHECKING:
    from dbpkit.fidelity.features import Features


@app.command("train")
def train_command(
    spec: SpecFile,
    out: Out,
    overrides: Set = [],
    plugin: Plugin = [],
    trust: Trust = False,
    device: Device = AUTO,
    compiled: Compile = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the learning curve for TensorBoard too.")
    ] = False,
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a classifier or a denoiser; run the same command again to continue.

    On several processes or devices: accelerate launch --multi_gpu --num_processes N -m dbpkit.cli train ...
    """
    from dbpkit import Execution, TrainingSpec, read_spec, train
    from dbpkit.experiment.execution import launched

    begin(
        plugin, trusting=trust, computes=True, share=False
    )  # a training that goes on is the one that was not stopped
    read = read_spec(spec, TrainingSpec, overrides)
    execution = launched(Execution(device, compile=compiled))
    with working(as_json or execution.rank > 0, talk) as progress:
        trained = train(
            read,
            out,
            lambda done, of, loss: progress(done / of, f"loss {loss:.4f}" if loss == loss else ""),
            execution,
            tensorboard=tensorboard,
        )
    if execution.rank == 0:
        printing.trained(trained, as_json)


@app.command("quality")
def quality_command(
    denoiser: Annotated[str, typer.Argument(help="Denoiser name, weights file or import path.")],
    data: Annotated[str, typer.Option(help="Data set name.")] = "embedded",
    images: Annotated[
        int | None, typer.Option(min=2, max=MOST, help="Images to generate; half of the data if not given.")
    ] = None,
    t_star: Annotated[
        float, typer.Option(help="1 starts from noise alone; below, from real images noised to t*.")
    ] = 0.3,
    sampler: Sampler = "ddim",
    steps: Steps = 50,
    inception: Annotated[
        str, typer.Option(help="Path of inception-2015-12-05.pt, for the FID; none takes --classifier.")
    ] = "",
    trust_file: Annotated[
        bool, typer.Option("--trust", help="Run another --inception file too: TorchScript can run code.")
    ] = False,
    classifier: Annotated[str, typer.Option(help="Whose features are used without Inception.")] = "embedded",
    resize: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the images that the denoiser sees, if another one."),
    ] = None,
    seed: Seed = 0,
    device: Device = AUTO,
    precision: Precision = "float32",
    plugin: Plugin = [],
    talk: Talk = None,
    as_json: AsJson = False,
) -> None:
    """Measure a denoiser as a generative model: FID, or the distance of a classifier's features."""
    from dbpkit import Chain, load_dataset, load_denoiser, quality
    from dbpkit.experiment.execution import checked_device
    from dbpkit.models.sources import source

    begin(plugin, computes=True)
    checked_device(device)
    features = _features(inception, trust_file, classifier)
    with working(as_json, talk, continues=False) as progress:
        found = quality(
            load_denoiser(*source(denoiser)),
            load_dataset(data),
            features,
            Chain(t_star, sampler, steps, resize=resize),
            images=images,
            seed=seed,
            device=device,
            precision=precision,
            progress=lambda done, of: progress(done / of, f"{done} images"),
        )
    printing.quality(found, as_json)


def _features(inception: str, trust: bool, classifier: str) -> "Features":
    """Those of the Inception file if there is one, else of the classifier."""
    from dbpkit import make_features
    from dbpkit.models.sources import source

    if inception:
        return make_features("inception", {"path": inception, "trust": trust})
    name, options = source(classifier)
    return make_features("classifier", {"classifier": name, "options": options})
