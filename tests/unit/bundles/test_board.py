"""A board ranks what can be told apart, and lets no weak attack win."""

import csv
import inspect
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dbpkit import UserError, board, report
from dbpkit.bundles.board import Board, ranked
from dbpkit.bundles.board_page import board_page
from dbpkit.bundles.entries import _SPLITS, Entry, _group, read_entry
from dbpkit.bundles.packing import bundle
from dbpkit.bundles.strength import Strength
from dbpkit.data.dataset import datasets
from dbpkit.foundation.philox import uniforms
from dbpkit.results.summary import summarise
from dbpkit.statistics.estimates import mean_accuracy
from tests.bundled import command, small_run

FULL = Strength(("pgd",), 20, 10, exact=True, random=True, passes=200)
BOTH = FULL._replace(names=("pgd", "square"), select=10)


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    """What is read of a small run."""
    return read_entry(small_run(tmp_path_factory.mktemp("read") / "run"))


def told(**options: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What attacks were told."""
    return tuple((name, json.dumps(each)) for name, each in options.items())


def scored(
    entry: Entry, name: str, share: float, strength: Strength = FULL, first: int = 0, **more: Any
) -> Entry:
    """The same with answers on 200 images of which a share is right, harder ones first wrong."""
    order = uniforms(1, 200, "probe", 5)[0].argsort().tolist()
    scores = {first + i: float(place >= (1 - share) * 200) for place, i in enumerate(order)}
    labels = dict.fromkeys(scores, 0)
    row = entry.row._replace(headline=mean_accuracy("per_draw", list(scores.values()), 10))
    return entry._replace(row=row, name=name, scores=scores, labels=labels, strength=strength, faults=[])


def test_entry_is_the_headline_of_its_run(finished: Path, packed: Path) -> None:
    run, packed_run = read_entry(finished), read_entry(packed)
    assert run.scores == packed_run.scores
    assert run.row == packed_run.row == summarise(finished).row("white_box")
    assert run.strength == Strength(
        ("pgd",), 3, 2, exact=True, random=True, passes=6,
        settings=(("pgd", '{"eot": 2, "iterations": 3}'),),
    )  # fmt: skip
    assert sum(run.scores.values()) / 5 == pytest.approx(run.row.headline.value)


def test_better_defences_come_first_and_ties_share_ranks(entry: Entry) -> None:
    (group,) = ranked([scored(entry, n, s) for n, s in (("a", 0.4), ("b", 0.7), ("c", 0.705), ("d", 0.1))])
    assert [(s.letter, str(s.rank)) for s in group.standings] == [
        ("C", "1–2"), ("B", "1–2"), ("A", "3"), ("D", "4"),
    ]  # fmt: skip
    assert group.standings[0].alike == ["B"]
    assert group.standings[0].better_than == ["A", "D"]
    assert any("Nobody is shown to be the best: C, B" in s for s in group.sentences)


@pytest.mark.parametrize(
    ("weak", "why"),
    [
        (FULL._replace(iterations=5), "5 iterations against 20"),
        (FULL._replace(eot=1), "EoT 1 against 10"),
        (FULL._replace(eot=None), "EoT unknown against 10"),
        (FULL._replace(passes=100), "100 differentiated passes of an image against 200"),
    ],
)
def test_weak_attack_does_not_win(weak: Strength, why: str, entry: Entry) -> None:
    """However high its accuracy is; the stronger attack may still win against the weaker."""
    (group,) = ranked([scored(entry, "strong", 0.5), scored(entry, "weak", 0.95, weak)])
    assert [s.letter for s in group.standings] == ["A", "B"]
    assert [str(s.rank) for s in group.standings] == ["1–2", "1–2"]
    assert group.standings[1].weaker == {"A": [why]}
    assert any(s.startswith("THE ATTACKS DIFFER") and why in s for s in group.sentences)
    (group,) = ranked([scored(entry, "strong", 0.95), scored(entry, "weak", 0.5, weak)])
    assert [str(s.rank) for s in group.standings] == ["1", "2"]


def test_other_attacks_tell_nobody_apart(entry: Entry) -> None:
    """Each lacks what the other has; the union of both would be the stronger."""
    other = FULL._replace(names=("square",))
    (group,) = ranked([scored(entry, "a", 0.9), scored(entry, "b", 0.2, other)])
    assert [str(s.rank) for s in group.standings] == ["1–2", "1–2"]
    assert {s.letter: s.weaker for s in group.standings} == {
        "A": {"B": ["without square"]},
        "B": {"A": ["without pgd"]},
    }
    (group,) = ranked([scored(entry, "a", 0.9, BOTH), scored(entry, "b", 0.2, other)])
    assert [str(s.rank) for s in group.standings] == ["1", "2"]


def test_fewer_draws_that_choose_the_worst_attack_are_weaker() -> None:
    assert BOTH._replace(select=1).weaker_than(BOTH) == ["1 draws that choose the worst attack against 10"]
    assert BOTH.weaker_than(BOTH._replace(select=1)) == []
    assert FULL._replace(select=0).weaker_than(FULL) == []


def test_few_choosing_draws_are_weaker_than_no_choice() -> None:
    """One lucky draw decides an image for a bad attack that is tried first, and keeps ties for it."""
    few = BOTH._replace(select=1)
    assert few.weaker_than(FULL) == ["1 draws that choose the worst attack against 10"]
    assert few._replace(random=False).weaker_than(FULL._replace(random=False)) == []
    assert BOTH.weaker_than(FULL) == []
    orders = [few._replace(settings=told(first={}, pgd={})), few._replace(settings=told(pgd={}, first={}))]
    orders = [each._replace(names=("first", "pgd")) for each in orders]
    assert orders[0].weaker_than(orders[1]) == ["another order of attacks, and 1 draws that choose the worst"]
    assert orders[0]._replace(select=10).weaker_than(orders[1]._replace(select=10)) == []


@pytest.mark.parametrize("option", ["iterations", "eot", "n_restarts"])
def test_a_long_attack_hides_no_short_one(option: str) -> None:
    """Its iterations, draws and passes are those that a run counts."""
    honest = BOTH._replace(settings=told(pgd={option: 20}, square={"iterations": 100}))
    padded = BOTH._replace(settings=told(pgd={option: 1}, square={"iterations": 9000}), passes=9000)
    assert padded.weaker_than(honest) == [f"1 {option} of pgd against 20"]
    assert honest.weaker_than(padded) == ["100 iterations of square against 9000"]
    left_out = padded._replace(settings=told(pgd={}, square={"iterations": 9000}))
    assert left_out.weaker_than(honest) == [f"other settings of pgd ({option})"]
    chosen = honest._replace(iterations=1, eot=None)  # which attack was the worst makes none weaker
    assert chosen.weaker_than(honest) == []


def test_what_records_count_need_not_be_told_alike() -> None:
    written = FULL._replace(settings=told(pgd={"iterations": 20, "eot": 10, "n_restarts": 1}))
    left_out = FULL._replace(settings=told(pgd={}))
    assert written.weaker_than(left_out) == left_out.weaker_than(written) == []
    uncounted = [each._replace(iterations=0, passes=0) for each in (written, left_out)]
    assert uncounted[0].weaker_than(uncounted[1]) == ["other settings of pgd (iterations, n_restarts)"]
    fewer = uncounted[0]._replace(settings=told(pgd={"iterations": 1, "eot": 10, "n_restarts": 1}))
    assert fewer.weaker_than(uncounted[0]) == ["1 iterations of pgd against 20"]
    still = written._replace(random=False, eot=1, settings=told(pgd={"iterations": 20, "eot": 1}))
    assert still.weaker_than(written) == ["other settings of pgd (n_restarts)"]


def test_one_setting_in_two_forms_is_one() -> None:
    a = FULL._replace(settings=told(pgd={"step_size": "1/2", "alpha": 1, "loss": None}))
    b = FULL._replace(settings=told(pgd={"step_size": 0.5, "alpha": 1.0}))
    assert a.weaker_than(b) == b.weaker_than(a) == []


def test_one_step_more_is_no_stronger_attack() -> None:
    """Some attacks spend a pass on their start."""
    assert FULL.weaker_than(FULL._replace(passes=210)) == []


def test_attacks_with_other_settings_tell_nobody_apart(entry: Entry) -> None:
    """A step so small that nothing moves makes every defence look strong."""
    a = FULL._replace(settings=(("pgd", '{"loss": "ce", "step_size": 0.007}'),))
    b = FULL._replace(settings=(("pgd", '{"loss": "ce", "step_size": 1e-9}'),))
    why = ["other settings of pgd (step_size)"]
    assert a.weaker_than(b) == b.weaker_than(a) == why
    (group,) = ranked([scored(entry, "a", 0.2, a), scored(entry, "b", 0.95, b)])
    assert [str(s.rank) for s in group.standings] == ["1–2", "1–2"]
    (group,) = ranked([scored(entry, "a", 0.2, a), scored(entry, "b", 0.95, a)])
    assert [str(s.rank) for s in group.standings] == ["1", "2"]
    assert FULL._replace(settings=(("pgd", "{}"),)).weaker_than(a) == [
        "other settings of pgd (loss, step_size)"
    ]


def test_draws_per_gradient_count_only_between_random_defences(entry: Entry) -> None:
    still = FULL._replace(eot=1, random=False)
    assert still.weaker_than(FULL) == FULL.weaker_than(still) == []
    assert FULL._replace(exact=False).weaker_than(FULL) == ["an inexact gradient"]


def test_other_designs_of_draws_are_other_settings(tmp_path: Path) -> None:
    """The same draws at every iteration are as few draws as one iteration has."""
    options = {"iterations": 3, "eot": 2}
    runs = [
        small_run(tmp_path / f"{common}", attacks=[{"name": "pgd", "options": options, **design}])
        for common, design in ((False, {}), (True, {"design": {"common": True}}))
    ]
    plain, common = (read_entry(run).strength for run in runs)
    assert common.weaker_than(plain) == plain.weaker_than(common) == ["other settings of pgd (design.common)"]
    assert common._replace(random=False).weaker_than(plain) == []


def test_one_report_draw_hides_no_weak_attack(tmp_path: Path) -> None:
    """With one prediction of each image nothing tells a random defence from another."""
    weak = {"attacks": [{"name": "pgd", "options": {"iterations": 3, "eot": 1}}]}
    once = read_entry(small_run(tmp_path / "once", draws={"report": 1, "select": 2}, **weak)).strength
    honest = read_entry(small_run(tmp_path / "honest")).strength
    assert once.random
    assert once.weaker_than(honest) == ["EoT 1 against 2"]


def test_protocols_of_other_numbers_of_queries_are_other_groups(tmp_path: Path) -> None:
    """One query of a random defence is harder to lose than ten."""
    entries = [
        read_entry(
            small_run(tmp_path / f"{protocol}{n}", protocol=protocol, draws={"report": n, "select": 2})
        )
        for protocol, n in (("worst_of_n", 1), ("worst_of_n", 3), ("one_shot", 2), ("one_shot", 3))
    ]
    titles = [group.title.partition(": ")[2] for group in ranked(entries)]
    assert titles == ["right on all N draws, N = 1", "right on all N draws, N = 3", "accuracy per draw"]


def test_faulty_runs_are_shown_and_not_ranked(entry: Entry) -> None:
    bad = scored(entry, "bad", 0.99)._replace(faults=["The gradient of its attack is not the exact one."])
    (group,) = ranked([bad, scored(entry, "good", 0.2)])
    assert [(s.letter, s.rank and str(s.rank)) for s in group.standings] == [("B", "1"), ("A", None)]
    assert any("Not ranked: A" in s for s in group.sentences)


def test_other_threats_data_and_protocols_are_other_groups(entry: Entry) -> None:
    def of(*changes: tuple[int, str]) -> Entry:
        key = list(entry.group)
        for place, value in changes:
            key[place] = value
        return scored(entry, "x", 0.5)._replace(group=tuple(key))

    others = [of(), of((0, "l2")), of((1, "0.5")), of((5, "majority")), of((3, "cifar10"))]
    assert [len(g.standings) for g in ranked([o._replace(data_sha256="") for o in others])] == [1] * 5
    same = [of()._replace(data_sha256="s"), of((3, "cifar10"))._replace(data_sha256="s")]
    assert len(ranked(same)) == 1
    relabelled = of()._replace(labels=dict.fromkeys(range(200), 1))
    assert len(ranked([of(), relabelled])) == 2
    apart = ranked([of(), scored(entry, "y", 0.5, first=1000)])
    assert any("share no images" in s for s in apart[0].sentences)


def test_split_that_a_data_set_has_anyway_is_no_other_data(entry: Entry) -> None:
    """The short command leaves it out, and most specs name it."""

    def on(name: str, **options: Any) -> tuple[str, ...]:
        return _group(entry.summary, {"data": {"name": name, "options": options}})

    assert on("cifar10") == on("cifar10", split="test", root="/data", verify=False)
    assert on("tiny_imagenet") == on("tiny_imagenet", split="val")
    assert on("cifar10") != on("cifar10", split="train")
    assert on("celeba_hq") != on("celeba_hq", split="test")
    assert on("folder") != on("folder", split="test")


def test_splits_are_those_that_data_sets_take_of_themselves() -> None:
    own = {name: datasets.get(name) for name in datasets}
    usual = {name: inspect.signature(made).parameters.get("split") for name, made in own.items()}
    assert {n: s.default for n, s in usual.items() if s and s.default is not None} == _SPLITS


def test_unfinished_inexact_and_flagged_runs_say_why(tmp_path: Path) -> None:
    found = read_entry(small_run(tmp_path / "run", knowledge=["bpda"]))
    assert any("no white box" in fault for fault in found.faults)
    assert any("not the exact one" in fault for fault in found.faults)


def test_page_table_json_and_terminal(
    finished: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    other = small_run(tmp_path / "other", name="=HYPERLINK(<b>x</b>)", classifier={
        "name": "tests.parts:ChannelMean", "options": {"scale": 20.0},
    })  # fmt: skip
    made = board([packed, bundle(other).path], tmp_path / "board.html")
    page = (tmp_path / "board.html").read_text()
    assert "=HYPERLINK(&lt;b&gt;x&lt;/b&gt;)" in page
    assert "<b>x</b>" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "board.csv").read_text())))
    assert [line["name"] for line in lines if "HYPER" in line["name"]] == ["'=HYPERLINK(<b>x</b>)"]
    assert json.loads(json.dumps(made.as_json()))["groups"][0]["standings"][0]["letter"]
    run = command(capsys, monkeypatch)
    code, out, _ = run("board", finished, packed, "--json")
    assert code == 0
    assert len(json.loads(out)["groups"][0]["standings"]) == 2
    code, out, _ = run("board", finished, packed)
    assert (code, "accuracy per draw" in out) == (0, True)
    assert run("board", tmp_path / "none")[0] == 2


@pytest.mark.parametrize(("count", "title"), [(1, "Board of 1 defence"), (2, "Board of 2 defences")])
def test_page_counts_its_defences_in_its_title(count: int, title: str, entry: Entry) -> None:
    page = board_page(Board(ranked([scored(entry, name, 0.5) for name in "ab"[:count]])))
    assert f"<h1>{title}</h1>" in page
    assert ("see the pairs below" in page) == (count > 1)


def test_board_of_nothing_is_refused(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(UserError, match="needs a list"):
        board([])
    with pytest.raises(UserError, match="needs a list"):
        board("a.zip")
    with pytest.raises(UserError, match="is a folder"):
        board([finished], tmp_path)


def test_a_file_of_the_users_own_is_not_replaced(tmp_path: Path, finished: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("x = 1\n")
    writers = {board: "a page", report: "a page", bundle: "a bundle"}
    for write, what in writers.items():
        with pytest.raises(UserError, match=f"exists and is not {what} of dbpkit. Use a new --out"):
            write(str(finished) if write is bundle else [finished], mine)
    assert mine.read_text() == "x = 1\n"
    assert not list(tmp_path.glob("*.csv"))
    (tmp_path / "empty.html").touch()
    for _ in range(2):  # an empty file and an earlier page are replaced
        board([finished], tmp_path / "empty.html")


def test_a_run_that_is_named_twice_is_refused(finished: Path, packed: Path) -> None:
    with pytest.raises(UserError, match=r"run' is named twice, and would be ranked against itself"):
        board([finished, packed, finished / ".." / finished.name])
    assert len(board([finished, packed]).groups[0].standings) == 2
