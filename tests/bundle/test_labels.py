"""Class names of a Hugging Face configuration, in all forms that occur."""

from __future__ import annotations

from typing import Any

import pytest
from raising import raises

from vitdeploy.bundle.labels import class_names
from vitdeploy.errors import CheckpointError


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ("LABEL_0", "LABEL_1")),  # transformers leaves out its default
        ({"id2label": None, "num_labels": None}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"num_labels": 0}, ()),
        ({"id2label": {}}, ()),
        ({"id2label": {"0": "cat", "1": "dog"}}, ("cat", "dog")),
        ({"id2label": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
        ({"id2label": {0: "cat", 1: "dog"}, "num_labels": 2}, ("cat", "dog")),
        ({"id2label": {str(index): f"n{index}" for index in reversed(range(12))}}, tuple(f"n{i}" for i in range(12))),
        ({"id2label": {"0": "crane", "1": "crane"}}, ("crane", "crane")),  # ImageNet has the bird and the machine
        ({"id2label": {"0": 7, "1": "Häher, Eichel-"}}, ("7", "Häher, Eichel-")),
    ],
)
def test_names_are_in_the_order_of_the_logits(config: dict[str, Any], names: tuple[str, ...]) -> None:
    assert class_names(config) == names


NAMES: list[Any] = [
    {"0": "cat", "2": "dog"}, {"1": "cat", "2": "dog"}, {"0": "cat", "00": "dog"}, {"cat": "0"}, {"-1": "cat"},
    {"²": "cat"}, {"9" * 5000: "cat"}, ["cat", "dog"], "cat\ndog",
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "key"),
    [
        *(({"id2label": names}, "id2label") for names in NAMES),
        *(({"id2label": {"0": "cat"}, "num_labels": count}, "num_labels") for count in (2, "x\n" * 500)),
        *(({"num_labels": count}, "num_labels") for count in (-1, 2.0, "2", True, [2], 10**12)),
    ],
)
def test_anything_else_names_the_key(config: dict[str, Any], key: str) -> None:
    with raises(CheckpointError, what=key, where="config.json", found=config[key]) as caught:
        class_names(config)
    assert len(str(caught.value)) < 200
