"""The files that an ONNX model takes weights from must be recorded, wherever in the model they are named."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from bundles import sign_again, write_bundle
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper
from raising import raises

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.external_data import external_names
from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.cli import main
from vitdeploy.errors import BundleChangedError, BundleError
from vitdeploy.files import opened
from vitdeploy.runtimes import open_recorded


def outside(location: str) -> TensorProto:
    """A weight whose bytes are elsewhere."""
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph_of(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [], [tensor])


def model_of(*, initializer: list[TensorProto] | None = None, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node("Some", ["x"], ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return helper.make_model(helper.make_graph([node], "outer", [], [], initializer or []))


def sparse(location: str) -> onnx.SparseTensorProto:
    indices = helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    return helper.make_sparse_tensor(outside(location), indices, [8])


def in_a_function(location: str) -> onnx.ModelProto:
    model = model_of()
    nodes = [helper.make_node("Constant", [], ["y"], value=outside(location))]
    model.functions.append(helper.make_function("own", "F", [], ["y"], nodes, []))
    return model


def in_training(location: str) -> onnx.ModelProto:
    model = model_of()
    model.training_info.add().algorithm.CopyFrom(graph_of(outside(location)))
    return model


def in_sparse_weights(location: str) -> onnx.ModelProto:
    model = model_of()
    model.graph.sparse_initializer.append(sparse(location))
    return model


PLACES = {
    "a weight": lambda name: model_of(initializer=[outside(name)]),
    "a sparse weight": in_sparse_weights,
    "an attribute": lambda name: model_of(value=outside(name)),
    "one of several": lambda name: model_of(values=[outside(name)]),
    "a sparse attribute": lambda name: model_of(value=sparse(name)),
    "a nested graph": lambda name: model_of(body=graph_of(outside(name))),
    "one of nested graphs": lambda name: model_of(bodies=[graph_of(outside(name))]),
    "a function": in_a_function,
    "training": in_training,
}


def names_in(content: bytes | bytearray) -> set[str]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)  # which flushes it, too
        return external_names(file)


@pytest.mark.parametrize("place", PLACES)
def test_a_name_is_found_wherever_a_tensor_may_be(place: str) -> None:
    assert names_in(PLACES[place]("../weights.bin").SerializeToString()) == {"../weights.bin"}


def test_a_large_model_of_its_own_weights_names_no_file() -> None:
    weight = onnx.numpy_helper.from_array(np.frombuffer(b"location" * (1 << 16), np.float32), "weight")
    assert names_in(model_of(initializer=[weight], text="location").SerializeToString()) == set()


def test_damaged_models_are_refused_or_read() -> None:
    """500 of one seed: bytes changed, or the end cut off. Nothing but ValueError, and no long wait."""
    chance = random.Random(18)
    whole = PLACES["a nested graph"]("weights.bin").SerializeToString()
    refused = 0
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            names_in(content[: chance.randint(1, len(content))])
        except ValueError:
            refused += 1
    assert 25 < refused < 500


def test_messages_within_each_other_without_end() -> None:
    content = b"location"
    for number in [6, 5, 1] * 5000:  # AttributeProto.g, NodeProto.attribute, GraphProto.node
        content = bytes([number << 3 | 2]) + _length(content) + content
    with pytest.raises(ValueError, match="within each other"):
        names_in(b"\x3a" + _length(content) + content)


def _number(value: int, padding: int = 0) -> bytes:
    """As protobuf writes it, or with bytes more than it needs."""
    parts = bytearray()
    while value > 127 or padding:
        padding -= value < 128
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _length(content: bytes) -> bytes:
    return _number(len(content))


def _field(number: int, content: bytes, more: int = 0) -> bytes:
    return _number(number << 3 | 2 | more) + _length(content) + content


def _entry(key: bytes, value: bytes) -> bytes:
    return _field(1, key) + _field(2, value)


@pytest.mark.parametrize("depth", range(5))
def test_the_number_of_a_field_in_more_than_32_bits(depth: int) -> None:
    """Of which protobuf's C++ reader keeps 32: ONNX Runtime takes the weights from that file."""
    content, more = b"weights.bin", [0] * 5
    more[depth] = 1 << 32
    content = _field(1, b"location") + _field(2, content, more[0])
    for number, bits in zip((13, 5, 7), more[1:], strict=False):  # external_data, initializer, graph
        content = _field(number, content, bits)
    with pytest.raises(ValueError, match="32 bits"):
        names_in(_field(1, b"", more[4]) + content)


class Odd:
    """Models as no library writes them: what a reader may take for another field, or for none."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def model(self) -> bytes:
        return self._message({7: self._graph})

    def _graph(self) -> bytes:
        return self._message({5: self._tensor, 1: lambda: self._message({5: self._attribute})})

    def _attribute(self) -> bytes:
        return self._message({5: self._tensor, 10: self._tensor})

    def _tensor(self) -> bytes:
        return self._message({13: self._named})

    def _named(self) -> bytes:
        keys = [b"location", b"location", b"offset", b"locatio"]
        values = [b"a.bin", b"b.bin", b"location", b""]
        return self._message({1: lambda: self._chance.choice(keys), 2: lambda: self._chance.choice(values)})

    def _message(self, fields: dict[int, Callable[[], bytes]]) -> bytes:
        """Each field, often more than once, in any order, among others that are unknown or of another type."""
        numbers = [number for number in fields for _ in range(self._chance.choice((1, 1, 1, 2)))]
        self._chance.shuffle(numbers)
        parts = []
        for number in numbers:
            if self._chance.random() < 0.05:
                parts.append(self._other(number))
            content = fields[number]()
            tag = number << 3 | 2
            parts.append(self._varint(tag) + self._varint(len(content)) + content)
        return b"".join(parts)

    def _other(self, number: int) -> bytes:
        number = self._chance.choice((number, 1000, (1 << 29) - 1, 0))
        kind, content = self._chance.choice(
            (
                (0, _number(self._chance.getrandbits(64))),
                (0, b"\xff" * self._chance.choice((9, 10)) + b"\1"),
                (1, b"location"),
                (2, _length(b"location") + b"location"),
                (3, _number(number << 3 | 4)),
                (5, b"\x6a\x04\x0a\x02"),
            )
        )
        return _number(number << 3 | kind) + content

    def _varint(self, value: int) -> bytes:
        return _number(value, self._chance.choice((0, 0, 0, 0, 1, 2)))


def locations(message: Any) -> set[str]:
    """As onnx's own reader understands a model."""
    found: set[str] = set()
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in [value] if isinstance(value, Message) else value:
            if field.name == "external_data":
                found |= {each.value} if each.key == "location" else set()
            else:
                found |= locations(each)
    return found


def test_odd_models_name_what_onnx_reads_in_them() -> None:
    """2000 of one seed: whatever onnx reads is found, or the model is refused."""
    odd, compared, named = Odd(18), 0, 0
    for _ in range(2000):
        content = odd.model()
        try:
            expected = locations(onnx.ModelProto.FromString(content))
        except (DecodeError, UnicodeDecodeError):
            continue
        try:
            names = names_in(content)
        except ValueError:
            continue
        assert names == expected, content
        compared, named = compared + 1, named + bool(expected)
    assert compared > 700
    assert named > 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("external"))


@pytest.fixture
def with_data(made: Bundle, tmp_path: Path) -> Bundle:
    """A copy whose weights lie in a file of their own, which the manifest records."""
    copy = Bundle.open(shutil.copytree(made.path, tmp_path / "bundle"))
    path = copy.path / "onnx" / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    (artifact,) = copy.manifest.artifacts
    records = tuple(FileRecord.of(copy.path, f"onnx/{name}") for name in ("model.onnx", "model.onnx.data"))
    manifest = dataclasses.replace(copy.manifest, artifacts=(dataclasses.replace(artifact, files=records),))
    return sign_again(dataclasses.replace(copy, manifest=manifest))


def test_recorded_weights_beside_the_model_are_opened(made: Bundle, with_data: Bundle) -> None:
    with_data.verify()
    pixels = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    logits = []
    for bundle in (made, with_data):
        with vitdeploy.load(bundle.path) as predictor:
            logits.append(predictor.runtime.run({"pixel_values": pixels})["logits"])
    np.testing.assert_array_equal(logits[0], logits[1])


def test_an_altered_file_beside_the_model_is_refused(with_data: Bundle) -> None:
    with (with_data.path / "onnx" / "model.onnx.data").open("r+b") as file:
        file.write(b"\0\0\1\1")
    with pytest.raises(BundleError):
        with_data.verify()
    with pytest.raises(BundleError):
        vitdeploy.load(with_data.path)


def foreign_and_back(path: Path, foreign: Path, how: str) -> Iterator[None]:
    """Let a name lead to another bundle, until the next step."""
    aside = path.with_name("aside")
    if how == "a link above":
        target = path.readlink()
        for place in (foreign, target):
            aside.symlink_to(place)
            aside.replace(path)
            yield
    else:
        path.rename(aside)
        foreign.rename(path)
        yield
        path.rename(foreign)
        aside.rename(path)
        yield


@pytest.mark.parametrize("system", ["descriptors", "names"])
@pytest.mark.parametrize("how", ["its folder", "the bundle", "a link above"])
def test_a_name_that_leads_to_other_weights_while_they_are_opened(
    made: Bundle, with_data: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, system: str
) -> None:
    """The recorded ones are opened, or none: a system without paths of descriptors takes the names and checks them."""
    foreign = shutil.copytree(with_data.path, tmp_path / "foreign")
    (foreign / "onnx" / "model.onnx.data").write_bytes(bytes((foreign / "onnx" / "model.onnx.data").stat().st_size))
    (tmp_path / "current").symlink_to(with_data.path)
    moved = {"its folder": "bundle/onnx", "the bundle": "bundle", "a link above": "current"}[how]
    steps = foreign_and_back(tmp_path / moved, foreign / "onnx" if how == "its folder" else foreign, how)
    really_opened = onnxruntime.InferenceSession

    def swapped(*arguments: Any, **options: Any) -> Any:
        next(steps)
        session = really_opened(*arguments, **options)
        next(steps)
        return session

    if system == "names":
        monkeypatch.setattr(opened, "descriptor_path", lambda _: None)
    elif opened.descriptor_path(0) is None:
        pytest.skip("this system has no paths of descriptors")
    monkeypatch.setattr(onnxruntime, "InferenceSession", swapped)
    bundle = Bundle.open(tmp_path / ("current" if how == "a link above" else "bundle"))
    if system == "names":
        with pytest.raises(BundleChangedError):
            open_recorded(bundle, "onnxruntime")
        return
    pixels = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    with open_recorded(bundle, "onnxruntime") as runtime:
        logits = runtime.run({"pixel_values": pixels})["logits"]
    monkeypatch.undo()
    with open_recorded(made, "onnxruntime") as runtime:
        np.testing.assert_array_equal(logits, runtime.run({"pixel_values": pixels})["logits"])


@pytest.mark.parametrize("where", ["beside", "absolute", "above", "linked"])
def test_weights_that_the_manifest_does_not_record_are_not_followed(
    with_data: Bundle, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_data.path / "onnx"
    other = tmp_path / "elsewhere.data"
    shutil.copyfile(folder / "model.onnx.data", other)
    location = {"absolute": str(other), "above": "../../elsewhere.data"}.get(where, "model.onnx.data")
    if where == "linked":
        (folder / "model.onnx.data").unlink()
        (folder / "model.onnx.data").symlink_to(other)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (artifact,) = with_data.manifest.artifacts
    alone = dataclasses.replace(artifact, files=(FileRecord.of(with_data.path, "onnx/model.onnx"),))
    bundle = sign_again(Bundle(with_data.path, dataclasses.replace(with_data.manifest, artifacts=(alone,))))
    with raises(BundleError, where=re.compile("model.onnx$"), hint="do not use this bundle"):
        bundle.verify()
    with raises(BundleError, where=re.compile("model.onnx$"), hint="do not use this bundle"):
        vitdeploy.load(bundle.path)
    with pytest.raises(SystemExit) as exited:
        main(["verify", str(bundle.path)])
    assert exited.value.code == 4
    assert "onnx/model.onnx" in capsys.readouterr().err
