"""The classes of inputs: name -> "module:class"."""

from __future__ import annotations

from importlib.util import find_spec

CLASSES = {
    "images": "fuzz.images:Images",
    "config": "fuzz.checkpoints:Configs",
    "processor": "fuzz.checkpoints:Processors",
    "safetensors": "fuzz.weights:Safetensors",
    "torch": "fuzz.weights:TorchFiles",
    "npz": "fuzz.arrays:Npz",
    "index": "fuzz.weights:Shards",
    "adapter": "fuzz.checkpoints:Adapters",
    "open-clip": "fuzz.named_weights:OpenClipConfigs",
    "training": "fuzz.named_weights:TrainingFiles",
    "class-embeddings": "fuzz.class_files:ClassEmbeddingFiles",
    "class-names": "fuzz.class_files:ClassNameFiles",
    "bundle": "fuzz.bundle_files:BundleFiles",
    "onnx": "fuzz.graphs:OnnxGraphs",
    "torchscript": "fuzz.graphs:TorchScriptFiles",
    "golden": "fuzz.arrays:GoldenFiles",
    "data": "fuzz.data_sets:DataSets",
    "rules": "fuzz.gates:RulesFiles",
    "baseline": "fuzz.gates:Baselines",
    "resume": "fuzz.gates:ResumeFiles",
    "recorded": "fuzz.results:RecordedBenchmarks",
    "kept-nodes": "fuzz.results:KeptNodes",
    "cache": "fuzz.caches:CalibrationCaches",
    "job": "fuzz.jobs:UnfinishedJobs",
    "job-inputs": "fuzz.jobs:JobInputs",
    "predict-inputs": "fuzz.jobs:PredictJobInputs",
    "tuned": "fuzz.bundle_files:TunedBundles",
    "backend": "fuzz.served:BackendRequests",
    "application": "fuzz.application:ApplicationRequests",
    "page": "fuzz.page:PageRequests",
    "rows": "fuzz.scaled_out:ImageRows",
    "deployment": "fuzz.scaled_out:ServeConfigs",
    **({"signature": "fuzz.signatures:Signatures"} if find_spec("model_signing") else {}),  # of the extra signing
    "arguments": "fuzz.arguments:Arguments",
}
SLOW = {"config", "processor", "safetensors", "torch", "npz", "index", "adapter", "open-clip"}  # its command is export
# Those that no command reads, or an export alone, after a checkpoint of seconds.
LIBRARY_ALONE = {
    "training", "class-embeddings", "class-names", "kept-nodes", "cache", "backend", "application", "page", "rows",
    "deployment", "signature",
}  # fmt: skip


def real_every(name: str) -> int:
    """In a long run, one input in so many also goes through the real command; 0 for none."""
    return 0 if name in LIBRARY_ALONE else 1000 if name in SLOW else 100
