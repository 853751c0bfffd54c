"""A machine that has no memory, threads or files left is told so, and no input is called corrupt for it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from limited import ERRORS_OF, MIB, run_limited
from vitdeploy.cli import cli, main
from vitdeploy.errors import ExhaustedError
from vitdeploy.exhaustion import check_exhaustion, lacking
from vitdeploy.runtimes.onnxrt import OnnxRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.bundle import Bundle


# As the libraries word them.
@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (MemoryError(), "memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "open files"),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "open files"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "threads"),
        (RuntimeError("can't start new thread"), "threads"),
        (RuntimeError("PosixThread pthread_create failed, error code: 11 error msg: Resource temporarily"), "threads"),
        (RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:std::bad_alloc"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "memory"),
        (RuntimeError("unable to mmap 8 bytes from file <f>: Cannot allocate memory (12)"), "memory"),
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
        with pytest.raises(ExhaustedError, match=f"reading it: .* enough {resource}.*; ") as raised:
            check_exhaustion(error, "reading it")
        assert raised.value.exit_code == 3
        assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_the_command_line_says_it_wherever_it_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 3
    line = capsys.readouterr().err
    assert line.startswith("Error: ")
    assert line.count("\n") == 1


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_a_model_that_does_not_fit_the_memory_is_not_called_corrupt(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:std::bad_alloc")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(ExhaustedError, match=r"model\.onnx"):
        OnnxRuntime(digits.path / "onnx" / "model.onnx")


def test_an_image_that_does_not_fit_the_memory_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (8000, 8000)).save(path, compress_level=1)
    done = run_limited(
        f"from vitdeploy.images import open_image{ERRORS_OF}open_image(sys.argv[1])", path, spare=64 * MIB
    )
    assert (done.code, done.errors.split()[0]) == (3, "ExhaustedError"), done.errors


def test_weights_that_do_not_fit_the_memory_are_not_called_corrupt(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(2**25)}, path)  # 128 MiB
    code = f"import torch; from vitdeploy.models.weights import read_weights; from pathlib import Path{ERRORS_OF}"
    done = run_limited(f"{code}read_weights([Path(sys.argv[1])])", path, spare=64 * MIB)
    assert (done.code, done.errors.split()[0]) == (3, "ExhaustedError"), done.errors
