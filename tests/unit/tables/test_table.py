"""Tables as data: every file loads, every cell is a setting at both scales, and mistakes are one sentence."""

import pytest

from dbpkit.foundation.errors import UserError
from dbpkit.tables.layers import merged, resolve
from dbpkit.tables.reproduce import reproduce
from dbpkit.tables.table import load_table, read_published, table_names

SMALL = """
title = "t"
paper = "A paper"
place = "table 1"
setting = "A setting."
[spec]
purifier = { sampler = "ddpm", steps = 1000, options = { variance = "large" } }
knowledge = ["white_box"]
attacks = [{ name = "pgd", options = { iterations = 20, eot = 10 } }]
[mini]
images = 4
iterations = 5
eot = 3
draws = 2
[[columns]]
name = "clean"
title = "Clean"
reads = { row = "clean" }
[[columns]]
name = "l2"
title = "L2"
reads = { row = "white_box" }
spec = { threat = { norm = "l2", eps = "0.5" } }
[[rows]]
name = "a"
label = "A"
cells = { clean = 90, l2 = { value = 50.5, n = 10, unconfirmed = "read off a figure" } }
[[rows]]
name = "b"
label = "B"
spec = { purifier = { sampler = "ddim" } }
mini = { eot = 1 }
cells = { l2 = 40 }
"""


@pytest.fixture
def small(tmp_path):
    def write(text=SMALL, **changes):
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "small.toml"
        path.write_text(text)
        return read_published(path)

    return write


@pytest.mark.parametrize("scale", ["mini", "paper"])
@pytest.mark.parametrize("name", table_names())
def test_every_cell_of_every_table_is_a_setting_or_says_why_not(name, scale):
    table = load_table(name)
    placed = resolve(table, scale)
    assert {p.name for p in placed} == {f"{r.name}/{c.name}" for r, c, _ in table.places()}
    for one in placed:
        assert (one.job is None) == bool(one.skipped)
        layers = (table, one.column, one.row, one.cell)
        assert scale == "mini" or bool(one.skipped) == any(layer.unsupported for layer in layers)
        if one.job is not None and scale == "mini":
            assert one.job.spec.classifier.name == one.job.spec.data.name == "embedded"


def test_cells_come_in_the_order_of_rows_and_columns(small):
    assert [p.name for p in resolve(small(), "mini")] == ["a/clean", "a/l2", "b/l2"]


def test_the_later_layer_wins(small):
    clean, l2, b = resolve(small(), "mini")
    assert clean.job.spec.threat.norm == "linf"
    assert (l2.job.spec.threat.norm, l2.job.spec.threat.eps) == ("l2", "0.5")
    assert l2.job.spec.attacks[0].options == {"iterations": 5, "eot": 3}
    assert b.job.spec.attacks[0].options == {"iterations": 5, "eot": 1}
    assert (b.job.spec.purifier.sampler, b.job.spec.purifier.options) == ("ddim", {})


def test_a_part_of_another_name_begins_anew():
    base = {"denoiser": {"name": "weights", "options": {"path": "a"}}, "draws": {"report": 1, "select": 2}}
    over = {"denoiser": {"name": "embedded"}, "draws": {"report": 5}}
    assert merged(base, over) == {"denoiser": {"name": "embedded"}, "draws": {"report": 5, "select": 2}}
    assert merged({"denoiser": "embedded"}, {"denoiser": {"options": {"variant": "addt"}}}) == {
        "denoiser": {"name": "embedded", "options": {"variant": "addt"}}
    }


def test_caps_lower_and_never_raise(small):
    table = small(**{"eot = 10": "eot = 2"})
    assert resolve(table, "mini")[0].job.spec.attacks[0].options == {"iterations": 5, "eot": 2}


def test_the_published_scale_changes_nothing_but_the_models(small):
    table = small(
        **{'setting = "A setting."': 'setting = "A setting."\nmodels = { denoiser = "ddpm-cifar10" }'}
    )
    spec = resolve(table, "paper")[0].job.spec
    assert spec.denoiser.name == "ddpm-cifar10"
    assert spec.attacks[0].options == {"iterations": 20, "eot": 10}
    path = {"ddpm-cifar10": {"name": "diffusers", "options": {"path": "models/ddpm"}}}
    assert resolve(table, "paper", path)[0].job.spec.denoiser.options == {"path": "models/ddpm"}


def test_equal_settings_are_one_job_whatever_the_table_calls_them(small):
    first, second, other = (
        p.job for p in resolve(small(**{'eps = "0.5"': 'eps = "8/255"', '"l2", eps': '"linf", eps'}), "mini")
    )
    assert first.key == second.key != other.key
    assert resolve(small(**{"images = 4": "images = 8"}), "mini")[0].job.key == first.key


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "l2"', 'name = "L 2"', "small letters"),
        ('name = "b"', 'name = "a"', "two rows are called 'a'"),
        ("l2 = 40", "linf = 40", "column 'linf'"),
        ("[mini]", "[mini]\nimage = 3", "Did you mean 'mini.images'|image"),
        ('reads = { row = "white_box" }', 'reads = { row = "dw_both" }', "reads row 'dw_both'"),
        ('reads = { row = "clean" }', 'reads = { analysis = "distances" }', "no number"),
        ("steps = 1000", "steps = 0", "greater than 0"),
        (
            'setting = "A setting."',
            'setting = "A setting."\nmodels = { denoiser = "ddpm-cifar" }',
            "ddpm-cifar10",
        ),
        ('label = "B"', 'label = "B"\nno_mini = "no"', "sentence"),
        ("[spec]", '[[claims]]\nwords = "a claim"\n[spec]', "one of order, contrast and cell"),
        ("[spec]", '[[claims]]\nwords = "a claim"\norder = ["a/l2", "c/l2"]\n[spec]', "'c/l2'"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(small, old, new, said):
    with pytest.raises(UserError, match=said) as caught:
        resolve(small(**{old: new}), "mini")
    assert "\n" not in str(caught.value)


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(UserError, match="liu-dw-box"):
        load_table("liu-dwbox")


def test_a_file_as_the_folder_of_runs_is_refused_at_once(tmp_path, small):
    place = tmp_path / "mine.txt"
    place.write_text("mine")
    with pytest.raises(UserError, match=r"'.*mine\.txt' is a file\. Name a folder"):
        reproduce([small()], out=place)
    assert place.read_text() == "mine"
    data = tmp_path / "images"
    (data / "cats").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images' holds something else, 'cats'\. Name a new folder\.$"):
        reproduce([small()], out=data)
    assert [p.name for p in data.iterdir()] == ["cats"]
    (data / "cats").rename(data / "runs")
    assert reproduce([small()], out=data, run=False).tables
