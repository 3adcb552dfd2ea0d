import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbpkit.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process; returns exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dbpkit", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_evaluate_prints_table_sentence_and_report(run, tiny_toml: Path, tmp_path: Path) -> None:
    code, out, _ = run("evaluate", tiny_toml, "--out", tmp_path / "run")
    assert code == 0
    for words in ("white box (EoT)", "DW_Both", "An attacker who must guess the noise", "report.html"):
        assert words in out
    assert (tmp_path / "run" / "report.html").read_text().lower().startswith("<!doctype html>")


def test_evaluate_json_is_the_summary_and_nothing_else(run, tiny_toml: Path, tmp_path: Path) -> None:
    code, out, err = run("evaluate", tiny_toml, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert err == ""
    assert json.loads(out) == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_evaluate_set_overrides_a_leaf(run, tiny_toml: Path, tmp_path: Path) -> None:
    run(
        "evaluate",
        tiny_toml,
        "--out",
        tmp_path / "run",
        "--set",
        "threat.eps=4/255",
        "--set",
        "attacks.0.options.eot=1",
        "--json",
    )
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())["spec"]
    assert spec["threat"]["eps"] == "4/255"
    assert spec["attacks"][0]["options"]["eot"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "missing.toml", "--out", "x"], "spec 'missing.toml' does not exist"),
        (["show", "missing"], "spec or run 'missing' does not exist"),
        (["estimate", "."], "spec '.' is a directory. Give the path of a TOML file"),
        (["show", "tiny.tml"], "spec or run 'tiny.tml' does not exist. Give the path"),
        (
            ["evaluate", "x.toml", "--set"],
            "Option '--set' requires an argument. See 'dbpkit evaluate --help'.",
        ),
        (
            ["replay", "no-run", "--example", "x"],
            "Input should be a valid integer. See 'dbpkit replay --help'.",
        ),
        (["list", "ddmp", "--options"], "unknown kind or part 'ddmp'. Did you mean 'ddpm'?"),
        (["show", "runs/cc"], "spec or run 'runs/cc' does not exist. Give the path of a TOML file or a run"),
        (["list", "sampler"], "unknown kind or part 'sampler'. Did you mean 'samplers'?"),
        (["report", "no-run"], "is not a run directory"),
        (["compare", "no-run", "no-run"], "is not a run directory"),
        (["list", "--plugin", "no_such_plugin"], "plugin module 'no_such_plugin' cannot be imported"),
    ],
)
def test_user_mistake_is_one_sentence_and_exit_code_2(words: list[str], message: str, run) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("override", ["threat", "attacks.7.name=pgd", "attacks.first.name=pgd", "name.x.y=1"])
def test_override_that_leads_nowhere_is_named(override: str, run, tiny_toml: Path, tmp_path: Path) -> None:
    code, _, err = run("evaluate", tiny_toml, "--out", tmp_path / "run", "--set", override)
    assert code == 2
    assert f"override '{override}'" in err


def test_spec_that_is_no_toml_is_named(run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("name = ")
    code, _, err = run("show", tmp_path / "bad.toml")
    assert code == 2
    assert "is not valid TOML" in err


def test_device_that_is_not_there_is_refused(run, tiny_toml: Path, tmp_path: Path) -> None:
    import torch

    wrong = "cuda" if not torch.cuda.is_available() else "tpu"
    code, _, err = run("evaluate", tiny_toml, "--out", tmp_path / "run", "--device", wrong)
    assert code == 2
    assert f"device '{wrong}'" in err


def test_show_spec_fills_in_defaults_and_reads_back(run, tiny_toml: Path, tmp_path: Path) -> None:
    _, out, _ = run("show", tiny_toml)
    (tmp_path / "resolved.toml").write_text(out)
    _, again, _ = run("show", tmp_path / "resolved.toml")
    assert again == out
    assert 'eps = "8/255"' in out


def test_show_run_prints_its_table(run, tiny_toml: Path, tmp_path: Path) -> None:
    run("evaluate", tiny_toml, "--out", tmp_path / "run", "--json")
    code, out, _ = run("show", tmp_path / "run")
    assert code == 0
    assert "Purified" in out
    assert "DW_Both" in out


def test_list_names_every_kind_and_the_users_plugin(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Written here, not a file of the tests: collecting it would register the sampler for every other test.
    (tmp_path / "users_plugin.py").write_text(
        "from dbpkit.purification.samplers import samplers\nfrom tests.parts import half\n"
        'samplers.register("tests_half")(half)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    _, out, _ = run("list", "--plugin", "users_plugin", "--json")
    listed = json.loads(out)
    assert set(listed["samplers"]) >= {
        "ddpm",
        "ddim",
        "vpsde",
        "heun",
        "one_step",
        "reverse_only",
        "tests_half",
    }
    assert set(listed["knowledge"]) >= {"white_box", "dw_fwd", "dw_rev", "dw_both", "fixed"}
    assert all(text for kind in ("samplers", "attacks", "threats", "data") for text in listed[kind].values())
    _, text, _ = run("list")
    assert "ddpm" in text


def test_check_sound_set_up_exits_0_and_broken_one_1(run, tiny_toml: Path) -> None:
    code, out, _ = run("check", tiny_toml, "--examples", 6)
    assert code == 0
    assert "Nothing suspicious" in out
    code, out, _ = run(
        "check", tiny_toml, "--examples", 4, "--set", "classifier=tests.parts:Softmaxed", "--json"
    )
    assert code == 1
    assert "probabilities" in {f["name"] for f in json.loads(out)["flags"]}


def test_compare_prints_every_row(run, tiny_toml: Path, tmp_path: Path) -> None:
    run("evaluate", tiny_toml, "--out", tmp_path / "a", "--json")
    run("evaluate", tiny_toml, "--out", tmp_path / "b", "--set", "purifier.steps=200", "--json")
    code, out, _ = run("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "white_box" in out
    assert "95 % interval" in out
    _, out, _ = run("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert json.loads(out)["white_box"]["examples"] == 12


def test_report_of_two_runs_goes_where_it_is_told(run, tiny_toml: Path, tmp_path: Path) -> None:
    run("evaluate", tiny_toml, "--out", tmp_path / "a", "--json")
    code, out, _ = run("report", tmp_path / "a", tmp_path / "a", "--out", tmp_path / "both.html")
    assert code == 0
    assert (tmp_path / "both.html").is_file()
    assert "both.html" in out


def test_folder_that_cannot_be_written_is_named(run, tiny_toml: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    code, _, err = run("evaluate", tiny_toml, "--out", tmp_path / "file" / "run")
    assert code == 2
    assert "cannot write" in err
    run("evaluate", tiny_toml, "--out", tmp_path / "run", "--json")
    code, _, err = run("report", tmp_path / "run", "--out", tmp_path / "file" / "page.html")
    assert code == 2
    assert "cannot" in err
    assert "Traceback" not in err


def test_interrupt_says_how_to_continue(
    run, tiny_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dbpkit.evaluation.run.evaluate_share", interrupted)
    code, _, err = run("evaluate", tiny_toml, "--out", tmp_path / "run")
    assert code == 130
    assert "run the same command again" in err


def picture(path: Path, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).astype(np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(ramp).save(path)
    return path


GAUSSIAN = ("--denoiser", "tests.parts:gaussian_denoiser", "--steps", "100")


def test_purify_writes_a_changed_image_of_the_same_size(run, tmp_path: Path) -> None:
    source = picture(tmp_path / "in" / "a.png")
    code, out, _ = run("purify", source, "--out", tmp_path / "out", *GAUSSIAN)
    assert code == 0
    assert "1 purified image" in out
    before, after = (np.asarray(Image.open(p)) for p in (source, tmp_path / "out" / "a.png"))
    assert after.shape == before.shape
    assert (after != before).any()


def test_purify_result_does_not_depend_on_the_other_files(run, tmp_path: Path) -> None:
    a, b = picture(tmp_path / "in" / "a.png"), picture(tmp_path / "in" / "b.png")
    run("purify", a, b, "--out", tmp_path / "two", *GAUSSIAN)
    run("purify", b, "--out", tmp_path / "one", *GAUSSIAN)
    assert (tmp_path / "two" / "b.png").read_bytes() == (tmp_path / "one" / "b.png").read_bytes()


def test_purify_unreadable_image_among_good_ones_is_named_and_the_others_written(run, tmp_path: Path) -> None:
    good = picture(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(good.read_bytes()[:60])
    code, _, err = run("purify", tmp_path / "in" / "bad.png", good, "--out", tmp_path / "out", *GAUSSIAN)
    assert code == 2
    assert "1 of 2 images were purified" in err
    assert "bad.png" in err
    assert (tmp_path / "out" / "good.png").is_file()


def test_purify_missing_file_and_same_names_are_named(run, tmp_path: Path) -> None:
    code, _, err = run("purify", tmp_path / "none.png", "--out", tmp_path / "out", *GAUSSIAN)
    assert code == 2
    assert "does not exist" in err
    a, b = picture(tmp_path / "1" / "a.png"), picture(tmp_path / "2" / "a.png")
    code, _, err = run("purify", a, b, "--out", tmp_path / "out", *GAUSSIAN)
    assert code == 2
    assert "two images are called 'a'" in err


def test_purify_size_that_the_network_does_not_divide_is_kept(run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "odd.png", (15, 13))
    assert run("purify", photo, "--out", tmp_path / "out", "--steps", 100)[0] == 0
    with Image.open(tmp_path / "out" / "odd.png") as found:
        assert found.size == (15, 13)


def test_purify_options_of_parts_reach_them(run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.png", (8, 8))
    words = ("--sampler", "ddim", "--steps", 100, "--set")
    code, _, err = run("purify", photo, "--out", tmp_path / "1", *words, "purifier.options.eta=2")
    assert code == 2
    assert "eta" in err
    assert run("purify", photo, "--out", tmp_path / "1", *words, "denoiser.options.variant=addt")[0] == 0
    assert run("purify", photo, "--out", tmp_path / "2", *words, "purifier.options.eta=0.5")[0] == 0
    assert (tmp_path / "1" / "a.png").read_bytes() != (tmp_path / "2" / "a.png").read_bytes()
    code, _, err = run("purify", photo, "--out", tmp_path / "3", "--device", "tpu")
    assert (code, "device 'tpu' is unknown" in err) == (2, True)


def test_purify_overwrites_only_when_told(run, tmp_path: Path) -> None:
    photo = picture(tmp_path / "a.jpg", (8, 8))
    other = picture(tmp_path / "a.png", (9, 9))
    code, _, err = run("purify", photo, "--out", tmp_path, *GAUSSIAN)
    assert (code, "--overwrite" in err) == (2, True)
    with Image.open(other) as image:
        assert image.size == (9, 9)
    assert run("purify", photo, "--out", tmp_path, "--overwrite", *GAUSSIAN)[0] == 0


def test_train_prints_figures_and_names_the_card(run, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(
        'objective = "denoising"\nobjective_options = { report_times = [100] }\n'
        'data = { name = "digits", options = { split = "train" } }\ntest_data = "digits"\n'
        'network = { name = "unet", options = { channels = [8, 8], blocks = [1, 1], embedding_size = 8 } }\n'
        "optimiser = { updates = 2, batch_size = 8, lr = 1e-3 }\n"
    )
    code, out, _ = run("train", tmp_path / "train.toml", "--out", tmp_path / "run")
    assert code == 0
    assert "card.md" in out
    assert "{" not in out
    assert re.search(
        r"^Root mean square error of the denoised images, in \[-1, 1\] units: \d\.\d{4} at t = 100 of 1000",
        out,
    )
    code, out, _ = run("train", tmp_path / "train.toml", "--out", tmp_path / "run", "--json")
    assert "100" in json.loads(out)["denoising"]
