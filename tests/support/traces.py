"""The exporter of torch, which takes most of a small model's export, traces a structure once a process."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import io
import pickle
import types
from typing import TYPE_CHECKING, Any

import torch
from torch.onnx._internal.exporter._core import TorchTensor

from vitdeploy.models.config import ViTConfig

if TYPE_CHECKING:
    from collections.abc import Callable


class _Structure(pickle.Pickler):
    """All of a module except its parameters' numbers: the graph depends on their shapes alone.

    Nor does it depend on the depth, as one layer is traced, and on the names of classes.
    """

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, torch.nn.Parameter):
            return str(value.shape), str(value.dtype)
        if isinstance(value, torch.Tensor):
            return value.numpy().tobytes(), str(value.shape), str(value.dtype)
        if isinstance(value, ViTConfig):
            return repr(dataclasses.replace(value, num_hidden_layers=1, labels=(), problem_type=None))
        return None


def trace_once(export: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `torch.onnx.export`: a known structure gets a copy of its graph with the module's own weights.

    The files written from it are the same bytes. Tests of the tracing itself call `__wrapped__`.
    """
    known: dict[bytes, Any] = {}

    @functools.wraps(export)
    def export_once(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], **options: Any) -> Any:
        parameters = dict(module.named_parameters())
        file = io.BytesIO()
        _Structure(file).dump((module, inputs, repr(sorted(options.items()))))
        key = file.getvalue()
        if key not in known:
            known[key] = export(module, inputs, **options).model
            gc.collect()
            gc.freeze()  # torch's exporter and the graph stay: no collection of a later export visits them
            for name in parameters.keys() & known[key].graph.initializers.keys():
                known[key].graph.initializers[name].const_value = None
        model = known[key].clone()
        model.graph._name_authority = copy.deepcopy(known[key].graph._name_authority)  # new nodes get the same names
        for name in parameters.keys() & model.graph.initializers.keys():
            model.graph.initializers[name].const_value = TorchTensor(parameters[name], name=name)
        return types.SimpleNamespace(model=model)

    return export_once
