"""The working folder beside a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from raising import raises

from vitdeploy.errors import UsageError
from vitdeploy.tuning.working_folder import WorkingFolder


def test_what_is_remembered_is_found_by_the_same_key_alone(tmp_path: Path) -> None:
    with WorkingFolder.beside(tmp_path / "vit") as work:
        assert not work.resumed
        work.remember({"a": [1.5, None]}, "key", {"part": 1})
    with WorkingFolder.beside(tmp_path / "vit") as work:
        assert work.resumed
        assert work.recall("key", {"part": 1}) == {"a": [1.5, None]}
        assert work.recall("key", {"part": 2}) is None
        (file,) = (work.path / "measurements").iterdir()
        file.write_bytes(file.read_bytes()[:-1])
        assert work.recall("key", {"part": 1}) is None  # damaged
        work.remove()
        assert not work.path.exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with (
        WorkingFolder.beside(tmp_path / "vit"),
        raises(UsageError, what="bundle"),
        WorkingFolder.beside(tmp_path / "vit"),
    ):
        pytest.fail("it is in use")


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vit.tune").mkdir()
    (tmp_path / "vit.tune" / "notes.txt").write_text("mine")
    with raises(UsageError, where=tmp_path / "vit.tune", found="notes.txt"), WorkingFolder.beside(tmp_path / "vit"):
        pytest.fail("it is not ours")
