"""Files of class names: lines, and JSON in its forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from raising import raises

from vitdeploy.errors import InputError
from vitdeploy.sources.architectures.class_names_file import read_class_names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "cat\nwild dog \n"),
        ("names", "\ufeffcat\r\nwild dog\r\n\r\n"),
        ("names.json", '["cat", "wild dog"]'),
        ("names.json", '{"1": "wild dog", "0": "cat"}'),
        ("class_to_idx.json", '{"wild dog": 1, "cat": 0}'),
        ("config.json", '{"id2label": {"0": "cat", "1": "wild dog"}, "model_type": "vit"}'),
        ("config.json", '{"label_names": ["cat", "wild dog"], "num_classes": 2}'),
    ],
)
def test_every_form_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == ("cat", "wild dog")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", b""),
        ("names.txt", b"\n\n"),
        ("names.txt", b"cat\n\ndog\n"),
        ("names.txt", b"\xff\xfe\x00"),
        ("names.json", b"{"),
        ("names.json", b"[" * 100_000),
        ("names.json", b"5"),
        ("names.json", b"{}"),
        ("names.json", b'["cat", 5]'),
        ("names.json", b'{"0": "cat", "2": "dog"}'),
        ("names.json", b'{"cat": 0, "dog": 0}'),
        ("names.json", b'{"0": "cat", "00": "dog"}'),
    ],
)
def test_other_content_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with raises(InputError, what="labels", where=tmp_path / name):
        read_class_names(tmp_path / name)


def test_a_folder_and_an_absent_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with raises(InputError, what="labels", where=path):
            read_class_names(path)
