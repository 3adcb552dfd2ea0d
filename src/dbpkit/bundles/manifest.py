"""The manifest of a bundle: what is in it, what it claims, and which names of the sender's machine remain.

Everything in it follows from the other members, so a reader computes it again and believes nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dbpkit.results.completeness import unfinished
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.schemas import Count, Hash, Text, Word
from dbpkit.results.summary import Summary

SCHEMA: Literal[1] = 1
MANIFEST = "manifest.json"

RUN = "run/"
"""Folder of the run directory's files in the archive."""

DIGITS = 6
"""Decimals of the numbers in a manifest: the last bits of a sum differ from machine to machine."""

_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_AMOUNT = re.compile(r"[\d.e+-]+/[\d.e+-]+")
_ABSOLUTE = re.compile(r"""(?<![\w./:\\-])(?:~?(?:/[\w.@+~-]+){2,}|[A-Za-z]:\\{1,2}[^\s'"]+)""")
"""A path that begins at the root of a machine, or at somebody's home."""

_OF_THE_PACKAGE = frozenset({
    "celeba", "celeba_hq", "cifar10", "cifar100", "diffusers", "digits", "embedded", "fashion_mnist",
    "file", "folder", "huggingface", "imagenet", "mnist", "robustbench", "svhn", "timm",
    "tiny_imagenet", "torchvision", "transformers", "weights",
})  # fmt: skip
"""Names of data, classifiers and denoisers that are nobody's own; written out, as packing needs no torch."""

_PLACES = frozenset({"path", "root", "folder"})
"""Options of parts that say where something lies."""

_MOST_NAMES = 50
"""Names of a kind that a manifest lists."""


class _Of(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Member(_Of):
    """A file of the run: its size and hash."""

    bytes: Annotated[int, Field(ge=0, lt=2**50)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Claim(_Of):
    """What a row of the table publishes: an accuracy with its 95 % interval."""

    estimand: Word
    value: Annotated[float, Field(ge=0, le=1)]
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]
    examples: Count
    draws: Count


class Names(_Of):
    """What remains of the sender's names: import paths and places in the spec, and places elsewhere."""

    code: list[Text]
    paths: list[Text]
    elsewhere: list[Text]


class Manifest(_Of):
    """``manifest.json``.

    Attributes:
        format: always ``dbpkit-bundle``.
        schema_version: of this layout.
        name: title of the run.
        spec_hash: of its spec.
        unfinished: what is missing of the run, in a sentence; empty if it is finished.
        hashes: sha256 of weights and data, as the run's session over most examples has them.
        protocol: which number of a row is its headline.
        headline: that number of every row.
        flags: name and severity of every flag.
        names: of the sender's machine and modules.
        members: the other files of the bundle.
    """

    format: Literal["dbpkit-bundle"]
    schema_version: Literal[1]
    name: Annotated[str, Field(max_length=2000)]
    spec_hash: Hash
    unfinished: Text
    hashes: dict[Word, Hash]
    protocol: Text
    headline: dict[Word, Claim]
    flags: list[tuple[Word, Word]]
    names: Names
    members: dict[Annotated[str, Field(max_length=400)], Member]

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists."""
        return self.model_dump(mode="json")

    def as_bytes(self) -> bytes:
        """Returns the file: ASCII, keys sorted."""
        return json.dumps(self.as_json(), sort_keys=True, indent=1).encode("ascii") + b"\n"


SCHEMA_OF_FILE = TypeAdapter(Manifest)


def manifest_of(
    run: RunDirectory, summary: Summary, members: Mapping[str, Member], texts: Iterable[str]
) -> Manifest:
    """Returns the manifest of a run.

    Args:
        run: the run directory.
        summary: of the run.
        members: its packed files by name in the archive.
        texts: what the packed files say in words, to be searched for paths of the machine.
    """
    spec = run.spec()
    session = max(run.sessions() or [{}], key=lambda s: s.get("examples") or 0)
    hashes = {k: v for k, v in session.items() if k.endswith("_sha256") and v}
    return Manifest(
        format="dbpkit-bundle",
        schema_version=SCHEMA,
        name=summary.name,
        spec_hash=spec["hash"],
        unfinished=unfinished(run),
        hashes=hashes,
        protocol=summary.protocol,
        headline=claims_of(summary),
        flags=sorted({(flag.name, flag.severity) for flag in summary.flags}),
        names=names_in(spec["spec"], texts),
        members=dict(members),
    )


def claims_of(summary: Summary) -> dict[str, Claim]:
    """Returns what every row of a summary publishes, rounded as in manifests."""
    return {
        row.name: Claim(
            estimand=row.headline.estimand,
            value=round(row.headline.value, DIGITS),
            low=round(row.headline.low, DIGITS),
            high=round(row.headline.high, DIGITS),
            examples=row.headline.examples,
            draws=max(1, row.headline.draws),
        )
        for row in summary.rows
    }


def names_in(spec: Mapping[str, Any], texts: Iterable[str]) -> Names:
    """Returns import paths and places that a spec names, and paths of a machine that other texts hold."""
    leaves = [leaf for key, own in spec.items() if key != "name" for leaf in _texts(own)]
    code = {leaf for leaf in leaves if _CODE.fullmatch(leaf)}
    paths = {leaf for leaf in leaves if ("/" in leaf or "\\" in leaf) and not _AMOUNT.fullmatch(leaf.strip())}
    paths |= set(_bare(spec))
    said = {found for text in texts for found in _ABSOLUTE.findall(text)}
    elsewhere = {path for path in said if not any(path in own or own in path for own in paths)}
    return Names(code=_some(code), paths=_some(paths - code), elsewhere=_some(elsewhere))


def _bare(spec: Mapping[str, Any]) -> Iterator[str]:
    """Files and folders, and parts of a plugin, that a spec names without a slash."""
    for part in (spec.get(name) for name in ("data", "classifier", "denoiser")):
        told = part if isinstance(part, Mapping) else {}
        options = told.get("options")
        named = [told.get("name"), *(options.get(k) for k in _PLACES if isinstance(options, Mapping))]
        yield from (name for name in named if isinstance(name, str) and name not in _OF_THE_PACKAGE)


def _some(names: set[str]) -> list[str]:
    """The first of the names, each cut to a bounded length."""
    shown = sorted(name[:300] for name in names)
    more = len(shown) - _MOST_NAMES
    return shown if more <= 0 else [*shown[:_MOST_NAMES], f"and {more} more"]


def _texts(value: Any) -> Iterator[str]:
    """All texts in a table."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for own in value.values():
            yield from _texts(own)
    elif isinstance(value, list):
        for own in value:
            yield from _texts(own)
