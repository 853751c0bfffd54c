"""The user's cache folder in unusual environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy.exporting.options import Calibration
from vitdeploy.files.user_cache import user_cache


@pytest.fixture(autouse=True)
def no_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("VITDEPLOY_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")  # for a user that the system does not list


def test_named_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert user_cache() == tmp_path / "home" / ".cache" / "vitdeploy"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "vitdeploy"
    monkeypatch.setenv("VITDEPLOY_CACHE", "here")
    assert user_cache() == Path("here")


@pytest.mark.parametrize("value", ["", "relative", "~/cache"])
def test_a_relative_folder_of_the_system_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert user_cache() == tmp_path / ".cache" / "vitdeploy"


def test_a_user_without_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    assert user_cache() is None
    assert Calibration("photos").cache_folder is None
    monkeypatch.setattr(Path, "home", lambda: Path("relative"))
    assert user_cache() is None
