"""Specs: what a TOML file may say, how it is changed from outside, and what its errors name."""

import hashlib
import math
import re
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from pydantic import Field

from dbpkit.experiment.spec import AttackSpec, EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import (
    Amount,
    PartSpec,
    Strict,
    amount,
    as_toml,
    differences,
    read_spec,
    spec_hash,
    validate,
)


class Inner(Strict):
    steps: int = Field(default=10, gt=0)
    name: str = "ddpm"


class Outer(Strict):
    eps: Amount = "8/255"
    inner: Inner = Inner()
    parts: list[PartSpec] = Field(default_factory=list)
    flag: bool = False


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text(
        'eps = "4/255"\nparts = ["pgd", {name = "other", options = {eot = 3}}]\n[inner]\nsteps = 20\n'
    )
    return path


def test_read_spec_file_fills_defaults_and_keeps_what_is_written(file: Path) -> None:
    spec = read_spec(file, Outer)
    assert spec == Outer(
        eps="4/255",
        inner=Inner(steps=20, name="ddpm"),
        parts=[PartSpec(name="pgd"), PartSpec(name="other", options={"eot": 3})],
    )


@pytest.mark.parametrize("text", ["8/255", "8 / 255", "0.5", "0", "1/3", "1e-3"])
def test_amount_number_or_fraction_is_kept_as_written(text: str) -> None:
    spec = Outer(eps=text)
    assert spec.eps == text
    assert amount(text) == pytest.approx(float(Fraction(text.replace(" ", ""))), abs=1e-18)


def test_amount_eight_over_255_is_exact() -> None:
    assert amount("8/255") == 8 / 255


def test_amount_toml_number_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("eps = 0.25")
    assert read_spec(tmp_path / "s.toml", Outer).eps == "0.25"


@pytest.mark.parametrize("text", ["eight", "8/0", "8//255", "nan", "inf", "", "1e400", "8/255 px"])
def test_amount_no_number_raises(text: str) -> None:
    with pytest.raises(
        UserError, match=rf"eps = {re.escape(text)}: .*is not a number; write \"8/255\" or 0\.5"
    ):
        validate({"eps": text}, Outer, "here")


@pytest.mark.parametrize("text", ["-8/255", "-0.1"])
def test_amount_negative_raises(text: str) -> None:
    with pytest.raises(UserError, match=f"eps = {text}: '{text}' is negative"):
        validate({"eps": text}, Outer, "here")


def test_part_spec_name_alone_has_no_options() -> None:
    assert PartSpec.model_validate("ddim") == PartSpec(name="ddim", options={})


def test_read_spec_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec '.*none\.toml' does not exist\. Give the path of a TOML file"):
        read_spec(tmp_path / "none.toml", Outer)


@pytest.mark.parametrize("content", [b"eps = ", b"[inner\n", b"\xff\xfe", b"eps = 8/255"])
def test_read_spec_no_toml_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"spec '.*s\.toml' is not valid TOML: "):
        read_spec(tmp_path / "s.toml", Outer)


def test_override_without_a_value_leaves_the_key_out() -> None:
    plain = read_spec("cifar10-ddpm", EvaluationSpec)
    assert plain.denoiser.name == "embedded"
    gone = ["purifier={name='median'}", "denoiser=", "examples.count = ", "threat="]
    spec = read_spec("cifar10-ddpm", EvaluationSpec, gone)
    assert spec.denoiser.name == "none", "a purifier without a network has none unless one is named"
    assert spec.examples.count is None
    assert spec.threat == EvaluationSpec().threat
    two = [*gone, "attacks=['pgd', 'square']", "attacks.0="]
    assert [a.name for a in read_spec("cifar10-ddpm", EvaluationSpec, two).attacks] == ["square"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("denoyser=", "the spec does not have 'denoyser', so it cannot be left out"),
        ("purifier.clamp=", "the spec does not have 'purifier.clamp'"),
        ("attacks.7=", "'7' is not a position in the list"),
        ("name=None", "leave the key out, as in --set name=."),
    ],
)
def test_override_that_leaves_out_nothing_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        read_spec("cifar10-ddpm", EvaluationSpec, [text])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epz": 1}, r"unknown key 'epz'\. Did you mean 'eps'\? Available: eps, flag, inner, parts"),
        (
            {"inner": {"step": 3}},
            r"unknown key 'inner\.step'\. Did you mean 'steps'\? Available: name, steps",
        ),
        (
            {"parts": [{"name": "a", "option": {}}]},
            r"unknown key 'parts\.0\.option'\. Did you mean 'options'\?",
        ),
        ({"zzz": 1}, r"unknown key 'zzz'\. Available: eps, flag, inner, parts"),
        ({"parts": [{"options": {}}]}, r"key 'parts\.0\.name' is missing"),
    ],
)
def test_validate_unknown_or_missing_key_is_named_with_the_nearest(
    table: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"spec 'here': {message}"):
        validate(table, Outer, "here")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"inner": {"steps": "many"}}, r"inner\.steps = many: .*integer"),
        ({"inner": {"steps": 1.5}}, r"inner\.steps = 1\.5: .*integer"),
        ({"inner": {"steps": 0}}, r"inner\.steps = 0: .*greater than 0"),
        ({"inner": 3}, "inner = 3: it must be a table, such as "),
        ({"parts": "pgd"}, "parts = pgd: .*list"),
        ({"flag": "perhaps"}, "flag = perhaps: it must be true or false"),
    ],
)
def test_validate_wrong_type_or_range_is_named_with_the_value(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"spec 'here': {message}"):
        validate(table, Outer, "here")


def test_validate_several_problems_are_all_named() -> None:
    with pytest.raises(UserError) as raised:
        validate({"epz": 1, "inner": {"steps": 0}}, Outer, "here")
    assert "unknown key 'epz'" in str(raised.value)
    assert "inner.steps = 0: " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_spec_made_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().eps = "1/255"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("inner.steps=7", {"inner": Inner(steps=7)}),
        (" inner.steps = 7", {"inner": Inner(steps=7)}),
        ("inner.name=ddim", {"inner": Inner(steps=20, name="ddim")}),
        ('inner.name="ddim"', {"inner": Inner(steps=20, name="ddim")}),
        ("inner.name=my_module:make", {"inner": Inner(steps=20, name="my_module:make")}),
        ("eps=8/255", {"eps": "8/255"}),
        ("eps=0.5", {"eps": "0.5"}),
        ("flag=true", {"flag": True}),
        ("parts=[]", {"parts": []}),
        (
            "parts.1.options.eot=9",
            {"parts": [PartSpec(name="pgd"), PartSpec(name="other", options={"eot": 9})]},
        ),
        ("parts.0=apgd", {"parts": [PartSpec(name="apgd"), PartSpec(name="other", options={"eot": 3})]}),
        ('parts=[{name = "a=b"}]', {"parts": [PartSpec(name="a=b")]}),
    ],
)
def test_read_spec_override_replaces_one_leaf(file: Path, override: str, expected: dict[str, object]) -> None:
    found = read_spec(file, Outer, [override])
    defaults = read_spec(file, Outer)
    for field in Outer.model_fields:
        if field not in expected:
            assert getattr(found, field) == getattr(defaults, field)
    for field, value in expected.items():
        if field == "inner" and "steps" in override:
            assert found.inner.steps == 7
        else:
            assert getattr(found, field) == value


def test_read_spec_later_override_wins(file: Path) -> None:
    assert read_spec(file, Outer, ["inner.steps=7", "inner.steps=8"]).inner.steps == 8


@pytest.mark.parametrize("text", ["", "\n", "# nothing = true\n"])
def test_read_spec_of_an_empty_file_is_refused(text: str, tmp_path: Path) -> None:
    """It would measure the defaults, for days."""
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UserError, match=r"s\.toml' says nothing\. 'dbpkit init my\.toml' writes one"):
        read_spec(tmp_path / "s.toml", EvaluationSpec)


def test_read_spec_override_makes_tables_that_the_file_lacks(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("")
    assert read_spec(tmp_path / "s.toml", Outer, ["inner.steps=7"]).inner.steps == 7


@pytest.mark.parametrize("override", ["inner.steps", "=7", " =7", ""])
def test_read_spec_override_without_key_or_value_raises(file: Path, override: str) -> None:
    with pytest.raises(UserError, match=f"override '{override}' is not of the form key.path=value"):
        read_spec(file, Outer, [override])


def test_read_spec_override_below_a_value_raises(file: Path) -> None:
    for override in ("eps.x=1", "inner.steps.x=1", "inner.steps.x.y=1"):
        with pytest.raises(UserError, match=re.escape(f"override '{override}' does not lead to a key")):
            read_spec(file, Outer, [override])


@pytest.mark.parametrize("override", ["parts.first.name=x", "parts.7.name=x", "parts.first=x", "parts.7=x"])
def test_read_spec_override_of_an_item_that_a_list_lacks_raises(file: Path, override: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"override '{override}' does not lead to a key")):
        read_spec(file, Outer, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.stepz=7", r"unknown key 'inner\.stepz'\. Did you mean 'steps'\?"),
        ("inner.steps=-1", r"inner\.steps = -1"),
        ("ineer.steps=7", r"unknown key 'ineer'\. Did you mean 'inner'\?"),
    ],
)
def test_read_spec_override_of_a_wrong_leaf_raises(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_spec(file, Outer, [override])


def test_spec_hash_is_the_sha256_of_canonical_json() -> None:
    """Written out by hand, so that no change of order, spacing or defaults can pass unseen."""
    text = '{"eps": "8/255", "flag": false, "inner": {"name": "ddpm", "steps": 10}, "parts": []}'
    assert spec_hash(Outer()) == hashlib.sha256(text.encode()).hexdigest()


def test_spec_hash_order_of_keys_and_spelled_out_defaults_do_not_matter(tmp_path: Path) -> None:
    texts = (
        'flag = false\neps = "4/255"\n[inner]\nname = "ddpm"\nsteps = 20',
        'eps = "4/255"\n[inner]\nsteps = 20',
        'inner = {steps = 20}\neps = "4/255"',
    )
    hashes = set()
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.toml").write_text(text)
        hashes.add(spec_hash(read_spec(tmp_path / f"{i}.toml", Outer)))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "changed", [{"eps": "4/255"}, {"flag": True}, {"inner": {"steps": 11}}, {"parts": ["pgd"]}]
)
def test_spec_hash_any_leaf_changed_differs(changed: dict[str, object]) -> None:
    assert spec_hash(Outer.model_validate(changed)) != spec_hash(Outer())


def test_differences_every_changed_leaf_is_named() -> None:
    old = Outer(eps="8/255", parts=[PartSpec(name="pgd", options={"eot": 10})])
    new = Outer(
        eps="4/255", inner=Inner(steps=20), parts=[PartSpec(name="pgd", options={"eot": 3, "loss": "ce"})]
    )
    found = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    assert sorted(found) == [
        "eps 8/255 -> 4/255",
        "inner.steps 10 -> 20",
        "parts[0].options.eot 10 -> 3",
        "parts[0].options.loss null -> ce",
    ]


def test_differences_lists_of_other_length_are_shown_whole() -> None:
    assert differences({"a": [1, 2]}, {"a": [1]}) == ["a [1, 2] -> [1]"]


def test_differences_equal_specs_have_none() -> None:
    assert differences(Outer().model_dump(), Outer().model_dump()) == []


NAMES = [
    "plain",
    'quo"ted',
    "back\\slash",
    "line\nbreak",
    "\t",
    "Grüße",
    "\u7a0b",
    "\U0001f600",
    "\x7f",
    "a.b:c",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_as_toml_any_text_is_read_back(name: str) -> None:
    spec = Outer(parts=[PartSpec(name=name, options={"label": name})], inner=Inner(name=name))
    assert Outer.model_validate(tomllib.loads(as_toml(spec.model_dump(mode="json")))) == spec


def options_read_back(options: dict[str, object]) -> bool:
    """Whether options survive TOML, in the last and in another part of a list."""
    spec = Outer(parts=[PartSpec(name="a", options={**options, "z": 1}), PartSpec(name="b", options=options)])
    return Outer.model_validate(tomllib.loads(as_toml(spec.model_dump(mode="json")))) == spec


@pytest.mark.parametrize(
    "value",
    [1, -1.5, 1e30, 1e-30, True, "text", [], [1, 2], {"a": 1}, {}, {"a": {"b": [1]}}, [{"a": 1}, {"b": [2]}]],
)
def test_as_toml_any_option_is_read_back(value: object) -> None:
    assert options_read_back({"option": value})


@pytest.mark.parametrize("key", ["with-dash", "with space", "dotted.key", 'quo"ted', "Grüße"])
def test_as_toml_option_with_any_keys_is_read_back(key: str) -> None:
    """An option may be a table of the user's own, such as a map of class names."""
    assert options_read_back({"option": {key: 1}, "other": [{key: {key: 1}}]})


def test_as_toml_evaluation_spec_is_read_back_with_the_same_hash() -> None:
    """`dbpkit show` prints it, and the user saves what it prints."""
    spec = EvaluationSpec.model_validate({"purifier": {"options": {"eta": 0.5}}, "examples": {"count": 8}})
    again = EvaluationSpec.model_validate(tomllib.loads(as_toml(spec.model_dump(mode="json"))))
    assert again == spec
    assert spec_hash(again) == spec_hash(spec)


# ------------------------------------------------------------------ the evaluation's own spec


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"purifer": {}}, r"unknown key 'purifer'\. Did you mean 'purifier'\?"),
        ({"purifier": {"t_star": 1.0}}, r"purifier\.t_star = 1\.0: .*less than 1"),
        ({"purifier": {"stepz": 5}}, r"unknown key 'purifier\.stepz'\. Did you mean 'steps'\?"),
        ({"threat": {"eps": "8/25 5x"}}, r"threat\.eps = 8/25 5x: "),
        ({"knowledge": ["white_bx"]}, r"unknown knowledge 'white_bx'\. Did you mean 'white_box'\?"),
        (
            {"knowledge": [{"name": "dw_both", "tapez": 3}]},
            r"unknown key 'knowledge\.0\.tapez'\. Did you mean 'tapes'\?",
        ),
        ({"knowledge": ["dw_both", "dw_both"]}, "every name may occur once"),
        ({"attacks": []}, "attacks = "),
        ({"seed": -1}, "seed = -1: "),
        ({"seed": 2**32}, "seed = 4294967296: "),
        ({"draws": {"report": 0}}, r"draws\.report = 0: "),
    ],
)
def test_evaluation_spec_wrong_value_is_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        validate(table, EvaluationSpec, "here")
    assert "\n" not in str(raised.value)


def test_evaluation_spec_defaults_are_the_published_setting() -> None:
    """Liu et al., ICLR 2025: DDPM, S = 1000, t* = 0.1, Linf 8/255."""
    spec = EvaluationSpec()
    assert (spec.purifier.sampler, spec.purifier.steps, spec.purifier.t_star) == ("ddpm", 1000, 0.1)
    assert (spec.threat.norm, spec.threat.eps) == ("linf", "8/255")
    assert math.isclose(amount(spec.threat.eps), 8 / 255)
    assert [k.name for k in spec.knowledge] == ["white_box", "dw_fwd", "dw_rev", "dw_both", "fixed"]


def test_evaluation_spec_dumped_and_read_back_is_the_same() -> None:
    """The run directory stores the dump; a resumed run must find the same hash."""
    spec = EvaluationSpec.model_validate(
        {"knowledge": ["dw_rev", {"name": "mine", "shared_sites": ["forward"]}]}
    )
    again = EvaluationSpec.model_validate(spec.model_dump(mode="json"))
    assert again == spec
    assert spec_hash(again) == spec_hash(spec)


# ------------------------------------------------------------------ texts that are no spec, or hardly one


@pytest.mark.parametrize(
    "text",
    [
        "8/255/2", "1e99999999", "1e-400", "1e-99999999", "9" * 5000, "1/" + "9" * 5000, "nan", "inf",
        "-inf", "1e400", "0x10", "1_000", "٣", "8\x00", "--1", "1e", ".", "/", "1/", "/2", "1e5/1e999",
        "1" + "0" * 400,
    ],
)  # fmt: skip
def test_amount_text_that_is_no_number_is_refused_without_being_worked_out(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a number; write \"8/255\" or 0\.5") as raised:
        validate({"eps": text}, Outer, "here")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("value", [True, False, None, [], {}, [8, 255]])
def test_amount_value_that_is_no_number_or_text_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^spec 'here': eps = .*string"):
        validate({"eps": value}, Outer, "here")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"flag": "False"}, "flag = False: it must be true or false"),
        ({"flag": 0}, "flag = 0: it must be true or false"),
        ({"inner": {"steps": "20"}}, r"inner\.steps = 20: .*integer"),
        ({"inner": {"steps": True}}, r"inner\.steps = true: .*integer"),
        ({"inner": {"steps": 20.0}}, r"inner\.steps = 20\.0: .*integer"),
        ({"inner": {"name": 3}}, r"inner\.name = 3: .*string"),
        ({"inner": {"steps": 10**30}}, "a whole number is beyond 64 bits"),
        ({"x\x1b[31m": 1}, r"unknown key 'x\\x1b\[31m'"),
        ({"inner": {"name": "a" * 5000, "steps": 0}}, r"inner\.steps = 0"),
    ],
)
def test_validate_takes_no_value_for_another(table: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        validate(table, Outer, "here")
    assert str(raised.value).isprintable()


NESTED = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"a = {NESTED}", "it nests deeper than 32 levels"),
        ("a = " + "[" * 100 + "]" * 100, "it nests deeper than 32 levels"),
        (".".join("a" * 2000) + " = 1", "a line holds more than 1,000 dots"),
        ("a = " + "9" * 4301, "a whole number has thousands of digits"),
        ("a = 0x" + "f" * 5000, "a whole number is beyond 64 bits"),
        ("a = 1\na = 2", "Cannot overwrite a value"),
        ("flag = False", r"Write false in small letters\."),
        ("flag = True # yes", r"Write true in small letters\."),
        ("flag = None", r"leave the key out\."),
        ('eps = "8/255\x00"', "is not valid TOML"),
        ("a = 1\rb = 2", "is not valid TOML"),
        ("#" + "x" * 300_000, "longer than 200,000 bytes"),
    ],
)
def test_read_spec_text_that_no_spec_is_ends_in_one_sentence(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(content.encode())
    with pytest.raises(UserError, match=said) as raised:
        read_spec(tmp_path / "s.toml", Outer)
    assert str(raised.value).isprintable()


def test_read_spec_utf16_says_to_save_as_utf8(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes('eps = "1/255"'.encode("utf-16"))
    with pytest.raises(UserError, match=r"Save it as UTF-8\."):
        read_spec(tmp_path / "s.toml", Outer)


@pytest.mark.parametrize("bytes_", [b'\xef\xbb\xbfeps = "2/255"', b'eps = "2/255"\r\nflag = true\r\n'])
def test_read_spec_byte_order_mark_and_windows_lines_are_read(bytes_: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(bytes_)
    assert read_spec(tmp_path / "s.toml", Outer).eps == "2/255"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("flag=False", "write false in small letters"),
        ("flag= True ", "write true in small letters"),
        ("flag='False'", "flag = False: it must be true or false"),
        ("flag=None", "there is no None in TOML: leave the key out"),
        ("inner.steps=nan", "a number is infinite or nan"),
        ("inner.steps=-inf", "a number is infinite or nan"),
        ("inner.steps=" + "9" * 5000, "a whole number has thousands of digits"),
        ("inner=" + NESTED, "it nests deeper than 32 levels"),
        ("inner={steps = ", "it is not valid TOML"),
        ("parts=[1,", "it is not valid TOML"),
        ("a" + ".a" * 400 + "=1", "it nests deeper than 32 levels"),
        ("inner..steps=1", "is not of the form"),
        ("parts.-1.name=x", "'-1' is not a position in the list, it has 0 to 1"),
        ("parts.1_0.name=x", "'1_0' is not a position in the list"),
        ("parts.٣=x", "is not a position in the list"),
        ("parts.2=x", "'2' is not a position in the list, it has 0 to 1"),
        ("\x1b[31m=1", r"unknown key '\\x1b\[31m'"),
    ],
)
def test_read_spec_override_that_cannot_be_meant_is_one_sentence(
    override: str, said: str, file: Path
) -> None:
    with pytest.raises(UserError, match=said) as raised:
        read_spec(file, Outer, [override])
    assert str(raised.value).isprintable()


def test_read_spec_override_of_an_empty_list_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("parts = []")
    with pytest.raises(UserError, match="'0' is not a position in the list, it is empty"):
        read_spec(tmp_path / "s.toml", Outer, ["parts.0.name=x"])


@pytest.mark.parametrize(
    ("content", "override", "expected"),
    [
        ('denoiser = "a:b"', "denoiser.name=c:d", {"name": "c:d", "options": {}}),
        ('denoiser = "a:b"', "denoiser.options.x=1", {"name": "a:b", "options": {"x": 1}}),
        ("", "denoiser.options.variant=addt", {"name": "embedded", "options": {"variant": "addt"}}),
        ("", "denoiser=a:b", {"name": "a:b", "options": {}}),
    ],
)
def test_read_spec_override_leads_through_short_forms_and_defaults(
    content: str, override: str, expected: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(content)
    assert read_spec(tmp_path / "s.toml", EvaluationSpec, [override]).denoiser.model_dump() == expected


def test_read_spec_override_leads_through_short_forms_in_lists(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('attacks = ["pgd"]\nknowledge = ["dw_both"]')
    found = read_spec(tmp_path / "s.toml", EvaluationSpec, ["attacks.0.options.eot=2", "knowledge.0.tapes=3"])
    assert found.attacks == [AttackSpec(name="pgd", options={"eot": 2})]
    assert (found.knowledge[0].tapes, found.knowledge[0].shared_sites) == (3, ["forward", "reverse"])


def test_read_spec_override_of_a_default_list_changes_only_the_leaf(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("")
    found = read_spec(tmp_path / "s.toml", EvaluationSpec, ["attacks.0.options.eot=2", "purifier.steps=50"])
    assert found == EvaluationSpec.model_validate(
        {"attacks": [{"name": "pgd", "options": {"eot": 2}}], "purifier": {"steps": 50}}
    )


@pytest.mark.parametrize(
    "knowledge",
    [[{"name": []}], [{"name": {}}], [{}], [[]], [3], [{"name": None}], [{"name": "..", "gradient": "bpda"}]],
)
def test_evaluation_spec_knowledge_of_any_kind_is_one_sentence(knowledge: list[object]) -> None:
    with pytest.raises(UserError, match=r"^spec 'here': .*knowledge\.0"):
        validate({"knowledge": knowledge}, EvaluationSpec, "here")


def test_user_error_is_one_printable_line() -> None:
    assert str(UserError("a\n  b\x1b[31m\u202e\udcff")) == "a b\\x1b[31m\\u202e\\udcff"


def test_spec_of_another_kind_names_its_command_and_lists_the_keys_once() -> None:
    with pytest.raises(
        UserError, match="looks like a training spec, which is for 'dbpkit train': "
    ) as caught:
        read_spec("train/cifar10-addt", EvaluationSpec)
    assert str(caught.value).count("Available: ") == 1
    assert ".;" not in str(caught.value)
