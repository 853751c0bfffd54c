"""The page of a running `vitdeploy serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.serving.model_repository.python_repository import IMAGE
from vitdeploy.serving.page.inference_client import InferenceClient
from vitdeploy.serving.page.page_server import PageServer
from vitdeploy.serving.page.served_model import ServedModel

if TYPE_CHECKING:
    import os

    from vitdeploy.serving.server.bundle_server import BundleServer


def page_of(server: BundleServer, bundle: str | os.PathLike[str], port: int) -> PageServer:
    """A page that asks a served model, which takes encoded images.

    Args:
        server: The model's server.
        bundle: The bundle that it serves.
        port: Port of the page; 0 for a free one.

    Raises:
        BundleError: If the bundle cannot be read.
        OutputError: If the port is taken.
    """
    opened, process = Bundle.open(bundle), server.process
    regression = opened.read_config().problem_type is ProblemType.REGRESSION
    client = InferenceClient(process.client_host, process.ports.http, server.model.name)
    model = ServedModel(client, IMAGE, probabilities=not regression)
    facts = f"{opened.manifest.task}, {server.model.artifact}"
    return PageServer(model.answer, name=server.model.name, facts=facts, port=port)
