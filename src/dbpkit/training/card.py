"""The model card of a finished training run: what it is, how it was made, how good it is.

The card is a function of the spec and the measured figures; nothing in it is written by hand.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dbpkit.foundation.spec import as_toml
from dbpkit.training.spec import TrainingSpec


def model_card(spec: TrainingSpec, figures: dict[str, Any], data_sha256: str) -> str:
    """Returns the card as Markdown.

    Args:
        spec: the training run.
        figures: what `Objective.evaluate` measured, with ``sha256``, ``parameters`` and ``test_data_sha256``.
        data_sha256: hash of the training examples.
    """
    source = spec.network or spec.init
    assert source is not None
    kind = "Denoiser" if "denoising" in figures else "Classifier"
    lines = [
        f"# {kind}: {source.name} on {spec.data.name}",
        "",
        "| | |",
        "|---|---|",
        f"| weights sha256 | `{figures['sha256']}` |",
        f"| parameters | {figures['parameters']:,} stored as {spec.store} |",
        f"| training data sha256 | `{data_sha256}` |",
        f"| test data sha256 | `{figures['test_data_sha256']}` |",
        f"| seed | {spec.seed} |",
        f"| updates x batch size | {spec.optimiser.updates:,} x {spec.optimiser.batch_size} |",
    ]
    if spec.init is not None:
        lines.append(f"| trained on from | {spec.init.name} `{figures['init_sha256']}` (state) |")
    if "guide_sha256" in figures:
        lines.append(f"| guide | `{figures['guide_sha256']}` (state) |")
    if "accuracy" in figures:
        lines.append(f"| accuracy on {figures['test_images']:,} test images | {figures['accuracy']:.2%} |")
    if "adversarial_accuracy" in figures:
        share = figures["adversarial_accuracy"]
        lines.append(f"| accuracy on the first 1,000 of them, attacked as in training | {share:.2%} |")
    lines += [
        "",
        ("Made by `dbpkit train SPEC --out RUN` with the spec below; the figures are of the stored weights."),
    ]
    if "denoising" in figures:
        lines += [
            "",
            (
                f"Root mean square error of the clean estimate on {figures['test_images']:,} test"
                " images, [-1, 1] units:"
            ),
            "",
            "| t of 1000 | noise level sigma | error |",
            "|---|---|---|",
        ]
        lines += [
            f"| {t} | {e['sigma']:.4f} | {e['rms_error']:.4f} |" for t, e in figures["denoising"].items()
        ]
    return "\n".join([*lines, "", "```toml", as_toml(spec.model_dump(mode="json")).strip(), "```", ""])


def figures_in_words(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a finished network was measured with, in sentences; all of it is in ``figures.json``."""
    count = f"{figures['parameters']:,} parameters, {figures.get('test_images', 0):,} test images"
    if "accuracy" in figures:
        under = figures.get("adversarial_accuracy")
        attacked = "" if under is None else f", and {under:.1%} under the attack it was trained with"
        yield f"The classifier is right on {figures['accuracy']:.1%} of the test images{attacked} ({count})."
    if "denoising" in figures:
        errors = ", ".join(f"{e['rms_error']:.4f} at t = {t}" for t, e in figures["denoising"].items())
        yield f"Root mean square error of the denoised images, in [-1, 1] units: {errors} of 1000 ({count})."
    for name, value in figures.items():
        if isinstance(value, int | float) and name not in _SAID:
            yield f"{name}: {value:g}"


_SAID = ("parameters", "test_images", "accuracy", "adversarial_accuracy")
"""Figures of a training that have a sentence; an objective of the user's own may have others."""
