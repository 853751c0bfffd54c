"""The first things to learn from a GPU: a list of questions, each answered by code that tries it.

An answer is yes, no or not known, with the reason. Nothing is inferred: without its device, package or library, a
question's answer is not known.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from common import document, parser
from onnx import load

import vitdeploy
from gpu.answers import Answer, device_memory, graph_answers, kernel_cache, loads_weights, runs, takes_pad
from gpu.device import about, check_backend, check_device
from gpu.models import BATCH, EMBEDDED, IMAGES, RTX, artifact
from gpu.rows import CannotRunError, Ledger, Row
from vitdeploy import EngineOptions, GraphOptions, SourceOptions
from vitdeploy.errors import CheckFailedError, UnavailableError
from vitdeploy.runtimes import open_runtime, runtime_class
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.engine.runtime import EngineRuntime
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime
from vitdeploy.specs import AxisRange
from vitdeploy.trt.gpu import find_gpu
from vitdeploy.trt.library import load_library

HOPPER = "9.0"
LIMIT_S = 60.0  # of one question
SMALL = "vit-tiny-patch16-32"
SOURCE = SourceOptions(random_weights=SMALL)


def engine_runs(bundles: Path, _folder: Path) -> Answer:
    answer = runs(artifact(bundles, EMBEDDED, RTX, "fp16"), RTX, "fp16")
    if answer.yes is False:
        problem = next(iter(runtime_class(RTX).probe().values()))
        answer = Answer(False, f"{answer.reason}; one that was built on this GPU: {problem or 'runs'}")
    return _on_hopper(answer)


def memory_of_shapes(bundles: Path, _folder: Path) -> Answer:
    with _engine(bundles) as (runtime, reference):
        return device_memory(runtime, reference, "fp16", (1, 8, BATCH.maximum or 1))


def second_run(bundles: Path, _folder: Path) -> Answer:
    with _engine(bundles) as (runtime, reference):
        answer = graph_answers(runtime, reference, "fp16")
        recorded = "this runtime records" if runtime._captures else "the library was told to record"
        return answer._replace(reason=f"{answer.reason}; {recorded} the graph")


def pad_on_cuda(_bundles: Path, folder: Path) -> Answer:
    bundle = vitdeploy.export(
        output=folder / "out", source=SOURCE, graph=GraphOptions(image_size=((32, 32), (32, 48), (64, 64)))
    )
    file = bundle.path / bundle.artifact("onnx", "fp32").files[0].path
    pads = sum(node.op_type == "Pad" for node in load(file, load_external_data=False).graph.node)

    def open_session() -> OnnxRuntime:
        runtime = open_runtime(bundle, "onnxruntime", device="cuda")
        assert isinstance(runtime, OnnxRuntime)
        return runtime

    return takes_pad(open_session, pads)


def refit(_bundles: Path, folder: Path) -> Answer:
    options = EngineOptions(batch=(AxisRange(1, 2, 4),), refit=True)
    bundle = vitdeploy.export(to=RTX, precision="fp32", output=folder / "one", source=SOURCE, engine=options)
    other = vitdeploy.export(output=folder / "other", source=SourceOptions(random_weights=SMALL, seed=1))
    file = other.path / other.artifact("onnx", "fp32").files[0].path
    with open_runtime(bundle, RTX) as runtime, OnnxRuntime(file) as reference:
        assert isinstance(runtime, EngineRuntime)
        return loads_weights(runtime, file, reference)


def runtime_cache(bundles: Path, folder: Path) -> Answer:
    bundle = artifact(bundles, EMBEDDED, RTX, "fp16")
    return kernel_cache(lambda file: open_runtime(bundle, RTX, {"runtime_cache": file}, precision="fp16"), folder)


def fp8(_bundles: Path, folder: Path) -> Answer:
    bundle = vitdeploy.export(
        to=RTX, precision="fp8", output=folder / "out", source=SOURCE, quantization=IMAGES,
        engine=EngineOptions(batch=(AxisRange(1, 2, 4),)),
    )  # fmt: skip
    return _on_hopper(runs(bundle, RTX, "fp8"))


def _on_hopper(answer: Answer) -> Answer:
    """An answer for compute capability 9.0: another GPU's is not it."""
    gpu = find_gpu()
    if gpu.compute_capability == HOPPER:
        return answer
    return Answer(None, f"this GPU has compute capability {gpu.compute_capability}; there: {answer.line}")


@contextlib.contextmanager
def _engine(bundles: Path) -> Iterator[tuple[EngineRuntime, Runtime]]:
    """The engine of the embedded model in fp16, and its reference."""
    bundle = artifact(bundles, EMBEDDED, RTX, "fp16")
    with (
        open_runtime(bundle, RTX, precision="fp16") as runtime,
        open_runtime(bundle, "torch", device="cpu") as reference,
    ):
        assert isinstance(runtime, EngineRuntime)
        yield runtime, reference


QUESTIONS: dict[str, Callable[[Path, Path], Answer]] = {
    "Does a TensorRT-RTX engine run on compute capability 9.0?": engine_runs,
    "Does update_device_memory_size_for_shapes answer as documented?": memory_of_shapes,
    "Does ONNX Runtime's CUDA provider run the Pad of opset 20?": pad_on_cuda,
    "Does a CUDA graph's next run answer the next input?": second_run,
    "Does an engine take another model's weights (refit)?": refit,
    "Does the runtime cache open an engine sooner?": runtime_cache,
    "Does an fp8 engine run on Hopper, and agree?": fp8,
}
ON_ENGINES = [text for text, ask in QUESTIONS.items() if ask is not pad_on_cuda]


def answered(text: str, bundles: Path) -> Iterator[Row]:
    """The row of a question.

    Raises:
        CannotRunError: If the answer is not known.
    """
    try:
        if text in ON_ENGINES:
            load_library(RTX, "this question")
            find_gpu()
        else:
            check_backend("onnxruntime", "cuda")
        with tempfile.TemporaryDirectory() as folder:
            answer = QUESTIONS[text](bundles, Path(folder))
    except CheckFailedError as exc:  # the export: not built, or differs from the reference
        if text not in ON_ENGINES:
            raise
        answer = Answer(False, str(exc))
    except UnavailableError as exc:  # an engine that does not open answers only the first question
        raise CannotRunError(str(exc)) from exc
    if answer.yes is None:
        raise CannotRunError(answer.reason)
    yield {"question": text, "answer": answer.word, "reason": answer.reason}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--bundles", type=Path, required=True, help="folder of the models, see models.py")
    options.add_argument("--device", default="cuda", help="cpu to try this script without a GPU")
    arguments = options.parse_args()
    check_device(arguments.device)
    about_all = {**about(arguments.device), "questions": list(QUESTIONS)}
    ledger = Ledger(arguments.json, document(arguments, about_all))
    ledger.attempt_each({text: functools.partial(answered, text, arguments.bundles) for text in QUESTIONS}, LIMIT_S)
    raise SystemExit(ledger.exit_code())


if __name__ == "__main__":
    main()
