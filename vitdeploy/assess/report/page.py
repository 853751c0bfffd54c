"""A report as one self-contained HTML file: no network, script or other file."""

from __future__ import annotations

import base64
import io
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.assess.metrics.neighbours import RECALLS
from vitdeploy.assess.metrics.status import writable
from vitdeploy.assess.report.page_data import (
    MOST_LAYERS,
    confusions,
    details,
    headlines,
    least_accurate,
    load_settings,
    settings,
    statuses,
)
from vitdeploy.assess.report.plots import (
    accuracy_plot,
    calibration_plot,
    latency_plot,
    layers_plot,
    pareto_plot,
    sensitivity_plot,
)
from vitdeploy.assess.report.report import Assessed, Report, report_of
from vitdeploy.assess.report.tables import tables
from vitdeploy.assess.report.written import write_result
from vitdeploy.errors import ImageError, MissingDependencyError
from vitdeploy.exporters.naming.layer_names import readable_name
from vitdeploy.images.open import open_image

try:
    import jinja2
    from markupsafe import Markup, escape
except ModuleNotFoundError as exc:
    raise MissingDependencyError("the HTML report", "report") from exc

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from vitdeploy.assess.metrics.latency import Latency
    from vitdeploy.assess.report.example_images import ExampleImage

_LARGEST_SIDE = 320  # pixels of an embedded image; the page shows it at half size, for dense displays
_SHARP_BELOW = 128  # pixels: smaller images are embedded as they are, and enlarged without smoothing
_QUALITY = 85
_ROW, _CELL = re.compile(r"<tr>.*?</tr>", re.DOTALL), re.compile(r"<(th|td)\b([^>]*)>")


def write_html(path: str | os.PathLike[str], result: Assessed | Report) -> None:
    """Write the page atomically; replaces an existing file. Equal reports give equal bytes.

    An image that can no longer be read is replaced by its name.

    Raises:
        UsageError: If it is not the result of an assessment, or the file is part of the assessed bundle or data.
        OutputError: If the file cannot be written; an existing one is unchanged.
    """
    report = result if isinstance(result, Report) else report_of(result)
    parts = (
        report.gate,
        report.comparison,
        report.layers,
        report.sensitivity,
        report.evaluation,
        report.embeddings,
        report.benchmark,
        report.load,
        report.tuning,
    )
    write_result(path, writable(_render(report)).encode(), *(part for part in parts if part is not None))


def _render(report: Report) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "picture": picture_of,
        "labelled": labelled,
        "readable": readable_name,
        "settings": settings,
        "tables": tables,
        "load_settings": load_settings,
        "details": details,
    }
    template = environment.get_template("report.html")
    return template.render(
        report=report,
        headlines=headlines(report),
        statuses=statuses(report),
        recalls=RECALLS,
        **_layers(report),
        **_sensitivity(report),
        **_accuracy(report),
        **_latency(report),
        tuning_tables=() if report.tuning is None else tables(report.tuning),
    )


def _layers(report: Report) -> dict[str, Any]:
    compared = [result for result in report.layers.results if result.parts] if report.layers else []
    return {"layers_plot": layers_plot(compared) if compared else None}


def _sensitivity(report: Report) -> dict[str, Any]:
    sensitivity = report.sensitivity
    return {
        "sensitivity_plot": None if sensitivity is None else sensitivity_plot(sensitivity),
        "most_layers": MOST_LAYERS,
    }


def _accuracy(report: Report) -> dict[str, Any]:
    evaluation = report.evaluation
    ran = [result for result in evaluation.results if result.skipped is None] if evaluation else []
    if evaluation is None or not ran:
        return {"ran": [], "accuracy_plot": None, "calibration_plot": None, "confusions": [], "classes": None}
    return {
        "ran": ran,
        "accuracy_plot": accuracy_plot(evaluation),
        "calibration_plot": calibration_plot(evaluation),
        "confusions": confusions(evaluation),
        "classes": least_accurate(evaluation),
    }


def _latency(report: Report) -> dict[str, Any]:
    batches: dict[str, list[Latency]] = {}
    for latency in report.benchmark.latencies if report.benchmark else ():
        batches.setdefault(latency.load_text, []).append(latency)
    front = report.benchmark.front if report.benchmark else ()
    return {
        "batches": batches,
        "latency_plot": latency_plot(batches) if batches else None,
        "pareto_plot": pareto_plot(batches, front) if front else None,
    }


def labelled(rows: Markup, columns: Sequence[str]) -> Markup:
    """The rows of a table with each cell labelled by its column, for the layout on phones.

    `columns` are names in the form of the macro `table`; a cell that spans several columns has none.
    """
    names = [escape(name.removeprefix("<")) for name in columns]

    def with_names(row: re.Match[str]) -> str:
        position = itertools.count()

        def with_name(cell: re.Match[str]) -> str:
            name = names[next(position)]
            return cell[0] if cell[1] == "th" or "colspan" in cell[2] else f'<td data-label="{name}"{cell[2]}>'

        return _CELL.sub(with_name, row[0])

    return Markup(_ROW.sub(with_names, rows))  # noqa: S704  (the template has escaped it)


class Picture(NamedTuple):
    """An image in the page, and its size in pixels; without data if it cannot be shown, with the reason in `missing`.

    A `small` one is enlarged without smoothing.
    """

    uri: str
    width: int = 0
    height: int = 0
    small: bool = False
    missing: str = ""


def picture_of(example: ExampleImage) -> Picture:
    """The image's colours only: no other file content reaches the page. An image that is gone gives the reason.

    Also for gray and RGBA models: the file's colours, without alpha.
    """
    try:
        image = open_image(example.load(), name=repr(example.image))
    except ImageError as exc:
        return Picture("", missing=str(exc))
    image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    small = max(image.size) < _SHARP_BELOW
    kind, options = ("png", {}) if small else ("jpeg", {"quality": _QUALITY})
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{data}", *image.size, small=small)
