"""Exhausted memory, threads or files are reported as such, not as corrupt input."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import onnxruntime
import pytest
from limited import ERRORS_OF, MIB, run_limited
from PIL import Image
from raising import raises

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli import cli, main
from vitdeploy.cli.process import DEFECT
from vitdeploy.errors import BundleError, ExhaustedError
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.system.exhaustion import check_exhaustion, lacking

# As the libraries word them.
TEXTS = {
    "can't start new thread": "threads",
    "PosixThread pthread_create failed, error code: 11 error msg: Resource temporarily unavailable": "threads",
    "[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:std::bad_alloc": "memory",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.": "memory",
    "unable to mmap 8 bytes from file <f>: Cannot allocate memory (12)": "memory",
    "[ONNXRuntimeError] : 1 : FAIL : Load model from m failed:system error number 24": "open files",
    "open file failed because of errno 24 on fopen: Too many open files, file path: m": "open files",
    "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 4194304": "memory",
    "Load model from out of memory/m.onnx failed:Protobuf parsing failed.": None,
    "Load model from m failed:std::bad_alloc(-1) is not a registered function/op": None,
    "open file failed because of errno 2 on fopen: , file path: too many open files": None,
}
NUMBERS = {errno.ENOMEM: "memory", errno.EMFILE: "open files", errno.ENFILE: "open files", errno.EAGAIN: "threads"}


@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (MemoryError(), "memory"),
        *((OSError(number, os.strerror(number)), resource) for number, resource in NUMBERS.items()),
        *((RuntimeError(text), resource) for text, resource in TEXTS.items()),
        (ValueError("cannot identify image file 'cannot allocate memory (12)'"), None),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), None),
        (OSError("Too many levels"), None),
        (ValueError("Unable to decode"), None),
    ],
)
def test_what_a_library_says_of_the_machine(error: Exception, resource: str | None) -> None:
    assert lacking(error) == resource
    if resource is None:
        check_exhaustion(error, "reading it")
    else:
        with raises(ExhaustedError, what=resource) as raised:
            check_exhaustion(error, "reading it")
        assert raised.value.exit_code == 3
        assert raised.value.__cause__ is error


def failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_the_command_line_says_it_wherever_it_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setattr(cli, "main", failing(error))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 3
    line = capsys.readouterr().err
    assert line.startswith("Error: ")
    assert line.count("\n") == 1


def test_a_defect_outside_of_the_commands_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "main", failing(ZeroDivisionError()))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == DEFECT
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_model_that_does_not_fit_the_memory_is_not_called_corrupt(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:std::bad_alloc")
    monkeypatch.setattr("onnxruntime.InferenceSession", failing(error))
    with raises(ExhaustedError, what="memory"):
        OnnxRuntime(digits.path / "onnx" / "model.onnx")


@pytest.mark.parametrize("raised", ["InvalidGraph", "InvalidProtobuf"])
def test_a_model_that_says_so_is_corrupt_all_the_same(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, raised: str
) -> None:
    error = getattr(onnxruntime.capi.onnxruntime_pybind11_state, raised)("no such operator: std::bad_alloc")
    monkeypatch.setattr("onnxruntime.InferenceSession", failing(error))
    with pytest.raises(BundleError):
        OnnxRuntime(digits.path / "onnx" / "model.onnx")


def test_an_operator_of_any_name_is_one_that_the_engine_does_not_have(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    for name in ("out of memory", "std::bad_alloc", "pthread_create failed, error code: 11 error msg: none"):
        graph = onnx.helper.make_graph([onnx.helper.make_node(name, ["x"], ["y"])], name, [value], [])
        folder = tmp_path / name
        folder.mkdir()
        onnx.save(onnx.helper.make_model(graph), folder / "model.onnx")
        with pytest.raises(BundleError):
            OnnxRuntime(folder / "model.onnx")


def test_no_file_is_called_corrupt_where_too_many_are_open(digits: Bundle) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    reads = (
        "Bundle.open(path)", "bundle.verify()", "read_weights([path / 'model.safetensors'])",
        "read_json(path / 'config.json')", "Baseline.read(path / 'manifest.json')",
        "read_rules(path / 'manifest.json')", "ImageProcessor.from_pretrained(path)",
    )  # fmt: skip
    code = f"""
import os, pathlib, resource
from vitdeploy.assess.gate.baseline import Baseline
from vitdeploy.assess.gate.rules import read_rules
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.models.config import read_json
from vitdeploy.models.weights import read_weights
from vitdeploy.images.processor import ImageProcessor
path = pathlib.Path(sys.argv[1])
bundle = Bundle.open(path){ERRORS_OF}
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.open(os.devnull, os.O_RDONLY)
except OSError:
    pass
for read in {reads}:
    try:
        eval(read)
    except VitDeployError as error:
        print(read, type(error).__name__, error.exit_code, file=sys.stderr)"""
    done = run_limited(code, digits.path)
    assert (done.code, done.errors.splitlines()) == (0, [f"{read} ExhaustedError 3" for read in reads])


def test_an_image_that_does_not_fit_the_memory_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (8000, 8000)).save(path, compress_level=1)
    done = run_limited(
        f"from vitdeploy.images.open import open_image{ERRORS_OF}open_image(sys.argv[1])", path, spare=64 * MIB
    )
    assert (done.code, done.errors.split()[0]) == (3, "ExhaustedError"), done.errors


def test_weights_that_do_not_fit_the_memory_are_not_called_corrupt(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(2**25)}, path)  # 128 MiB
    code = f"import torch; from vitdeploy.models.weights import read_weights; from pathlib import Path{ERRORS_OF}"
    done = run_limited(f"{code}read_weights([Path(sys.argv[1])])", path, spare=64 * MIB)
    assert (done.code, done.errors.split()[0]) == (3, "ExhaustedError"), done.errors
