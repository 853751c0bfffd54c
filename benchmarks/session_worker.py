"""One session in its own process, which runs batches until its input ends; started by `sessions.py`.

Requests and replies are pickles on standard input and output. A request has pixel values (N, 3, H, W), float32, and the
number of timed runs. The first reply is None, once the session is open; others have the last output (logits, or pooled
features) and the times in milliseconds, after one untimed run, or an error text. It needs only numpy and the engine,
which may have its own environment.
"""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    Run = Callable[[np.ndarray], np.ndarray]


def onnxruntime(file: Path, threads: int, options: dict[str, str]) -> Run:
    """Args: threads: 0 for its own choice; options: of the session's configuration."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    session = ort.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def run(pixel_values: np.ndarray) -> np.ndarray:
        return session.run(None, {"pixel_values": pixel_values})[-1]  # type: ignore[no-any-return]

    return run


def vitdeploy(file: Path, threads: int, options: dict[str, str]) -> Run:
    """ONNX Runtime as vitdeploy opens it; options: numbers of `OnnxRuntimeOptions`, such as parallel_runs."""
    from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
    from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

    values: dict[str, Any] = {name: int(value) for name, value in options.items()}
    if "allow_spinning" in values:
        values["allow_spinning"] = bool(values["allow_spinning"])
    if "parallel_runs" not in values:
        values["intra_op_threads"] = threads
    runtime = OnnxRuntime(file, OnnxRuntimeOptions(**values))

    def run(pixel_values: np.ndarray) -> np.ndarray:
        return list(runtime.run({"pixel_values": pixel_values}).values())[-1]

    return run


def openvino(file: Path, threads: int, options: dict[str, str]) -> Run:
    """Compiled for the actual shape: slightly faster than for any batch, so that no tool is at a disadvantage.

    Args: threads: 0 for its own choice; options: properties of its CPU device.
    """
    import openvino as ov

    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **options}
    core = ov.Core()

    @functools.lru_cache(maxsize=1)  # one at a time: several disturb each other
    def compiled(shape: tuple[int, ...]) -> Any:
        model = core.read_model(file)
        model.reshape(shape)
        return core.compile_model(model, "CPU", properties)

    def run(pixel_values: np.ndarray) -> np.ndarray:
        results = compiled(pixel_values.shape)([pixel_values])
        return results[len(results) - 1]  # type: ignore[no-any-return]

    return run


def transformers(file: Path, threads: int, options: dict[str, str]) -> Run:
    """The model of a checkpoint's folder in torch, float32.

    Args: threads: 0 for torch's own choice; options: of `from_pretrained`, such as attn_implementation.
    """
    import torch
    from transformers import AutoModel

    if threads:
        torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(file, **options).eval()

    def run(pixel_values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(pixel_values)).pooler_output.numpy()  # type: ignore[no-any-return]

    return run


ENGINES: dict[str, Callable[[Path, int, dict[str, str]], Run]] = {
    "onnxruntime": onnxruntime,
    "vitdeploy": vitdeploy,
    "openvino": openvino,
    "transformers": transformers,
}


def serve(run: Run, clock: Callable[[], float], requests: Any, replies: Any) -> None:
    reply = None
    while True:
        pickle.dump(reply, replies)
        replies.flush()
        try:
            pixel_values, runs = pickle.load(requests)
        except EOFError:
            return
        reply = answer(run, clock, pixel_values, runs)


def answer(
    run: Run, clock: Callable[[], float], pixel_values: np.ndarray, runs: int
) -> tuple[np.ndarray, list[float]] | str:
    times = []
    try:
        logits = run(pixel_values)
        for _ in range(runs):
            start_time = clock()
            run(pixel_values)
            times.append(1e3 * (clock() - start_time))
    except Exception as exc:  # noqa: BLE001  (whatever a peer's file raises is the result)
        return str(exc) or repr(exc)
    return logits, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("file", type=Path)
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="of the engine")
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0 for its own choice")
    parser.add_argument("--processor-time", action="store_true", help="the processor's time, of one thread")
    arguments = parser.parse_args()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # an engine's output must not mix with the replies
    options = dict(option.split("=", 1) for option in arguments.options)
    threads = 1 if arguments.processor_time else arguments.threads
    run = ENGINES[arguments.engine](arguments.file, threads, options)
    serve(run, time.process_time if arguments.processor_time else time.perf_counter, sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
