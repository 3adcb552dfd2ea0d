"""Options of parts: what a signature admits, and the sentence for everything else."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from dbpkit.attacks import RESERVED, attacks, losses, make_attack
from dbpkit.cli.listing import REGISTRIES
from dbpkit.evaluation import quick_check as check
from dbpkit.experiment import build
from dbpkit.fidelity.features import feature_sources
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.options import (
    Checked,
    Count,
    CountOrNone,
    Length,
    Named,
    Option,
    Share,
    call_with_options,
    checked_options,
    options_of,
    words,
)
from dbpkit.purification.samplers import samplers

PARTS = [
    (kind, name, part)
    for kind, registry in {**REGISTRIES, "features": feature_sources}.items()
    if kind not in ("protocols",)
    for name, part in registry._parts.items()
]


def part(
    count: Count = 1,
    some: CountOrNone = 0,
    plain: int = 0,
    step: Length | None = None,
    share: Share = 0.5,
    number: float = 0.0,
    far: float = math.inf,
    clip: bool = True,
    start: Literal["zero", "random"] = "zero",
    text: str = "",
    counts: tuple[Count, ...] = (1,),
    pair: tuple[int, int] = (1, 2),
    texts: Sequence[str | float] = (),
    table: Mapping[str, Any] | None = None,
    loss: Annotated[str, Named(losses)] = "ce",
    bare=None,
    wrong_default: int = None,  # type: ignore[assignment]  # noqa: RUF013
    named_later: "NotDefinedAnywhere" = 1,  # type: ignore[name-defined]  # noqa: F821
) -> dict[str, Any]:
    """A part with an option of every kind."""
    return locals()


BAD = ["x", "nan", "", "8/255/2", float("nan"), float("inf"), -float("inf"), [], {}, [[]], 10**30, b"1", None]


@pytest.mark.parametrize(
    ("option", "expected", "values"),
    [
        ("count", "a whole number of at least 1", [*BAD, 0, -1, True, False, 1.0, 1.5, "1", "1/2"]),
        ("some", "a whole number of at least 0", [*BAD, -1, True, 0.0]),
        ("plain", "a whole number", [*BAD, True, 0.5, 2**31, -(2**31)]),
        ("step", "a number above 0", [v for v in BAD if v is not None and v != 10**30] + [0, -1, True, "0"]),
        ("share", "a number from 0 to 1", [*BAD, 1.01, -0.01, True, "256/255"]),
        ("number", "a number", [v for v in BAD if v != 10**30] + [True, 10**400, torch.zeros(2)]),
        ("far", "a number", ["x", float("nan"), [], True]),
        ("clip", "true or false", [*BAD, 0, 1, "False", "true", "None", "yes", 0.0]),
        ("start", "'zero' or 'random'", [*BAD, "Zero", True, 0]),
        ("text", "text", [v for v in BAD if not isinstance(v, str)] + [1, True]),
        ("counts", "a list with each entry a whole number of at least 1", ["12", [0], [1, "x"], {}, [True]]),
        ("pair", "a list of 2 with each entry a whole number", [[1], [1, 2, 3], 1, [1, 0.5]]),
        ("texts", "a list with each entry text or a number", ["abc", [True], [[]], 1]),
        ("table", "a table", ["x", 1, [], [["a", 1]], {1: 2}]),
    ],
)  # fmt: skip
def test_option_of_a_wrong_kind_is_one_sentence_with_part_and_option(
    option: str, expected: str, values: list[Any]
) -> None:
    assert options_of(part)[option].words == expected
    for value in values:
        with pytest.raises(UserError) as raised:
            call_with_options(part, {option: value}, "thing 'box'")
        said = str(raised.value)
        assert said.startswith(f"thing 'box': {option} must be {expected.split(' of at least')[0]}")
        assert said.endswith(f", not {shown(value)}.")
        assert "\n" not in said


def test_option_with_a_quoted_truth_value_is_told_to_leave_the_quotes_out() -> None:
    with pytest.raises(UserError, match=r"^thing: clip must be true or false without quotes, not 'False'\.$"):
        call_with_options(part, {"clip": "False"}, "thing")


@pytest.mark.parametrize(
    ("option", "value", "read"),
    [
        ("count", 3, 3),
        ("count", np.int64(3), 3),
        ("plain", -(2**31) + 1, -(2**31) + 1),
        ("step", "2/255", 2 / 255),
        ("step", 1, 1.0),
        ("step", None, None),
        ("step", np.float32(0.5), 0.5),
        ("far", math.inf, math.inf),
        ("clip", False, False),
        ("clip", np.bool_(False), False),
        ("start", "random", "random"),
        ("text", Path("a/b"), "a/b"),
        ("counts", [1, 2], (1, 2)),
        ("pair", (3, 4), (3, 4)),
        ("texts", ["8/255", 0.5], ("8/255", 0.5)),
        ("table", {"a": [1]}, {"a": [1]}),
        ("loss", "margin", "margin"),
        ("loss", "dbpkit.attacks:margin", "dbpkit.attacks:margin"),
        ("bare", "8/255", "8/255"),
        ("wrong_default", None, None),
        ("named_later", "anything", "anything"),
    ],
)
def test_option_of_the_right_kind_is_what_the_part_takes(option: str, value: Any, read: Any) -> None:
    found = call_with_options(part, {option: value}, "thing")[option]
    assert found == read
    assert type(found) is type(read)


def test_option_that_names_an_unknown_part_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^thing: loss: unknown loss 'margn'\. Did you mean 'margin'\?"):
        call_with_options(part, {"loss": "margn"}, "thing")


@pytest.mark.parametrize("name", ["no_such_module:loss", "dbpkit.attacks:no_such_loss", ":", "a:b:c"])
def test_option_that_names_a_missing_import_path_is_refused_before_the_run(name: str) -> None:
    with pytest.raises(UserError, match=r"^thing: loss: loss "):
        call_with_options(part, {"loss": name}, "thing")


@pytest.mark.parametrize("thing", [3, "text", None, [1]])
def test_part_that_cannot_be_called_is_named(thing: Any) -> None:
    with pytest.raises(UserError, match=r"^thing must be a function or class, not "):
        call_with_options(thing, {}, "thing")


def test_option_with_a_check_of_its_own_raises_its_sentence() -> None:
    def odd(n: int) -> None:
        if n % 2 == 0:
            raise ValueError("must be odd")

    def own(n: Annotated[int, Checked(odd)]) -> int:
        return n

    assert call_with_options(own, {"n": 3}, "thing") == 3
    with pytest.raises(UserError, match=r"^thing: n must be odd\.$"):
        call_with_options(own, {"n": 2}, "thing")


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Annotated[float, Gt(0), Le(1)], "a number above 0 and of at most 1"),
        (Annotated[float, Gt(0), Lt(1)], "a number above 0 and below 1"),
        (bool | None, "true or false"),
        (int | str, "a whole number or text"),
        (Any, "anything"),
        (list, "a list"),
        (dict[str, int], "a table"),
        (Annotated[str, Named(samplers)], "a sampler's name"),
    ],
)
def test_words_say_what_an_annotation_admits(annotation: Any, expected: str) -> None:
    assert words(annotation) == expected


def test_options_of_carry_their_meaning_from_the_docstring() -> None:
    found = options_of(attacks.get("pgd"), RESERVED)
    assert found["eot"] == Option("eot", Count, 10, "draws averaged in each gradient.")
    assert list(found)[:3] == ["iterations", "eot", "step_size"]


@pytest.mark.parametrize(("kind", "name", "made_by"), PARTS, ids=lambda p: p if isinstance(p, str) else "")
def test_every_option_of_every_part_says_what_it_takes(
    kind: str, name: str, made_by: Callable[..., Any]
) -> None:
    """Nothing is left unchecked, and every default is what its own annotation admits."""
    for option in options_of(
        made_by, (*RESERVED, "denoiser", "memory_bytes", "levels", "step", "model", "logits")
    ).values():
        assert option.annotation is not inspect.Parameter.empty, f"{kind} {name}: {option.name}"
        if not option.needed:
            bare = option._replace(default=inspect.Parameter.empty if option.default is not None else None)
            bare.read(option.default)


@pytest.mark.parametrize("name", list(attacks))
def test_every_attack_refuses_values_out_of_range_before_it_runs(name: str) -> None:
    for option in options_of(attacks.get(name), RESERVED).values():
        if option.words.startswith("a whole number"):
            for value in ("x", 0, -3, float("nan"), [], {}, True, 10**30):
                with pytest.raises(
                    UserError, match=f"^attack '{name}': {option.name} must be a whole number"
                ):
                    make_attack(name, {option.name: value})


def test_attack_example_of_the_issue() -> None:
    with pytest.raises(UserError) as raised:
        make_attack("pgd", {"iterations": "x"})
    assert str(raised.value) == "attack 'pgd': iterations must be a whole number of at least 1, not 'x'."


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["agpd"], "unknown attack 'agpd'. Did you mean 'apgd'?"),
        ([{"name": "apgd", "options": {"eot": 0}}], "attack 'apgd': eot must be a whole"),
        ([], "list of 1 to"),
        ([3], "parts must be a list with each entry text or a table, not [3]"),
    ],
)  # fmt: skip
def test_parts_of_autoattack_are_checked_when_it_is_made(parts: list[Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        make_attack("autoattack", {"parts": parts})
    assert said in str(raised.value)


def test_options_that_shorten_attacks_exist_in_some_attack() -> None:
    """`target_classes` was shortened, and no attack had it: naming one is now an error at import."""
    known = {o for name in attacks for o in options_of(attacks.get(name), RESERVED)}
    assert check.QUICK.keys() | build.SINGLE_DRAW.keys() <= known
    with pytest.raises(RuntimeError, match="no attack has the option target_classes"):
        build.of_attacks(eot=2, target_classes=2)


def test_open_ended_part_takes_options_of_any_name_but_reserved_ones() -> None:
    def open_ended(x: int = 0, **more: Any) -> dict[str, Any]:
        return more

    assert checked_options(open_ended, {"a": 1}, "thing") == {"a": 1}
    with pytest.raises(UserError, match="thing has no option 'x'"):
        checked_options(open_ended, {"x": 1}, "thing", ("x",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        ("a\x1b[31m", "'a\\x1b[31m'"),
        ("a\nb", "'a\\nb'"),
        ("x" * 100, "'" + "x" * 55 + " ..."),
    ],
)
def test_shown_is_short_and_on_one_line(value: Any, text: str) -> None:
    assert shown(value) == text


def test_shown_number_that_python_does_not_write_out_is_described() -> None:
    assert shown(10**5000) == "a whole number of thousands of digits"


def test_range_marks_compare_as_annotated_types_define() -> None:
    for mark, inside, outside in ((Ge(1), 1, 0), (Gt(1), 2, 1), (Le(1), 1, 2), (Lt(1), 0, 1)):

        def own(n: Annotated[int, mark]) -> int:  # type: ignore[valid-type]
            return n

        assert call_with_options(own, {"n": inside}, "thing") == inside
        with pytest.raises(UserError):
            call_with_options(own, {"n": outside}, "thing")
