"""Registries: names, import paths of the user's own, and the errors of both."""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbpkit.attacks import attacks, losses
from dbpkit.data import datasets
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.registry import (
    Registry,
    call_with_options,
    import_module,
    import_path,
    is_trusting,
    names_of,
    trust,
    trust_files,
)
from dbpkit.models.denoisers import denoiser_adapters
from dbpkit.models.networks import networks
from dbpkit.purification.samplers import samplers
from dbpkit.purification.views import gradients
from dbpkit.threats.pixels import threats

REGISTRIES = [attacks, datasets, denoiser_adapters, gradients, losses, networks, samplers, threats]
each_registry = pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; modules imported from it are forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != ""])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder: Path, text: str) -> str:
    """Writes a module with a name that no other test has used."""
    name = f"users_module_{next(numbers)}"
    (folder / f"{name}.py").write_text(text)
    return name


def test_register_part_is_found_by_name() -> None:
    registry: Registry = Registry("thing")

    @registry.register("box")
    def box() -> None:
        """A box.

        More of it.
        """

    assert registry.get("box") is box
    assert "box" in registry
    assert "lid" not in registry
    assert registry.describe() == {"box": "A box."}


def test_register_names_are_iterated_in_order() -> None:
    registry: Registry = Registry("thing")
    for name in ("c", "a", "b"):
        registry.register(name)(object())
    assert list(registry) == ["a", "b", "c"]


def test_register_same_part_twice_is_accepted() -> None:
    registry, part = Registry("thing"), object()
    registry.register("box")(part)
    registry.register("box")(part)
    assert registry.get("box") is part


def test_register_other_part_under_a_taken_name_raises_and_keeps_the_first() -> None:
    registry, part = Registry("thing"), object()
    registry.register("box")(part)
    with pytest.raises(UserError, match=r"thing 'box' is registered twice\. Give the second another name"):
        registry.register("box")(object())
    assert registry.get("box") is part


def test_register_name_with_a_colon_raises() -> None:
    with pytest.raises(UserError, match="thing name 'a:b' contains ':', which marks import paths"):
        Registry("thing").register("a:b")


@each_registry
def test_get_misspelt_name_suggests_the_nearest(registry: Registry) -> None:
    for name in registry:
        with pytest.raises(UserError) as raised:
            registry.get(name + "q")
        available = ", ".join(sorted(registry))
        message = str(raised.value)
        assert message.startswith(f"unknown {registry.kind} '{name}q'. Did you mean '")
        assert message.endswith(f"Available: {available}.")


@each_registry
def test_get_name_like_no_other_lists_what_there_is(registry: Registry) -> None:
    with pytest.raises(UserError, match=f"^unknown {registry.kind} '#######'. Available: "):
        registry.get("#######")


@each_registry
def test_registry_of_the_package_describes_every_part_in_a_line(registry: Registry) -> None:
    described = registry.describe()
    assert described.keys() == set(registry)
    assert len(described) > 0
    for line in described.values():
        assert len(line) > 10
        assert "\n" not in line


def test_unknown_name_error_names_kind_value_nearest_and_all() -> None:
    """The example of the conventions page."""
    error = unknown_name("sampler", "ddmp", ["vpsde", "ddpm", "ddim", "heun", "one_step"])
    assert str(error) == (
        "unknown sampler 'ddmp'. Did you mean 'ddpm'? Available: ddim, ddpm, heun, one_step, vpsde."
    )


def test_resolve_import_path_finds_a_module_of_the_current_directory(folder: Path) -> None:
    name = write(folder, "def make():\n    return 7\n")
    assert samplers.resolve(f"{name}:make")() == 7


def test_resolve_import_path_finds_an_installed_module() -> None:
    assert Registry("thing").resolve("itertools:count") is itertools.count


def test_resolve_registered_name_is_get() -> None:
    assert samplers.resolve("ddpm") is samplers.get("ddpm")
    with pytest.raises(UserError, match="unknown sampler 'ddmp'"):
        samplers.resolve("ddmp")


@each_registry
def test_get_import_path_is_not_followed(registry: Registry, folder: Path) -> None:
    name = write(folder, "raise SystemError('imported')\n")
    with pytest.raises(UserError) as raised:
        registry.get(f"{name}:make")
    assert str(raised.value) == (
        f"{registry.kind} '{name}:make' is an import path that a file names, and those are followed only"
        f" where you type them. If you trust it: --plugin {name}:make, or dbpkit.trust('{name}:make') in"
        " Python."
    )
    assert name not in sys.modules


@pytest.mark.parametrize("name", [None, 5, 0.5, [], {}, ["os:system"]])
def test_names_that_are_no_text_raise(name: object) -> None:
    for look_up in (samplers.get, samplers.resolve):
        with pytest.raises(UserError, match="a sampler is named by text, not by "):
            look_up(name)  # type: ignore[arg-type]


def test_get_follows_what_was_typed_before_and_only_in_its_registry(folder: Path) -> None:
    """A run that ends with its summary reads the protocol that its spec named."""
    name = write(folder, "def make():\n    return 7\ndef other():\n    return 8\n")
    things: Registry = Registry("thing")
    things.resolve(f"{name}:make")
    assert things.get(f"{name}:make")() == 7
    with pytest.raises(UserError, match="followed only where you type them"):
        things.get(f"{name}:other")
    with pytest.raises(UserError, match="followed only where you type them"):
        Registry("box").get(f"{name}:make")


def test_trust_admits_one_path_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbpkit.foundation.registry._trusted", set())
    name = write(folder, "def make():\n    return 7\nfrom os import system\n")
    trust(f"{name}:make")
    with names_of("'a file'"):
        assert samplers.get(f"{name}:make")() == 7
        assert losses.resolve(f"{name}:make")() == 7
        with pytest.raises(UserError, match="followed only where you type them"):
            samplers.resolve(f"{name}:system")


@pytest.mark.parametrize("turn", [1, 2])
def test_what_one_test_vouches_for_does_not_hold_in_the_next(turn: int) -> None:
    assert not is_trusting()
    with pytest.raises(UserError, match="followed only where you type them"):
        losses.get("operator:neg")
    trust_files()
    trust("operator:neg")
    samplers.resolve("operator:pos")
    assert is_trusting()
    assert losses.get("operator:neg")(1) == -1


@pytest.mark.parametrize("path", ["ddpm", "", "no_such_module_at_all:x"])
def test_trust_refuses_what_is_no_import_path(path: str, folder: Path) -> None:
    with pytest.raises(UserError, match=r"is not an import path|cannot be imported"):
        trust(path)


def test_names_of_a_file_are_not_followed_and_the_remedy_is_said(folder: Path) -> None:
    name = write(folder, "raise SystemError('imported')\n")
    with names_of("'run/spec.json'", "Give --spec."):
        with pytest.raises(
            UserError, match=rf"'{name}:x' is an import path that 'run/spec.json' names.*Give --spec\.$"
        ):
            samplers.resolve(f"{name}:x")
        assert samplers.resolve("ddpm") is samplers.get("ddpm")
    assert name not in sys.modules
    with pytest.raises(UserError, match="fails on import: SystemError: imported"):
        samplers.resolve(f"{name}:x")  # outside, it is the user who names it


def test_current_directory_is_searched_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the folder hides a module that is installed, whatever is imported later."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    import_path(f"{write(folder, 'make = 1')}:make", "thing")
    assert sys.path[-1] == str(folder)
    assert sys.path.count(str(folder)) == 1


def test_module_that_an_installed_one_hides_is_refused(folder: Path) -> None:
    (folder / "wave.py").write_text("def open():\n    return 7\n")
    with pytest.raises(
        UserError, match=r"thing module 'wave' is '.*wave\.py', but '.*wave\.py' has the same name"
    ):
        import_path("wave:open", "thing")


def test_module_that_ends_the_program_raises(folder: Path) -> None:
    name = write(folder, "import sys\nsys.exit('no\\narguments')\n")
    with pytest.raises(UserError, match=f"thing module '{name}' fails on import: SystemExit: no arguments"):
        import_path(f"{name}:x", "thing")


def test_import_path_missing_attribute_lists_what_the_module_defines(folder: Path) -> None:
    name = write(folder, "def make():\n    return 7\n_hidden = 1\n")
    with pytest.raises(
        UserError, match=rf"sampler '{name}:mak': module '{name}' has no 'mak'\. It defines: make\."
    ):
        import_path(f"{name}:mak", "sampler")


def test_import_path_empty_module_says_so(folder: Path) -> None:
    name = write(folder, "")
    with pytest.raises(UserError, match="It defines: nothing"):
        import_path(f"{name}:make", "sampler")


@pytest.mark.parametrize("path", ["no_such_module:make", "no.such.module:make", ":make", "no_such_module:"])
def test_import_path_missing_module_raises(folder: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"sampler module '.*' (cannot be imported|fails on import)"):
        import_path(path, "sampler")


@pytest.mark.parametrize("name", ["", "./mine", "code/mine", ".mine", "code\\mine", "code..mine"])
def test_import_of_a_path_says_what_a_module_is_called(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="single dots and no slash, as in my_package"):
        import_module(name, "classifier")


def test_module_whose_file_has_a_hyphen_is_imported(folder: Path) -> None:
    (folder / "with-a-hyphen.py").write_text("def make():\n    return 3\n")
    assert import_path("with-a-hyphen:make", "classifier")() == 3


def test_import_module_plugin_registers_its_parts(folder: Path) -> None:
    name = write(
        folder,
        "from dbpkit.attacks import losses\n\n\n"
        "@losses.register('of_the_plugin')\ndef loss(logits, y):\n    return y\n",
    )
    try:
        module = import_module(name)
        assert losses.get("of_the_plugin") is module.loss
    finally:
        losses._parts.pop("of_the_plugin", None)


def test_import_module_plugin_that_takes_a_name_raises(folder: Path) -> None:
    name = write(
        folder, "from dbpkit.attacks import losses\n\n\n@losses.register('ce')\ndef loss():\n    pass\n"
    )
    with pytest.raises(UserError, match="loss 'ce' is registered twice"):
        import_module(name)


def test_import_module_that_fails_raises_with_the_cause(folder: Path) -> None:
    name = write(folder, "1 / 0\n")
    with pytest.raises(
        UserError, match=f"plugin module '{name}' fails on import: ZeroDivisionError: division by zero"
    ):
        import_module(name)


def test_import_module_with_a_syntax_error_raises_with_the_cause(folder: Path) -> None:
    name = write(folder, "def broken(:\n")
    with pytest.raises(UserError, match=f"plugin module '{name}' fails on import: SyntaxError"):
        import_module(name)


def test_import_module_whose_own_import_is_missing_names_both(folder: Path) -> None:
    name = write(folder, "import a_library_nobody_has\n")
    with pytest.raises(UserError, match=f"plugin module '{name}' cannot be imported .*a_library_nobody_has"):
        import_module(name)


def part(width: int, *, depth: int = 2) -> tuple[int, int]:
    """A part with one needed and one optional argument."""
    return width, depth


def test_call_with_options_known_options_are_passed_on() -> None:
    assert call_with_options(part, {"width": 3}, "thing 'box'") == (3, 2)
    assert call_with_options(part, {"width": 3, "depth": 5}, "thing 'box'") == (3, 5)


def test_call_with_options_unknown_option_raises_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"thing 'box' has no option 'widht'\. Available: width, depth\."):
        call_with_options(part, {"widht": 3}, "thing 'box'")


def test_call_with_options_missing_option_raises() -> None:
    with pytest.raises(UserError, match=r"thing 'box' needs the option 'width'\. Give it in options"):
        call_with_options(part, {"depth": 3}, "thing 'box'")


def test_call_with_options_open_ended_part_takes_any_option() -> None:
    assert call_with_options(lambda **options: options, {"a": 1}, "thing 'box'") == {"a": 1}


def test_call_with_options_error_inside_the_part_passes_through() -> None:
    """A TypeError of the part's own must not be taken for a wrong option."""

    def broken(width: int) -> int:
        return width + "a"  # type: ignore[operator]

    with pytest.raises(TypeError, match="unsupported operand"):
        call_with_options(broken, {"width": 1}, "thing 'box'")
