"""Transfer against a model whose every draw looks at one block of rows, so that the matrix is known."""

from typing import Any

import numpy as np
import pytest

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.run import make_analysis
from dbpkit.analyses.transfer import Transfer
from dbpkit.foundation.errors import UserError
from tests.unit.analyses import stubs

IDS = range(stubs.FIRST_ID, stubs.FIRST_ID + 12)


def test_transfer_attack_works_exactly_on_tapes_that_look_at_the_same_block() -> None:
    """Four steps of eps / 4 raise the known tape's block by eps and no other."""
    analysis = Transfer(images=12, tapes=3, averaged=(1, 2, 4), unseen=3, iterations=4)
    model = stubs.Blocks()
    measured = stubs.measure_all(analysis, stubs.subject(model))
    records = [r for unit in measured.values() for r in unit]
    for example, record in zip(IDS, records, strict=True):
        seen = [stubs.block(example, t) for t in range(7)]
        assert record["matrix"] == [[int(seen[i] == seen[j]) for j in range(3)] for i in range(3)]
        for k in (1, 2, 4):
            assert record["known"][str(k)] == [1] * k
            assert record["unseen"][str(k)] == [int(seen[j] in seen[:k]) for j in range(4, 7)]
        assert record["clean"] == [0, 0, 0]
    # Every attacker here knows its tapes; the attack's noise serves one trial: does a gradient come through?
    assert model.streams == {True: {"attack", "report"}, False: {"report"}}


def record(matrix: Any, known: Any, unseen: Any) -> dict[str, Any]:
    return {"id": 0, "matrix": matrix, "known": known, "unseen": unseen, "clean": [0, 0]}


def test_transfer_numbers_are_means_over_tapes_then_images() -> None:
    measured = {
        Unit(range(2)): [
            record([[1, 0], [1, 1]], {"1": [1], "2": [1, 1]}, {"1": [0, 0], "2": [0, 1]}),
            record([[1, 0], [0, 0]], {"1": [1], "2": [1, 0]}, {"1": [0, 1], "2": [1, 1]}),
        ]
    }
    result = Transfer(images=2, tapes=2, averaged=(1, 2)).conclude(measured)
    values = [n.value for n in result.numbers]
    assert values == pytest.approx([0, (1 + 0.5) / 2, (0.5 + 0) / 2, 0.5, (0 + 0.5) / 2, (0.5 + 1) / 2, 0.5])
    heat, lines = result.charts
    assert np.array([s.y for s in heat.series]) == pytest.approx(np.array([[1, 0], [0.5, 0.5]]))
    assert [list(s.y) for s in lines.series] == [[1, 0.75], [0.25, 0.75]]


@pytest.mark.parametrize(
    ("same", "other", "holds"), [(1, 0, True), (1, 1, None), (0, 1, False)], ids=["none", "full", "better"]
)
def test_transfer_protection_is_judged_by_the_interval(same: int, other: int, holds: bool | None) -> None:
    one = record([[same, other], [other, same]], {"1": [1]}, {"1": [0, 0]})
    result = Transfer(images=16, tapes=2, averaged=(1,)).conclude({Unit(range(16)): [one] * 16})
    assert result.numbers[3].holds is holds


@pytest.mark.parametrize("options", [{"tapes": 1}, {"averaged": [0, 2]}, {"averaged": []}, {"unseen": True}])
def test_transfer_bad_option_says_what_is_expected(options: dict[str, Any]) -> None:
    said = (
        f"'transfer': {next(iter(options))} must be (a list of at least 1 with each entry )?a whole number of"
    )
    with pytest.raises(UserError, match=said):
        make_analysis("transfer", options)


def test_transfer_counts_out_of_order_are_refused() -> None:
    with pytest.raises(UserError, match="averaged must increase, not \\[4, 2\\]"):
        make_analysis("transfer", {"averaged": [4, 2]})
