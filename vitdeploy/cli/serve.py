"""`vitdeploy serve`."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import PATH, json_option, one_line, print_json, print_table
from vitdeploy.cli.process import print_error
from vitdeploy.cli.value_options import values_from_options
from vitdeploy.cli.verbosity import is_verbose
from vitdeploy.errors import UsageError, VitDeployError
from vitdeploy.serving.model_repository.python_options import DEFAULTS, PythonBackend
from vitdeploy.serving.server import server_options
from vitdeploy.serving.server.server_options import ServerOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.serving.server.bundle_server import BundleServer

_PAGE_PORT = 8003


@command(
    examples=(
        "serve vit",
        "serve vit --page",
        "serve vit --precision int8 --max-batch-size 16 --max-delay 5",
        "serve vit --triton /opt/tritonserver --http-port 9000",
    )
)
@click.argument("bundle", type=PATH)
@option("--name", help="Model name. Default: the bundle's.")
@option(
    "--repository", type=PATH,
    help="Folder for Triton's model repository, whose other models are served too. Default: a temporary one.",
)  # fmt: skip
@option("--page", is_flag=True, help="Also serve a page for browsers on this machine: drop an image, see the answer.")
@option(
    "--page-port", type=click.IntRange(0, 65_535), metavar="N",
    help=f"With --page: its port; 0 for a free one. Default: {_PAGE_PORT}.",
)  # fmt: skip
@values_from_options(python=PythonBackend, server=ServerOptions)
@json_option
def serve(
    bundle: str,
    name: str | None,
    repository: str | None,
    page: bool,
    page_port: int | None,
    python: PythonBackend | None,
    server: ServerOptions | None,
    as_json: bool,
) -> None:
    """Serve BUNDLE with Triton Inference Server: encoded images in, labels and scores or vectors out.

    The protocol is the Open Inference Protocol (KServe's version 2), over HTTP and gRPC. Triton batches requests; one
    that finds the queue full is refused. See docs/guides/serve.md and docs/guides/triton.md.

    A new export of the bundle, or SIGHUP, is served once it is verified and warm; the version before answers until
    then, and goes on if the new one fails. SIGTERM and SIGINT end it: requests in progress are answered.
    """
    from vitdeploy.serving.page.served_page import page_of
    from vitdeploy.serving.server.bundle_server import BundleServer

    if page_port is not None and not page:
        raise UsageError("--page-port needs --page", what="page_port", found=page_port, hint="add --page")
    if page and python is not None and python.input != PythonBackend.input:
        raise UsageError("the page sends encoded images", what="page", found=python.input, hint="leave --input out")
    with contextlib.ExitStack() as stack:
        running = BundleServer(
            bundle, python or DEFAULTS, server or server_options.DEFAULTS, name=name, repository=repository,
            verbose=is_verbose(),
        )  # fmt: skip
        stack.enter_context(running)
        _handle_signals(running)
        port = _PAGE_PORT if page_port is None else page_port
        opened = stack.enter_context(page_of(running, bundle, port)) if page else None
        if running.wait_until_ready():
            addresses = {**running.addresses, **({} if opened is None else {"page": opened.url})}
            _describe(bundle, running, addresses, as_json)
            running.run(_report)


def _handle_signals(server: BundleServer) -> None:
    def stop(*_: Any) -> None:
        server.stop()

    def reload(*_: Any) -> None:
        server.ask_for_reload()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, reload)


def _describe(bundle: str, server: BundleServer, addresses: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        print_json({"bundle": bundle, **server.to_dict(), "addresses": {**addresses}})
        return
    title = f"{server.model.artifact} of {bundle} as {server.model.name}"
    print_table(title, ("protocol", "address"), list(addresses.items()))


def _report(event: str | VitDeployError) -> None:
    if isinstance(event, VitDeployError):
        print_error(event)
    else:
        click.echo(one_line(event), err=True)
