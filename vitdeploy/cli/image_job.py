"""Shared by `embed` and `predict --output`: options, and the images that could not be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vitdeploy.cli.command import Choice, option
from vitdeploy.cli.number_options import BATCH_SIZE
from vitdeploy.cli.output import print_left_out, print_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vitdeploy.batch.embed_job import EmbeddedImages
    from vitdeploy.batch.predict_job import PredictedImages
    from vitdeploy.predictor import Predictor

_MOST_FAILED = 20  # printed

batch_size_option = option("--batch-size", type=BATCH_SIZE, help="Images per run. Default: 8, or the tuned choice's.")


def on_error_option(
    help_text: str, default: str | None = "record"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--on-error`."""
    return option(
        "--on-error", type=Choice(("record", "stop")), default=default, show_default=default is not None, help=help_text
    )


def described(bundle: str, predictor: Predictor) -> dict[str, Any]:
    """The bundle of a job and how it was opened, for JSON."""
    opened = predictor.details
    names = ("revision", "backend", "precision")
    known = {name: opened[name] for name in names if name in opened}
    return {"bundle": bundle, **known, "details": predictor.runtime.details}


def resumed_note(result: EmbeddedImages | PredictedImages) -> list[str]:
    """A note about images that were finished before, if any."""
    return [f"{result.resumed} images were finished by an earlier run"] if result.resumed else []


def print_failed(result: EmbeddedImages | PredictedImages, where: str) -> None:
    """Print the images that could not be read, and the files left out of folders; `where` has all of them."""
    if result.failed:
        failed = [(str(image.row), image.path, image.error) for image in result.failed[:_MOST_FAILED]]
        more = len(result.failed) - len(failed)
        notes = [f"and {more} more, in {where}"] if more else []
        print_table(f"\n{len(result.failed)} images could not be read", ("row", "image", "error"), failed, notes)
    for left_out in result.left_out.values():
        print_left_out(left_out)


def exit_for(result: EmbeddedImages | PredictedImages) -> None:
    """Exit with the code of an unreadable image if there was one."""
    from vitdeploy.errors import ImageError

    if result.failed:
        click.get_current_context().exit(ImageError.exit_code)
