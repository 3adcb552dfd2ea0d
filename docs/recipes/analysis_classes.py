"""Which classes pay for purification: clean accuracy of each, alone and purified."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, columns, records
from dbpkit.analyses.tools.targets import misclassified
from dbpkit.foundation.options import Count
from dbpkit.results.analysis import Chart, Conclusion, Number, Series
from dbpkit.statistics.intervals import difference


@analyses.register("classes")
@dataclass(frozen=True)
class Classes(OfImages):
    """Clean accuracy that purification costs each class.

    Attributes:
        images: examples.
        draws: purifications of each.
    """

    images: Count = 64
    draws: Count = 4
    title = "Which classes pay for purification"

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        x, y, noise = subject.examples(unit.images)
        right = subject.classify(x).argmax(dim=1) == y
        lost = right.double() - (~misclassified(subject, x, y, noise, range(self.draws))).double().mean(dim=1)
        return records(noise, lost=lost, label=[subject.parts.data.class_names[k] for k in y.tolist()])

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        found = columns(measured)
        by_class = {k: difference(found["lost"][found["label"] == k]) for k in sorted(set(found["label"]))}
        overall = Number.of("clean accuracy lost by purification", difference(found["lost"]))
        numbers = [overall, *(Number.of(f"{overall.name}, {k}", lost) for k, lost in by_class.items())]
        worst = max(by_class, key=lambda k: by_class[k].value)
        sentence = f"Purification costs {overall.value:.0%} of clean accuracy; '{worst}' pays most."
        bars = [Series.of("lost", list(by_class), by_class.values())]
        return Conclusion([sentence], numbers, [Chart("bar", self.title, "", overall.name, bars, sentence)])
