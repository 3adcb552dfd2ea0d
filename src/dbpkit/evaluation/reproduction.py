"""What was found when one example of a run was computed again."""

from typing import Any, NamedTuple

from torch import Tensor

TOLERANCE = 1e-6
"""Largest difference of a logit that counts as the same, on the device of the run."""


class AttackAgain(NamedTuple):
    """The attack on this example alone.

    Attributes:
        difference: largest absolute difference of a pixel from the stored image, in [0, 1] units.
        pixels: share of pixel values that are equal.
    """

    difference: float
    pixels: float

    @property
    def reproduced(self) -> bool:
        """Whether the image is the stored one."""
        return self.difference <= TOLERANCE


class Reproduction(NamedTuple):
    """What was found.

    Attributes:
        row: row of the table.
        tape: tape of the row.
        example: example id.
        label: true class.
        class_names: of the data.
        x: the clean image (C, H, W).
        x_adv: the image that was judged (C, H, W).
        x_pure: it after each purification (R, C, H, W), or None without a purifier.
        logits: computed now, (R, K).
        recorded: predictions that were recorded, R of them.
        difference: largest difference of a logit from the stored ones, or None if the run stored none.
        attack: the attack run again, or None where the row has none or it was left out.
    """

    row: str
    tape: int
    example: int
    label: int
    class_names: tuple[str, ...]
    x: Tensor
    x_adv: Tensor
    x_pure: Tensor | None
    logits: Tensor
    recorded: list[int]
    difference: float | None
    attack: AttackAgain | None

    @property
    def predicted(self) -> list[int]:
        """Predictions computed now."""
        return [int(k) for k in self.logits.argmax(dim=1)]

    @property
    def reproduced(self) -> bool:
        """Whether predictions and, where they were stored, logits are those of the run."""
        same = self.predicted == self.recorded
        return same and (self.difference is None or self.difference <= TOLERANCE)

    @property
    def verdict(self) -> str:
        """What was found, in a sentence or two."""
        what = f"example {self.example} of row {self.row}, tape {self.tape}"
        if self.difference is None:
            said = "the predictions are those of the record; the run stored no logits to compare"
            said = said if self.reproduced else "the predictions differ from the record"
        else:
            said = f"the logits differ from the stored ones by at most {self.difference:.3g}"
        text = f"{'Reproduced' if self.reproduced else 'NOT reproduced'}: {what}; {said}."
        if self.attack is None:
            return text
        if self.attack.reproduced:
            return f"{text} The attack, run on it alone, finds the stored image."
        return (
            f"{text} The attack, run on it alone, ends {self.attack.difference:.3g} from the stored image"
            f" ({self.attack.pixels:.1%} of the pixel values are equal): rounding in another batch shape,"
            " which --deterministic rules out."
        )

    def as_json(self) -> dict[str, Any]:
        """Returns plain values, without the images."""
        attack = self.attack and {**self.attack._asdict(), "reproduced": self.attack.reproduced}
        plain = ("row", "tape", "example", "label", "recorded", "difference")
        return {
            **{name: getattr(self, name) for name in plain},
            "predicted": self.predicted,
            "logits": self.logits.tolist(),
            "reproduced": self.reproduced,
            "attack": attack,
            "verdict": self.verdict,
        }
