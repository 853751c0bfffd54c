"""Output of commands: tables for people, JSON for machines, progress on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import TextIO

    from vitdeploy.assess.data.folder_listing import LeftOut
    from vitdeploy.assess.report.tables import Table

PATH = click.Path(readable=False)  # whoever reads it says in one line that it cannot be read

device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")


def backends_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--backend`, whose names come as `backends`; None where there are none."""
    return click.option(
        "--backend", "backends", multiple=True, metavar="NAME[:PRECISION]",
        help=f"Such as onnxruntime:fp16; may be repeated. {text}", callback=lambda *given: given[-1] or None,
    )  # fmt: skip


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _limit_images(context: click.Context, _option: click.Parameter, pixels: int | None) -> None:
    """Set the variable until the command ends; processes that it starts have it too."""
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


image_limit_option = click.option(
    "--max-image-pixels",
    metavar="N",
    type=click.IntRange(1, 2**63 - 1),
    expose_value=False,
    callback=_limit_images,
    help="Refuse images of more pixels; VITDEPLOY_MAX_IMAGE_PIXELS or 178956970 by default, twice Pillow's limit.",
)


def print_json(data: Any) -> None:
    """Print strict JSON, in ASCII: a number that is not finite becomes null."""
    _write(json.dumps(_strict(data), indent=2, allow_nan=False))


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table; on a terminal it fits the width, elsewhere no cell is folded. An empty title takes no line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal, file = _is_a_terminal(sys.stdout), io.StringIO()
    console = Console(file=file, highlight=False, force_terminal=terminal, width=None if terminal else 10_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    if title:  # a table's own title is folded at the table's width
        console.print(Text(printable(title), style="italic"))
    console.print(table)
    _write("\n".join(line.rstrip() for line in file.getvalue().splitlines()))


def print_tables(title: str, tables: Iterable[Table]) -> None:
    """Print tables, the first of them under `title`."""
    for index, table in enumerate(tables):
        print_table(f"\n{table.title}" if index else title, table.columns, table.rows)


def print_left_out(left_out: LeftOut | None) -> None:
    """Print which files of a folder are not among the images, or that all are; nothing where no folder was read."""
    if left_out is not None:
        text = str(left_out)
        print_text(text[0].upper() + text[1:])


def print_text(text: str) -> None:
    """Print lines of text."""
    _write(printable(text))


def pairs(values: Mapping[str, object]) -> str:
    """Names and values on one line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def left_out_texts(validation: Mapping[str, Any]) -> dict[str, str]:
    """Files that a validation left out, as text, by the argument that named their folder."""
    from vitdeploy.assess.data.folder_listing import LeftOut

    return {name: str(LeftOut.from_dict(files)) for name, files in validation.get("left_out", {}).items()}


def allowed_of(validation: Mapping[str, Any]) -> str:
    """By what a validation judged, for people."""
    return "judged by cosine" if validation["tolerance"] is None else f"tolerance {validation['tolerance']:g}"


def agreement(measured: Mapping[str, Any]) -> str:
    """Agreement of one output in a validation, as text."""
    return f"{measured['output']}: {nearness(measured)}"


def nearness(measured: Mapping[str, Any]) -> str:
    """`agreement` without the output's name."""
    figures = []
    if measured["mean_cosine"] is not None:  # as a regression's is
        figures.append(f"mean cosine {measured['mean_cosine']:.5f}")
    if measured["top1_agreement"] is not None:
        figures.insert(0, f"the reference's class for {measured['top1_agreement']:.2%}")
    if measured.get("relative_error") is not None:
        figures.insert(0, f"relative error {measured['relative_error']:.2%}")
    if measured.get("p5_cosine") is not None:
        figures.append(f"5th percentile {measured['p5_cosine']:.5f}")
    if measured.get("neighbour_agreement") is not None:
        figures.append(f"nearest neighbour kept {measured['neighbour_agreement']:.0%}")
    kind = "held-out images" if measured.get("held_out") else "images"
    return f"{', '.join(figures)} ({measured['images']} {kind})"


def size(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 50_000 else f"{size_bytes} bytes"


class TerminalProgress(Progress):
    """Steps as lines and work as a bar, on stderr and only on a terminal.

    A bar stands there from the first advance until all is done, and again where there is more to do: no live display
    hides the progress bars of a download. Steps that begin meanwhile stand above it.

    Args:
        what: is counted, such as "images".
    """

    def __init__(self, what: str) -> None:
        self._what, self._bar = what, contextlib.ExitStack()
        self._update: Callable[[int, int], None] | None = None

    def step(self, text: str) -> None:
        if _is_a_terminal(sys.stderr):
            click.echo(f"{text} …", err=True)

    def advance(self, done: int, total: int) -> None:
        if not _is_a_terminal(sys.stderr):
            return
        if self._update is None:
            self._update = self._bar.enter_context(_bar(self._what))
        self._update(done, total)
        if done == total:
            self.close()

    def close(self) -> None:
        self._bar.close()
        self._update = None

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn(what),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def printable(text: str) -> str:
    """`text` with what would steer a terminal, or is no character, spelled out; line breaks stay."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text
    )


def _write(text: str) -> None:
    print(text, flush=True)  # see `vitdeploy.cli.process.guard_streams`


def _is_a_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # it is None where it was closed


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
