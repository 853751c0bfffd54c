"""The command line: options, one library call, and its result printed."""

from __future__ import annotations

import importlib
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from vitdeploy._version import __version__
from vitdeploy.cli.annotations import annotate
from vitdeploy.cli.command import Group
from vitdeploy.cli.output import one_line
from vitdeploy.cli.process import Interrupted, end_on_signals, guard_streams, print_error
from vitdeploy.errors import InputError
from vitdeploy.system.cpu import limit_openmp
from vitdeploy.system.quiet import quiet_libraries

_NAME = "vitdeploy"

# Name -> "module:command" and its line in the help, so that the help imports no command.
COMMANDS = {
    "export": ("vitdeploy.cli.export:export", "Export a checkpoint, validate the artifact, and bundle both."),
    "predict": ("vitdeploy.cli.predict:predict", "Classify images with a bundle."),
    "embed": ("vitdeploy.cli.embed:embed", "Write one vector per image to a file, for search and comparison."),
    "compare": ("vitdeploy.cli.compare:compare", "Compare every artifact with the reference."),
    "debug": ("vitdeploy.cli.debug:debug", "Find the layers that differ: layers, bisect, sensitivity."),
    "evaluate": ("vitdeploy.cli.evaluate:evaluate", "Measure the accuracy of every artifact on labelled images."),
    "gate": ("vitdeploy.cli.gate:gate", "Check every artifact against rules and a baseline."),
    "benchmark": ("vitdeploy.cli.benchmark:benchmark", "Time every artifact in its own process."),
    "tune": ("vitdeploy.cli.tune:tune", "Find the fastest setting on this machine that keeps the accuracy."),
    "inspect": ("vitdeploy.cli.inspect_bundle:inspect", "Show a bundle's contents, or how two artifacts differ."),
    "triton": (
        "vitdeploy.cli.model_repository:triton",
        "Add an artifact to a Triton Inference Server model repository.",
    ),
    "serve": ("vitdeploy.cli.serve:serve", "Serve a bundle with Triton Inference Server."),
    "pack": ("vitdeploy.cli.packing:pack", "Write a slim bundle: chosen artifacts, and the files that they need."),
    "push": ("vitdeploy.cli.push:push", "Push a bundle to a repository on the Hugging Face Hub."),
    "sign": ("vitdeploy.cli.sign:sign", "Sign a bundle with a private key."),
    "verify": ("vitdeploy.cli.verify:verify", "Check every file of a bundle against its manifest."),
    "doctor": ("vitdeploy.cli.doctor:doctor", "Show working backends, and what the others need."),
    "demo": ("vitdeploy.cli.demo:demo", "Export, compare and time the embedded model, with a report."),
}


class LazyGroup(Group):
    """A group that imports a command when it is invoked."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; its errors are handled here, because click misinterprets some: an EOFError as an interrupt."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001  (a defect is told as one)
            ctx.exit(print_error(exc))

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


@click.command(
    cls=LazyGroup,
    examples=("demo", "export google/vit-base-patch16-224 -o vit", "predict vit photo.jpg", "compare vit"),
)
@click.version_option(__version__, "-V", "--version", prog_name=_NAME)
def cli() -> None:
    """Take a Vision Transformer to production, and compare every artifact with the original model.

    Exit codes: 0 passed, 1 check failed, 2 usage error, 3 missing dependency, device, network or disk space, or a
    result could not be written, 4 missing, unreadable or corrupt input, 70 defect in vitdeploy. A failed check always
    exits with 1.
    """
    try:  # requested by libraries on import, whatever the paths are
        Path.cwd()
    except OSError as exc:
        hint = "change to a folder that exists"
        raise InputError(f"the working directory is gone: {exc.strerror}", found=exc.strerror, hint=hint) from exc


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; an error is one line on stderr and an exit code, see `print_error`.

    Args:
        args: Arguments. Default: the process's, in which case libraries are also silenced. With explicit arguments, the
            caller's warning filters, logging and signal handlers stay.
    """
    handlers = end_on_signals()
    guard_streams()
    limit_openmp()
    try:
        with warnings.catch_warnings():
            if args is None:
                quiet_libraries()
            else:
                warnings.filterwarnings("ignore", module=r"PIL\.")
            sys.exit(_run(args))
    finally:
        if args is not None:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _run(args: list[str] | None) -> int:
    try:
        code = cli.main(args, prog_name=_NAME, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as exc:
        return _show(exc)
    except SystemExit as exc:
        return print_error(exc) if isinstance(exc, Interrupted) else int(exc.code or 0)
    except Exception as exc:  # noqa: BLE001  (before a command runs, as where the help cannot be printed)
        return print_error(exc)


def _show(error: click.ClickException) -> int:
    """Print a click error in one line, or the help if the command is missing."""
    if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later
        line = "a command is missing"
        error.show()
    else:
        line = one_line(error.format_message())
        click.UsageError(line, getattr(error, "ctx", None)).show()
    annotate(line)
    return error.exit_code
