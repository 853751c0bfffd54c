"""A table's target is imported, or the error says what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from raising import raises

from vitdeploy.errors import MissingDependencyError, UnavailableError
from vitdeploy.system.imports import load_target


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "a_row_names_this", raising=False)
    return tmp_path / "a_row_names_this.py"


def test_a_target_is_imported() -> None:
    assert load_target("vitdeploy.system.imports:load_target", "it", "dev") is load_target


def test_a_library_that_is_absent(module: Path) -> None:
    module.write_text("import no_such_library\n", encoding="utf-8")
    with raises(MissingDependencyError, what="the banana backend", extra="fruit"):
        load_target("a_row_names_this:it", "the banana backend", "fruit")


@pytest.mark.parametrize("error", ["ImportError('libpeel.so: no such file')", "OSError('libpeel.so: no such file')"])
def test_a_library_that_does_not_load(module: Path, error: str) -> None:
    module.write_text(f"raise {error}\n", encoding="utf-8")
    with raises(UnavailableError, what="the banana backend", expected="banana", hint="install it again"):
        load_target("a_row_names_this:it", "the banana backend", "fruit", "banana")


def test_a_module_of_ours_that_is_absent_is_a_mistake_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"vitdeploy\.no_such_module") as caught:
        load_target("vitdeploy.no_such_module:it", "it", "dev")
    assert not isinstance(caught.value, MissingDependencyError)
