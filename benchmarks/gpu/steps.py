"""Steps of `check.py`, the most telling first, each with its command and time limit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

SKIPPED = 3  # exit code of a step without its device or package
BEGUN = "-- "  # before the name of an attempt, in the output of a step
ENDED = "the process ended here: a crash, or the time limit"  # reason of an attempt that did not finish
FAILED = 10  # exit code of a step that ran to its end, in which a row failed


@dataclasses.dataclass(frozen=True)
class Step:
    """One step, a process.

    Attributes:
        seconds: Time limit.
        arguments: Command line after python; {out} and {bundles} stand for the folders of results and models.
        timed: True if it measures time, so that nothing else may run.
        resumes: How often it may be started again after a crash; it then goes on behind the row that ended it.
    """

    name: str
    seconds: float
    arguments: str
    timed: bool = False
    resumes: int = 3

    def command(self, out: Path, bundles: Path) -> list[str]:
        places = {"{out}": str(out), "{bundles}": str(bundles)}
        words = self.arguments.split()
        for name, folder in places.items():
            words = [word.replace(name, folder) for word in words]
        return words


_AGREEMENT = "-m gpu.agreement --json {out}/gpu_agreement.json --bundles {bundles}"
_LATENCY = "-m gpu.latency --json {out}/gpu_latency.json --bundles {bundles}"
_ATTENTION = "benchmarks/attention.py --json {out}/attention_gpu.json --device cuda"
_FAMILIES = "dinov2-base dinov3-vitb16 siglip2-base perception-encoder-base"
_OPSET_18 = "embedded+opset18 vit-base-patch16-224+opset18"

MODELS = Step("models", 600, "-m gpu.models --bundles {bundles}")
STEPS = {
    step.name: step
    for step in (
        Step("agreement-torch", 75, f"{_AGREEMENT} --backends torch"),
        Step("agreement-tensorrt-rtx", 90, f"{_AGREEMENT} --backends tensorrt-rtx"),
        Step("agreement-onnxruntime", 60, f"{_AGREEMENT} --backends onnxruntime"),
        Step("agreement-tensorrt", 60, f"{_AGREEMENT} --backends tensorrt onnxruntime-tensorrt"),
        Step("questions", 100, "-m gpu.questions --json {out}/gpu_questions.json --bundles {bundles}"),
        Step("tests", 100, "-m gpu.tests --json {out}/gpu_tests.json"),
        Step("agreement-opset-18", 45, f"{_AGREEMENT} --backends onnxruntime --precisions fp16 --models {_OPSET_18}"),
        Step("latency-fp16", 90, f"{_LATENCY} --models vit-base-patch16-224 --precisions fp16", timed=True),
        Step("families-fp16", 120, f"{_LATENCY} --models {_FAMILIES} --precisions fp16 --batch-sizes 1 32", timed=True),
        Step("attention", 45, f"{_ATTENTION} --precision fp16 bf16 fp32 --rounds 50", timed=True, resumes=0),
        Step("latency-8-bit", 60, f"{_LATENCY} --models vit-base-patch16-224 --precisions int8 fp8", timed=True),
        Step("latency-fp32-bf16", 90, f"{_LATENCY} --models vit-base-patch16-224 --precisions fp32 bf16", timed=True),
        Step("latency-variants", 120, f"{_LATENCY} --models vit-base-patch16-224 --variants", timed=True),
    )
}
# Files that the steps write.
RESULTS = sorted({Path(word).name for step in STEPS.values() for word in step.arguments.split() if "{out}" in word})
