"""Installed packages bring parts: found when a name is missing, named when they fail, left out when told."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dbpkit.experiment import knowledge
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation import plugins
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.registry import Registry, import_module
from tests.integration.test_cli import run

__all__ = ["run"]

parts: Registry[object] = Registry("part")
"""What the plugins of these tests register in."""

REGISTERS = f"from {__name__} import parts\nparts.register('{{}}')(object())\n"


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin has been looked for, and what these tests import and register is forgotten."""
    monkeypatch.delenv(plugins.SWITCH, raising=False)
    monkeypatch.setattr(plugins, "_loaded", None)
    monkeypatch.setattr(parts, "_parts", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("acme"):
            del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    return folder


def install(site: Path, name: str, code: str, version: str = "1.2", group: str = plugins.GROUP) -> None:
    """Installs a package of one module that declares itself a plugin."""
    (site / f"{name}.py").write_text(code)
    about = site / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{name.removeprefix('acme_')} = {name}\n")


def test_name_that_is_missing_is_found_in_an_installed_package(site: Path) -> None:
    install(site, "acme_one", REGISTERS.format("own"))
    assert parts.get("own") is parts._parts["own"]
    assert "own" in list(parts)


def test_name_that_is_known_imports_no_plugin(site: Path) -> None:
    install(site, "acme_one", REGISTERS.format("own"))
    parts.register("known")("the part")
    assert parts.get("known") == "the part"
    assert "acme_one" not in sys.modules


def test_name_that_no_plugin_brings_is_still_told_the_nearest(site: Path) -> None:
    install(site, "acme_one", REGISTERS.format("sharpen"))
    with pytest.raises(UserError, match=r"unknown part 'sharpn'\. Did you mean 'sharpen'\?"):
        parts.get("sharpn")


def test_loaded_plugins_say_where_they_are_from(site: Path) -> None:
    install(site, "acme_one", "")
    assert {name: str(p) for name, p in plugins.load_plugins().items()} == {
        "one": "acme_one, from acme_one 1.2"
    }


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError: "),
    ],
)
def test_plugin_that_fails_is_one_sentence_and_the_others_go_on(
    code: str, said: str, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "acme_broken", code, "0.3")
    install(site, "acme_one", REGISTERS.format("own"))
    with caplog.at_level(logging.WARNING):
        assert "own" in parts
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith(f"plugin 'broken' of acme_broken 0.3 is left out ({said}")
    assert message.endswith("or set DBPKIT_NO_PLUGINS=1 to use none.")
    assert "\n" not in message
    assert "left out: " in str(plugins.load_plugins()["broken"])


def test_plugin_takes_no_name_of_the_package_itself(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the package's own part is imported only later."""
    module = site / "acme_late_builtin.py"
    module.write_text(REGISTERS.format("late"))
    parts._others.append("acme_late_builtin")
    install(site, "acme_one", REGISTERS.format("late"))
    plugins.load_plugins()
    assert "part 'late' is registered twice" in caplog.text
    assert "late" in parts


def test_attackers_of_an_installed_package_are_known(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge, "known", dict(knowledge.known))
    code = "from dbpkit.experiment.knowledge import Knowledge, known\nknown['mine'] = Knowledge('mine')"
    install(site, "acme_one", code)
    spec = EvaluationSpec.model_validate({"knowledge": ["mine"]})
    assert spec.knowledge[0].gradient == "exact"


def test_switch_leaves_every_plugin_out(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "acme_one", REGISTERS.format("own"))
    monkeypatch.setenv(plugins.SWITCH, "1")
    assert "own" not in parts
    assert plugins.load_plugins() == {}


def test_other_groups_are_left_alone(site: Path) -> None:
    install(site, "acme_one", REGISTERS.format("own"), group="console_scripts")
    assert "own" not in parts
    assert "acme_one" not in sys.modules


def test_the_current_folder_declares_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded folder may hold what looks like an installed package, even if a module there is named."""
    install(tmp_path, "acme_trap", "open('EXECUTED', 'w').close()")
    (tmp_path / "acme_named.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(plugins, "_visited", set())
    import_module("acme_named")
    assert str(tmp_path) in sys.path
    assert plugins.load_plugins() == {}
    monkeypatch.chdir(tmp_path.parent)  # the folder is still on the search path
    monkeypatch.setattr(plugins, "_loaded", None)
    assert plugins.load_plugins() == {}
    assert not (tmp_path / "EXECUTED").exists()


def test_module_of_a_plugin_is_not_looked_for_in_the_current_folder(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "acme_one", "")
    (site / "acme_one.py").rename(tmp_path / "acme_one.py")  # uninstalled by half
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    plugins.load_plugins()
    assert "No module named 'acme_one'" in caplog.text
    assert sys.path[0] == ""


def test_folder_that_an_installation_points_to_may_be_the_current_one(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an editable installation does, whose developer works in it."""
    install(site, "acme_one", REGISTERS.format("own"))
    monkeypatch.chdir(site)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert "own" in parts


def test_two_packages_with_one_plugin_name_keep_the_first(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "acme_one", "")
    install(site, "one", "")
    loaded = plugins.load_plugins()
    assert len(loaded) == 1
    assert "has brought a plugin of this name" in caplog.text


def test_package_that_is_damaged_is_passed_over(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(site, "acme_one", REGISTERS.format("own"))
    bad = site / "acme_bad-1.dist-info"
    bad.mkdir()
    (bad / "entry_points.txt").write_text("[dbpkit.plugins]\nbad = acme_bad\n")  # and no METADATA
    assert "own" in parts


def test_list_says_which_plugins_there_are(site: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("list", "plugins") == (0, "plugins\n  none\n", "")


def test_list_names_a_plugin_that_fails_and_goes_on(
    site: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    install(site, "acme_broken", "import no_such_library", "0.3")
    install(site, "acme_one", "")
    code, out, err = run("list", "plugins")
    assert code == 0
    assert "acme_one, from acme_one 1.2" in out
    assert "left out: ModuleNotFoundError" in out
    assert "plugin 'broken' of acme_broken 0.3 is left out" in " ".join(err.split())
