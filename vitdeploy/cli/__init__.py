"""The command line: options, one library call, and its result printed."""

from __future__ import annotations

import importlib
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from vitdeploy import __version__
from vitdeploy.cli.output import printable
from vitdeploy.cpu import limit_openmp
from vitdeploy.errors import InputError, VitDeployError
from vitdeploy.exhaustion import exhausted, lacking

# Name -> "module:command" and its line in the help, so that the help imports no command.
COMMANDS = {
    "export": ("vitdeploy.cli.export:export", "Export a checkpoint, prove the artifact, and bundle both."),
    "predict": ("vitdeploy.cli.predict:predict", "Classify images with a bundle."),
    "compare": ("vitdeploy.cli.compare:compare", "Compare every artifact with the reference."),
    "evaluate": ("vitdeploy.cli.evaluate:evaluate", "Measure the accuracy of every artifact on labelled images."),
    "gate": ("vitdeploy.cli.gate:gate", "Pass or fail: hold every artifact to rules and to a baseline."),
    "benchmark": ("vitdeploy.cli.benchmark:benchmark", "Time every artifact, each alone in its process."),
    "inspect": (
        "vitdeploy.cli.inspect_bundle:inspect",
        "Show what a bundle holds, or what differs between two artifacts.",
    ),
    "triton": (
        "vitdeploy.cli.model_repository:triton",
        "Write an artifact into a model repository of Triton Inference Server.",
    ),
    "verify": ("vitdeploy.cli.verify:verify", "Check every file of a bundle against its manifest."),
    "doctor": ("vitdeploy.cli.doctor:doctor", "Say which backends work here, and what the others need."),
    "demo": ("vitdeploy.cli.demo:demo", "Export, compare and time the embedded model, with a report."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=LazyGroup)
@click.version_option(__version__, prog_name="vitdeploy")
def cli() -> None:
    """Take a Vision Transformer to production, and prove that every artifact still is the same model.

    Exit codes: 0 passed, 1 a check failed, 2 usage, 3 a dependency, a device, the network or room on the disk is
    missing, 4 absent, unreadable or corrupt input.
    """
    try:  # which the libraries ask for when they are imported, whatever the paths are
        Path.cwd()
    except OSError as exc:
        raise InputError(f"the working directory must be there: {exc.strerror}; cd to one that is") from exc


def main(args: list[str] | None = None) -> Any:
    """Run the command line; a VitDeployError becomes one line on stderr and its exit code, as does a lack of memory.

    Pillow's warnings of damaged metadata and large images are not printed: an image that is used can be read, and one
    that is too large is refused.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    limit_openmp()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            return cli(args)
        except VitDeployError as exc:
            _fail(exc)
        except Exception as exc:
            resource = lacking(exc)
            if resource is None:
                raise
            _fail(exhausted(resource, "vitdeploy stopped", exc))


def _fail(error: VitDeployError) -> NoReturn:
    click.echo(f"Error: {printable(' '.join(str(error).split()))}", err=True)
    sys.exit(error.exit_code)


def _stop(number: int, _frame: object) -> None:
    """End as after any error, so that nothing is left behind half-written."""
    sys.exit(128 + number)
