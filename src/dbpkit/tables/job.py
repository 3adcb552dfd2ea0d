"""One run that cells of tables are read from: an evaluation, or one analysis; equal ones are run once."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.purification.purifier import DIFFUSION
from dbpkit.results.layout import canonical_hash


class Job(NamedTuple):
    """An evaluation, or an analysis of the parts of one.

    Attributes:
        spec: the evaluation spec; its name follows from its settings, so that equal settings are equal specs.
        analysis: name of the analysis; None for an evaluation.
        options: of the analysis.
    """

    spec: EvaluationSpec
    analysis: str | None
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What it is called on the disk: equal jobs share it, whatever number of images they ask for."""
        own: dict[str, Any] = {"spec": self.spec.identity()}
        if self.analysis:
            own |= {"analysis": self.analysis, "options": dict(self.options)}
        return canonical_hash(own)[:16]

    @property
    def images(self) -> int | None:
        """How many images it asks for; None is all."""
        return self.spec.examples.count

    @staticmethod
    def title_of(spec: Mapping[str, Any]) -> str:
        """Returns the name of an evaluation, which is a part of its hash, from its settings alone."""
        purifier = spec.get("purifier", {})
        table = {"name": purifier} if isinstance(purifier, str) else purifier
        chain = table.get("name", DIFFUSION)
        if chain == DIFFUSION:
            chain = f"{table.get('sampler', 'ddpm')}, {table.get('steps', 1000)} steps"
        threat = spec.get("threat", {})
        return f"{chain}, {threat.get('norm', 'linf')} {threat.get('eps', '8/255')}"
