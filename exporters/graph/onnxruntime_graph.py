"""Fuse a graph ahead of time for ONNX Runtime only."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedOpsetsPass

from vitdeploy.errors import CheckFailedError, first_line
from vitdeploy.exporters.graph.onnx_file import MAX_BYTES, without_weights, write_onnx


def write_optimized(model: ir.Model, path: Path, max_bytes: int = MAX_BYTES) -> tuple[str, ...]:
    """Write `model` as optimized by ONNX Runtime at its "extended" level for the CPU; see `write_onnx`.

    A session does the same with the plain graph on each opening, except for processor-dependent layouts: products with
    their scale, biases with Gelu, and sums with their norm become operators of com.microsoft, which only ONNX Runtime
    has. Not applied in half precision: for kernels that the CPU lacks, the optimizer would write casts to float32 into
    the file.

    Returns:
        File names, the model first.

    Raises:
        CheckFailedError: If the result is invalid, or has other inputs or outputs.
        OSError: If a file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        plain, fused = Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        write_onnx(model, plain, max_bytes)
        _optimize(plain, fused)
        result = ir.load(fused)
        RemoveUnusedOpsetsPass()(result)
        ClearMetadataAndDocStringPass()(result)
        _check(result, model)
        return write_onnx(result, path, max_bytes)


def _optimize(plain: Path, fused: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.intra_op_num_threads = 1  # folded constants, and so the file, must not depend on the number of cores
    options.optimized_model_filepath = str(fused)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", f"{fused.name}.data")
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.disable_prepacking", "1")  # copies of the weights, not needed here
    ort.InferenceSession(plain, options, providers=["CPUExecutionProvider"])


def _check(result: ir.Model, model: ir.Model) -> None:
    """Check the file's form, and its inputs and outputs; onnx does not know the operators."""
    try:
        onnx.checker.check_model(without_weights(result))
    except onnx.checker.ValidationError as exc:
        raise CheckFailedError(
            f"the graph that onnxruntime {ort.__version__} fused is not valid: {first_line(exc)}",
            what="graph", found=first_line(exc),
        ) from exc  # fmt: skip
    want, got = _signature(model), _signature(result)
    if want != got:
        raise CheckFailedError(
            f"the graph that onnxruntime {ort.__version__} fused has {got} instead of {want}",
            what="graph", expected=want, found=got,
        )  # fmt: skip


def _signature(model: ir.Model) -> list[tuple[str | None, str, str]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(value.name, str(value.dtype), str(value.shape)) for value in values]
