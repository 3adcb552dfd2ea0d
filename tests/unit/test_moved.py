"""Import paths of 0.1.0 give the very modules of today, and say where those are."""

import importlib
import subprocess
import sys
import warnings

import pytest

from dbpkit.foundation.moved import FUNCTIONS, MOVED


@pytest.mark.parametrize("old", sorted(MOVED.keys() - FUNCTIONS))
def test_old_path_gives_the_module_of_today_and_a_note(old: str) -> None:
    sys.modules.pop(f"dbpkit.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"dbpkit\.{old} is dbpkit\.{MOVED[old]} now"):
        found = importlib.import_module(f"dbpkit.{old}")
    assert found is importlib.import_module(f"dbpkit.{MOVED[old]}")
    assert found.__spec__ is not None
    assert found.__spec__.name == found.__name__


def test_old_paths_of_a_package_and_its_modules_register_nothing_twice() -> None:
    """`dbpkit.samplers.ddpm` must not be found a second time in the folder of `dbpkit.samplers`."""
    code = "import dbpkit.samplers.ddpm as a, dbpkit.purification.samplers.ddpm as b; assert a is b"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_old_path_that_is_a_function_now_is_both() -> None:
    """After ``import dbpkit.report`` the attribute of the package is the module, which can be called."""
    code = "import dbpkit.report; from dbpkit.report import write_report; print(callable(dbpkit.report))"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    )
    assert found.stdout.strip() == "True"


def test_new_paths_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        found = {new: importlib.import_module(f"dbpkit.{new}").__name__ for new in MOVED.values()}
    assert found == {new: f"dbpkit.{new}" for new in MOVED.values()}


def test_name_of_0_1_for_a_number_of_at_least_0_is_that_of_today_with_a_note() -> None:
    options = importlib.import_module("dbpkit.foundation.options")
    with pytest.warns(DeprecationWarning, match="Positive is NonNegative now"):
        assert options.Positive is options.NonNegative
    with pytest.raises(AttributeError, match="no attribute 'Negative'"):
        _ = options.Negative
