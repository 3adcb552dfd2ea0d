"""The command that converts a foreign file, with the data it is tried on."""

import sys
from pathlib import Path

import pytest

from dbpkit.cli import main
from tests.checkpoint_files import save
from tests.reference import reference


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save({"state_dict": reference("cls_trades_subblock_wrn").state}, tmp_path / "wrn.pt")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs ``dbpkit convert`` in this process; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dbpkit", "convert", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            sys.exit(main())
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return command


def test_convert_says_how_the_model_does_on_data(run, checkpoint: Path, tmp_path: Path) -> None:
    code, out, err = run(checkpoint, tmp_path / "new.safetensors", "--data", "embedded")
    assert code == 0, err
    assert "Wrote '" in out
    assert "The classifier is right on " in out
    assert "guessing has 10.0%" in out
    assert (tmp_path / "new.md").is_file()


def test_convert_with_unknown_data_writes_nothing(run, checkpoint: Path, tmp_path: Path) -> None:
    code, _, err = run(checkpoint, tmp_path / "new.safetensors", "--data", "cifar11")
    assert code == 2
    assert "unknown data set 'cifar11'" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wrn.pt"]
