"""Invalid artifacts with a valid manifest: malformed ONNX graphs and TorchScript archives."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import onnx
from bundles import sign_again

from fuzz.cases import DAMAGED, FAILED, PASSED, UNAVAILABLE, Case
from fuzz.damage import choose, damaged
from fuzz.special_files import copy_tree, rewrite
from vitdeploy.bundle.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_COMMANDS = ("predict", "inspect", "compare", "evaluate", "triton")
# A model that was altered may run, differ from the reference or give NaN (1), or be one that no backend here runs (3).
_ALLOWED = frozenset({PASSED, FAILED, UNAVAILABLE, DAMAGED})


def _args(rng: np.random.Generator, base: Path, backend: str) -> tuple[str, ...]:
    command = choose(rng, _COMMANDS)
    if command == "triton" and backend == "torchscript":
        command = "inspect"
    return {
        "predict": ("predict", "bundle", str(base / "data" / "cat" / "0.png"), "--backend", backend, "--json"),
        "inspect": ("inspect", "bundle", "--json"),
        "compare": ("compare", "bundle", "--backend", backend, "--golden", str(base / "golden.npz"), "--json"),
        "evaluate": ("evaluate", "bundle", "--data", str(base / "data"), "--backend", backend, "--json"),
        "triton": ("triton", "bundle", "models", "--artifact", "onnx-fp32", "--json"),
    }[command]


def _check(out: str) -> str | None:
    """What is printed is JSON, without NaN."""
    json.loads(out, parse_constant=lambda text: (_ for _ in ()).throw(ValueError(text)))
    return None


class OnnxGraphs:
    """onnx/model.onnx, signed again.

    Oracle: refused with 4, as one that needs what is not here (3) or fails a check (1); or it prints strict JSON.
    """

    def __init__(self, base: Path) -> None:
        self._base, self._bundle = base, base / "bundle"
        self._content = (self._bundle / "onnx" / "model.onnx").read_bytes()

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        bundle = copy_tree(self._bundle, folder / "bundle")
        if rng.random() < 0.4:
            note, content = damaged(rng, self._content, head=2000)
        else:
            model = onnx.load_from_string(self._content)
            note = _odd_graph(rng, model)
            content = model.SerializeToString()
        rewrite(bundle / "onnx" / "model.onnx", content)
        rewrite(bundle / "manifest.json", (self._bundle / "manifest.json").read_bytes())
        sign_again(Bundle.open(bundle))
        return Case(note, _args(rng, self._base, "onnxruntime"), _ALLOWED, _check)


def _odd_graph(rng: np.random.Generator, model: onnx.ModelProto) -> str:
    graph = model.graph
    node, tensor = choose(rng, graph.node), choose(rng, graph.initializer)
    value = choose(rng, (*graph.input, *graph.output))
    inner = node.attribute[0] if node.attribute else onnx.AttributeProto()

    def external(location: str, **more: str) -> None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=text)

    def loop() -> None:
        node.input[0] = graph.node[-1].output[0]

    operators = ("X", "", "Loop", "If", "MatMul", "Softmax", "Cast", "Sin", "é")
    kinds: dict[str, Callable[[], Any]] = {
        "operator": lambda: setattr(node, "op_type", choose(rng, operators)),
        "domain": lambda: setattr(node, "domain", choose(rng, ("x", "com.microsoft", "ai.onnx.ml", "\n"))),
        "element type": lambda: setattr(tensor, "data_type", int(rng.integers(-1, 30))),
        "type of value": lambda: setattr(value.type.tensor_type, "elem_type", int(rng.integers(-1, 30))),
        "dims": lambda: tensor.dims.extend([choose(rng, (-1, 0, 2, 2**31, 2**62))]),
        "dim": lambda: tensor.dims.__setitem__(0, choose(rng, (-1, 0, 1, 2**31, 2**62))) if tensor.dims else None,
        "shape": lambda: setattr(value.type.tensor_type.shape.dim[0], "dim_value", choose(rng, (-1, 0, 7, 2**40))),
        "no shape": lambda: value.type.tensor_type.ClearField("shape"),
        "no type": lambda: value.ClearField("type"),
        "name": lambda: setattr(value, "name", choose(rng, ("", "x", "\n", "logits", "pixel_values"))),
        "input": lambda: node.input.__setitem__(0, choose(rng, ("", "x", "logits"))),
        "no input": lambda: node.ClearField("input"),
        "no output": lambda: node.ClearField("output"),
        "loop": loop,
        "opset": lambda: setattr(model.opset_import[0], "version", choose(rng, (-1, 0, 1, 5, 99, 2**40))),
        "no opset": lambda: model.ClearField("opset_import"),
        "ir": lambda: setattr(model, "ir_version", choose(rng, (0, 1, 99, 2**40, -1))),
        "external": lambda: external(
            choose(rng, ("x.bin", "../x", "/dev/zero", "/etc/passwd", "", ".", "model.onnx", "../manifest.json",
            "a\0b")),
            **choose(rng, ({}, {"offset": "-1"}, {"length": "1" * 30}, {"offset": "x"}, {"length": "0"})),
        ),
        "attribute": lambda: setattr(inner, "i", choose(rng, (-1, 0, 99, 2**62))),
        "attribute type": lambda: setattr(inner, "type", int(rng.integers(0, 15))),
        "attribute name": lambda: setattr(inner, "name", "x"),
        "raw data": lambda: setattr(tensor, "raw_data", tensor.raw_data[: int(rng.integers(1 + len(tensor.raw_data)))]),
        "nan": lambda: setattr(tensor, "raw_data", b"\xff" * len(tensor.raw_data)),
        "no graph": lambda: model.ClearField("graph"),
        "no nodes": lambda: graph.ClearField("node"),
        "no weights": lambda: graph.ClearField("initializer"),
        "twice": lambda: graph.node.append(node),
        "weight twice": lambda: graph.initializer.append(tensor),
        "another output": lambda: graph.output.append(onnx.helper.make_tensor_value_info("x", 1, [1])),
        "function": lambda: model.functions.add(name="f", domain="x"),
        "no output of graph": lambda: graph.ClearField("output"),
    }  # fmt: skip
    kind = choose(rng, sorted(kinds))
    try:
        kinds[kind]()
    except (ValueError, TypeError, IndexError):  # what protobuf itself refuses to hold
        return "graph: as it was"
    return f"graph: {kind}"


class TorchScriptFiles:
    """torchscript/model.pt, signed again.

    Oracle: as for ONNX. Such an archive is code, and where the manifest vouches for it libtorch trusts it: a tensor
    with less data than its shape needs ends the process, so that none here is shortened.
    """

    def __init__(self, base: Path) -> None:
        self._base, self._bundle = base, base / "bundle"
        (self._name,) = (path.relative_to(self._bundle) for path in (self._bundle / "torchscript").iterdir())
        self._content = (self._bundle / self._name).read_bytes()

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        bundle = copy_tree(self._bundle, folder / "bundle")
        draw = rng.random()
        if draw < 0.5:
            note, content = damaged(rng, self._content, head=3000)
        elif draw < 0.9:
            note, content = self._odd_member(rng)
        else:
            no_archive = ("no archive", b"PK\5\6" + bytes(18))
            note, content = choose(rng, (("text", b"x"), ("empty", b""), no_archive, ("pickle", b"\x80\2N.")))
        rewrite(bundle / self._name, content)
        rewrite(bundle / "manifest.json", (self._bundle / "manifest.json").read_bytes())
        sign_again(Bundle.open(bundle))
        return Case(note, _args(rng, self._base, "torchscript"), _ALLOWED, _check)

    def _odd_member(self, rng: np.random.Generator) -> tuple[str, bytes]:
        """A member damaged, with a right checksum; of code only whole lines, so that it is no other program."""
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(self._content)) as old, zipfile.ZipFile(file, "w") as new:
            chosen = choose(rng, old.namelist())
            kind = choose(rng, ("damaged", "missing", "empty"))
            for name in old.namelist():
                content = old.read(name)
                if name == chosen:
                    if kind == "missing":
                        continue
                    if kind == "damaged":
                        lines = content.splitlines(keepends=True)
                        del lines[int(rng.integers(len(lines))) if lines else 0 :][:1]
                        code, odd = name.endswith(".py"), damaged(rng, content)[1]
                        content = b"".join(lines) if code else odd[: len(content)] + content[len(odd) :]
                    elif "/constants/" not in name and "/data/" not in name:
                        content = b""
                new.writestr(zipfile.ZipInfo(name), content)
        return f"member: {kind} {chosen}", file.getvalue()
