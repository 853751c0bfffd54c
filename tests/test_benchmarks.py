"""The figures of the benchmarks' README are the recorded ones, and a session that is timed gives what its file says."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from environments import ROOT, run

from vitdeploy.bundle.bundle import Bundle


def test_tables_hold_the_recorded_results() -> None:
    run(sys.executable, ROOT / "benchmarks" / "tables.py", "--check")


def test_a_session_alone_in_its_process(digits: Bundle) -> None:
    file = str(digits.path / "onnx" / "model.onnx")
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    good = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    requests = b"".join(map(pickle.dumps, ((good, 0), (good[0], 1), (good, 3))))

    worker = str(ROOT / "benchmarks" / "session_worker.py")
    command = [sys.executable, worker, "onnxruntime", file, "--processor-time"]
    process = subprocess.run(command, input=requests, stdout=subprocess.PIPE, check=True)

    replies = io.BytesIO(process.stdout)
    opened, (logits, untimed), problem, (again, times) = (pickle.load(replies) for _ in range(4))
    assert opened is None
    assert "rank" in problem
    assert untimed == []
    assert len(times) == 3
    assert min(times) > 0
    (expected,) = session.run(["logits"], {"pixel_values": good})
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)  # sums of another order: another number of threads
    np.testing.assert_array_equal(again, logits)


def test_a_trip_is_counted(tmp_path: Path) -> None:
    results = tmp_path / "trips.json"
    run(sys.executable, ROOT / "benchmarks" / "trips.py", "--trips", "predict", "--json", results, PYTHONPATH=str(ROOT))
    (trips,) = json.loads(results.read_text(encoding="utf-8"))["trees"].values()
    counts = trips["predict"]
    assert (counts["sessions"], counts["references"], counts["calls_upward_from_exporters"]) == (1, 0, 0)
    assert {"cli -> predictor", "predictor -> images", "predictor -> runtimes"} <= counts["between"].keys()
    assert 20 < counts["files"] < counts["functions"] < 280
    assert 3 <= counts["bundle_files_opened"] < 10  # the manifest, configurations, the graph


def test_a_call_upward_is_told_by_the_import_contracts() -> None:
    code = """if True:
        import json, pathlib, trips
        order = trips._layers(pathlib.Path(trips.HERE))
        files = ["exporters/graph/variants.py", "exporting/quantize.py", "assess/gate/gate.py", "assess/report/page.py"]
        rooms = [trips.room(order, f"vitdeploy/{file}") for file in files]
        print(json.dumps([[trips.is_upward(order, caller, callee) for callee in rooms] for caller in rooms]))
    """
    upward = json.loads(run(sys.executable, "-c", code, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"))
    assert upward == [[row < column for column in (0, 3, 1, 2)] for row in (0, 3, 1, 2)]
