"""Output of commands, tables for users and JSON for machines; and options that commands share."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli import synonyms, table
from vitdeploy.cli.command import COMMON, option
from vitdeploy.cli.verbosity import is_quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.assess.report.tables import Table


class _Path(click.Path):
    """A path. An empty one, as of an unset variable of a shell, would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("a path cannot be empty.", param, ctx)
        try:
            return super().convert(value, param, ctx)
        except ValueError as exc:  # a null byte, which only a caller from Python can give
            self.fail(f"{value!r:.80} cannot be a path: {exc}.", param, ctx)


PATH = _Path(readable=False)  # its reader reports in one line that it cannot be read


def read_device(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    """Callback: the device name, translated from other tools' names."""
    return None if name is None else synonyms.device(name)


device_option = option("--device", default="cpu", show_default=True, callback=read_device, help="cpu, cuda or cuda:1.")


def backends_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--backend`, passed as `backends`; None if not given."""
    return option(
        "--backend", "backends", multiple=True, metavar="NAME[:PRECISION]",
        help=f"Backend, such as onnxruntime:fp16; repeatable. {text}", callback=lambda *given: given[-1] or None,
    )  # fmt: skip


json_option = option("--json", "as_json", is_flag=True, group=COMMON, help="Print JSON instead of a table.")


def _limit_images(context: click.Context, _option: click.Parameter, pixels: int | None) -> None:
    """Set the variable until the command ends; processes that it starts inherit it."""
    from vitdeploy.images.pixel_limit import MAX_PIXELS_VARIABLE

    if pixels is not None:
        context.with_resource(_variable(MAX_PIXELS_VARIABLE, str(pixels)))


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


image_limit_option = option(
    "--max-image-pixels",
    metavar="N",
    type=click.IntRange(1, 2**63 - 1),
    expose_value=False,
    group=COMMON,
    callback=_limit_images,
    help="Refuse images with more pixels. Default: VITDEPLOY_MAX_IMAGE_PIXELS or 178956970, twice Pillow's limit.",
)


def print_json(data: Any) -> None:
    """Print strict JSON in ASCII: a non-finite number becomes null."""
    print(json.dumps(_strict(data), indent=2, allow_nan=False), flush=True)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], notes: Iterable[str] = ()
) -> None:
    """Print a table, and notes below it, such as skip reasons; see `vitdeploy.cli.table`."""
    if not is_quiet():
        cells = [[printable(str(cell)).replace("\n", "\\n") for cell in row] for row in rows]
        print(table.rendered(printable(title), columns, cells), flush=True)
        for note in notes:
            print_text(note)


def print_tables(title: str, tables: Iterable[Table]) -> None:
    """Print tables, the first of them under `title`."""
    for index, item in enumerate(tables):
        print_table(f"\n{item.title}" if index else title, item.columns, item.rows, item.notes)


def measured_title(title: str, status: str) -> str:
    """The title of figures without a verdict: with a status only if something failed or was skipped."""
    return title if status == "passed" else f"{title}: {status}"


def shown_path(path: Path) -> str:
    """A path as a person would type it: relative to the working directory if it is inside."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def print_left_out(left_out: LeftOut | None) -> None:
    """Print the files of a folder that are not among its images, if any."""
    if left_out:
        text = str(left_out)
        print_text(text[0].upper() + text[1:])


def print_text(text: str) -> None:
    """Print lines of text, on a terminal wrapped between words; see `vitdeploy.cli.process.guard_streams`."""
    if not is_quiet():
        print(table.wrapped(printable(text), table.terminal_width()), flush=True)


def pairs(values: Mapping[str, object]) -> str:
    """Names and values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def left_out_texts(validation: Mapping[str, Any]) -> dict[str, str]:
    """Files left out of a validation, as text, by the argument that named their folder."""
    from vitdeploy.assess.data.folder_listing import LeftOut

    listings = {name: LeftOut.from_dict(files) for name, files in validation.get("left_out", {}).items()}
    return {name: str(left_out) for name, left_out in listings.items() if left_out}


def allowed_of(validation: Mapping[str, Any]) -> str:
    """The bound of a validation, as text."""
    return "judged by cosine" if validation["tolerance"] is None else f"tolerance {validation['tolerance']:g}"


def agreement(measured: Mapping[str, Any]) -> str:
    """Agreement of one output in a validation, as text."""
    return f"{measured['output']}: {nearness(measured)}"


def nearness(measured: Mapping[str, Any]) -> str:
    """`agreement` without the output's name."""
    figures = []
    if measured["mean_cosine"] is not None:  # as for a regression
        figures.append(f"mean cosine {measured['mean_cosine']:.5f}")
    if measured["top1_agreement"] is not None:
        figures.insert(0, f"top-1 agreement {measured['top1_agreement']:.2%}")
    if measured.get("relative_error") is not None:
        figures.insert(0, f"relative error {measured['relative_error']:.2%}")
    if measured.get("p5_cosine") is not None:
        figures.append(f"5th percentile {measured['p5_cosine']:.5f}")
    if measured.get("neighbour_agreement") is not None:
        figures.append(f"nearest neighbour kept {measured['neighbour_agreement']:.0%}")
    kind = "held-out images" if measured.get("held_out") else "images"
    return f"{', '.join(figures)} ({measured['images']} {kind})"


def size(size_bytes: int) -> str:
    """Human-readable size."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 50_000 else f"{size_bytes} bytes"


def printable(text: str) -> str:
    """`text` with terminal control characters and invalid characters escaped; line breaks stay."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )


def one_line(text: str) -> str:
    """`text` as `printable`, with line breaks replaced by spaces."""
    return printable(" ".join(text.split()))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
