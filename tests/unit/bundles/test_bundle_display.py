"""What a verification and a board show of themselves in notebooks: escaped HTML, and frames."""

from pathlib import Path

import pytest

from dbpkit import board, verify
from dbpkit.bundles.board import Board
from dbpkit.bundles.verdict import Verification
from dbpkit.foundation.display import html, plot
from dbpkit.foundation.errors import UserError
from tests.bundled import small_run

ATTACK = "<script>alert(1)</script>"
OUTSIDE = ("<script", "http", "url(", "src=", "class=", "<style")


@pytest.fixture(scope="module")
def verified(packed: Path) -> Verification:
    return verify(packed, trust=True, fresh=2, fresh_seed=1)


@pytest.fixture(scope="module")
def ranking(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Board:
    other = small_run(tmp_path_factory.mktemp("board") / "other", name=ATTACK, knowledge=["bpda"])
    return board([finished, other])


def test_verification_shows_its_verdict_and_rows(verified: Verification) -> None:
    page = verified._repr_html_()
    assert "The claim stands: 5 of 5 examples judged again." in page
    assert "Fresh draws (seed 1)" in page
    for row in verified.rows:
        assert f"{row.again.value:.1%}" in page
    fallen = verified._replace(verdict="does not stand", reasons=[ATTACK], name=ATTACK)
    page = fallen._repr_html_()
    assert "The claim does not stand" in page
    assert page.count("&lt;script&gt;") == 2
    assert not any(outside in page for outside in OUTSIDE)


def test_board_shows_ranks_and_what_is_not_ranked(ranking: Board) -> None:
    page = html(ranking)
    assert page == ranking._repr_html_()
    assert "no white box" in page
    assert "&lt;script&gt;alert(1)" in page
    assert not any(outside in page for outside in OUTSIDE)


def test_frames_have_a_line_for_every_row_and_defence(verified: Verification, ranking: Board) -> None:
    pytest.importorskip("pandas")
    rows = verified.to_frame()
    assert list(rows["row"]) == [row.row for row in verified.rows]
    assert list(rows["again_value"]) == [row.again.value for row in verified.rows]
    lines = ranking.to_frame()
    assert list(lines["letter"]) == [s.letter for group in ranking.groups for s in group.standings]
    assert lines["best_rank"].tolist()[0] == 1
    with pytest.raises(UserError, match=r"a Board has no figure; \.to_frame\(\) has its numbers\."):
        plot(ranking)
