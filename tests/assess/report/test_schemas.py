"""Published schemas hold for results of every kind, and for nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from schemas import FOLDER, schema, validated, validator
from written_results import (
    BENCHMARK,
    BENCHMARK_COMPARISON,
    COMPARISON,
    EMBEDDINGS,
    EVALUATION,
    LAYERS,
    OFFLINE_RUN,
    SENSITIVITY,
    SERVER_RUN,
    STREAM,
    TUNING,
    gate_result,
)

from vitdeploy.assess.debug.bisection import Bisection
from vitdeploy.assess.debug.mixed_precision import GraphNode
from vitdeploy.cli.output import print_json

NODE = GraphNode("/layers.0/MatMul", "MatMul", "layers.0", "block 0, MLP, fc1")
BISECTION = Bisection("b", 16, True, "fp16", 1e-4, 9, (NODE,), float("inf"), 1e-5, 12, True)
RESULTS = [
    ("compare", COMPARISON),
    ("compare", LAYERS),
    ("compare", BISECTION),
    ("compare", SENSITIVITY),
    ("evaluate", EVALUATION),
    ("evaluate_embeddings", EMBEDDINGS),
    ("benchmark", BENCHMARK),
    ("benchmark_comparison", BENCHMARK_COMPARISON),
    ("benchmark_scenario", STREAM),
    ("benchmark_scenario", OFFLINE_RUN),
    ("benchmark_scenario", SERVER_RUN),
    ("tune", TUNING),
    ("gate", gate_result()),
    ("gate", gate_result(Path("baseline.json"))),
]
# Objects whose keys are a runtime's, a machine's or a data set's own.
FREE = {"details", "machine", "options", "per_class"}


def objects(value: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """Every object in a JSON value whose keys are ours."""
    if isinstance(value, dict):
        if name not in FREE:
            yield value
        for key, item in value.items():
            if name != "details":
                yield from objects(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item, name)


def test_they_are_schemas_of_the_draft_that_they_name() -> None:
    names = [path.stem for path in sorted(FOLDER.iterdir())]
    evaluations = ["evaluate", "evaluate_embeddings"]
    assert names == ["benchmark", "benchmark_comparison", "benchmark_scenario", "compare", *evaluations, "gate", "tune"]
    for name in names:
        assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema(name)["$id"].endswith(f":{name}")
        Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize(("command", "result"), RESULTS, ids=lambda value: getattr(value, "status", value))
def test_no_key_may_be_missing_or_another(command: str, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(result.to_dict())
    data = validated(command, capsys.readouterr().out)
    count = len(list(objects(data)))
    assert count > 1
    for index in range(count):
        changed = copy.deepcopy(data)
        list(objects(changed))[index]["another"] = 1
        assert not validator(command).is_valid(changed), list(objects(data))[index]
        for key in list(objects(data))[index]:
            changed = copy.deepcopy(data)
            del list(objects(changed))[index][key]
            assert not validator(command).is_valid(changed), (key, list(objects(data))[index])


@pytest.mark.parametrize(
    ("command", "result", "path", "value"),
    [
        ("compare", COMPARISON, ("status",), "perhaps"),
        ("compare", COMPARISON, ("results", 0, "tolerance"), "1e-4"),
        ("compare", SENSITIVITY, ("status",), "failed"),
        ("compare", SENSITIVITY, ("layers", 0, "nodes"), []),
        ("evaluate", EVALUATION, ("results", 0, "top1", "accuracy"), 1.5),
        ("evaluate", EVALUATION, ("data_sha256",), "0"),
        ("benchmark", BENCHMARK, ("latencies", 0, "steady"), 1),
        ("benchmark_comparison", BENCHMARK_COMPARISON, ("settings", 0, "verdict"), "as fast"),
        ("benchmark_scenario", SERVER_RUN, ("results", 0, "late_share"), 2),
        ("benchmark_scenario", STREAM, ("scenario", "name"), "stream"),
        ("gate", gate_result(), ("evaluation", "images"), 0),
    ],
)
def test_other_values_are_refused(command: str, result: Any, path: tuple[str | int, ...], value: object) -> None:
    data = json.loads(json.dumps(result.to_dict()).replace("Infinity", "null").replace("NaN", "null"))
    validator(command).validate(data)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not validator(command).is_valid(data)
