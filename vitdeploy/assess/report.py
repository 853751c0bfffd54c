"""Assessments as one HTML file that needs nothing beside it: no network, no script, no other file."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vitdeploy.atomic import write_file
from vitdeploy.errors import MissingDependencyError
from vitdeploy.images import open_image

try:
    import jinja2
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure
except ModuleNotFoundError as exc:
    raise MissingDependencyError("the HTML report", "report") from exc

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from vitdeploy.assess.accuracy import Accuracy
    from vitdeploy.assess.compare import Comparison
    from vitdeploy.assess.latency import Latency
    from vitdeploy.predictor import Prediction

_LARGEST_SIDE = 320  # pixels of an embedded image; the page shows half of it, for dense displays
_SHARP_BELOW = 128  # pixels: smaller images are enlarged without smoothing
# Colours that matplotlib writes and the page then takes from its own style, so that the plot follows the page's theme.
_INK = "#0000e0"
_SERIES = ("#0000f0", "#0000f1", "#0000f2", "#0000f3")


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image, its class, and what each backend makes of it.

    Attributes:
        image: the file.
        expected: its class.
        predictions: by backend, the best first.
    """

    image: Path
    expected: str
    predictions: Mapping[str, Sequence[Prediction]]

    @property
    def correct(self) -> bool:
        """Whether every backend's best class is the expected one."""
        return all(best[0].label == self.expected for best in self.predictions.values())

    def to_dict(self) -> dict[str, Any]:
        predictions = {name: [item.to_dict() for item in best] for name, best in self.predictions.items()}
        return {
            "image": str(self.image),
            "expected": self.expected,
            "correct": self.correct,
            "predictions": predictions,
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows; a part that is empty is left out.

    Attributes:
        title: of the page.
        source: the model and its artifacts, as names and values.
        machine: where the figures were measured, as names and values.
        comparison: the artifacts against the reference.
        accuracies: by backend.
        latencies: the first of each batch size is what the others are compared with.
        processing_ms: median time to make one image ready, which the latencies leave out.
        samples: images with predictions, in groups by heading.
    """

    title: str
    source: Mapping[str, str]
    machine: Mapping[str, str]
    comparison: Comparison | None = None
    accuracies: Mapping[str, Accuracy] = dataclasses.field(default_factory=dict)
    latencies: Sequence[Latency] = ()
    processing_ms: float | None = None
    samples: Mapping[str, Sequence[Sample]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "source": dict(self.source),
            "machine": dict(self.machine),
            "comparison": None if self.comparison is None else self.comparison.to_dict(),
            "accuracies": {name: accuracy.to_dict() for name, accuracy in self.accuracies.items()},
            "latencies": [latency.to_dict() for latency in self.latencies],
            "processing_ms": self.processing_ms,
            "samples": {heading: [sample.to_dict() for sample in group] for heading, group in self.samples.items()},
        }


def write_report(path: str | os.PathLike[str], report: Report) -> Path:
    """Write a report; a file that exists is replaced whole or not at all. Equal reports give equal bytes.

    Raises:
        ImageError: a sample's image cannot be read.
        OutputError: the file cannot be written; the one before is untouched.
    """
    target = Path(path)
    write_file(target, _render(report).encode())
    return target


class _Headline(NamedTuple):
    """One of the figures that stand out at the top."""

    label: str
    value: str
    note: str


class _Picture(NamedTuple):
    """An image in the page."""

    uri: str
    width: int
    height: int
    small: bool


def _render(report: Report) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = _embedded
    batches: dict[int, list[Latency]] = {}
    for latency in report.latencies:
        batches.setdefault(latency.batch_size, []).append(latency)
    plot = _latency_plot(batches) if batches else None
    headlines = list(_headlines(report))
    template = environment.get_template("report.html")
    return template.render(report=report, headlines=headlines, batches=batches, plot=plot)


def _headlines(report: Report) -> Iterator[_Headline]:
    for result in report.comparison.results if report.comparison else ():
        for item in result.differences:
            allowed = f"of the largest value of {item.output}; {result.tolerance:g} is allowed"
            yield _Headline(f"{result.artifact}, largest difference", f"{item.max_relative:.1e}", allowed)
            if item.top1_agreement is not None:
                agreement = f"{item.top1_agreement:.2%}"
                yield _Headline(f"{result.artifact}, same best class", agreement, f"of {item.count} images")
    for name, accuracy in report.accuracies.items():
        note = f"{accuracy.correct} of {accuracy.total} images"
        yield _Headline(f"{name}, accuracy", f"{accuracy.value:.2%}", note)
    for first in report.latencies[:1]:
        same_batch = [latency for latency in report.latencies if latency.batch_size == first.batch_size]
        fastest = max(same_batch, key=lambda latency: latency.images_per_second)
        ratio = f"{fastest.images_per_second / first.images_per_second:.1f} times as fast as {first.name}"
        note = "the fastest" if fastest is first else ratio
        yield _Headline(f"{fastest.name}, batch {first.batch_size}", f"{fastest.percentile_ms(50):.3g} ms", note)


def _embedded(image: Path) -> _Picture:
    """The pixels alone, as PNG: nothing else that a file holds gets into the page."""
    picture = open_image(image)
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return _Picture(uri, *picture.size, small=max(picture.size) < _SHARP_BELOW)


def _latency_plot(batches: Mapping[int, Sequence[Latency]]) -> Markup:
    """A panel a batch size, and in it a row a backend: each run as a dot, and a bar up to the median."""
    rows = [len(latencies) for latencies in batches.values()]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vitdeploy", "font.size": 10, "text.color": _INK}):
        figure = Figure(figsize=(5, sum(0.62 * count + 0.75 for count in rows)), layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(len(batches), 1, squeeze=False, height_ratios=[count + 0.4 for count in rows])
        for axes, (size, latencies) in zip(panels[:, 0], batches.items(), strict=True):
            axes.set_title(f"batch {size}", loc="left", fontweight="bold")
            _latency_panel(axes, latencies)
        panels[-1, 0].set_xlabel("milliseconds a run", color=_INK)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    return Markup(svg)  # noqa: S704  (matplotlib escapes the names that it draws)


def _latency_panel(axes: Axes, latencies: Sequence[Latency]) -> None:
    # A few runs may take many times the median, where something else had the processor: they are counted, not drawn.
    limit = 2 * max(latency.percentile_ms(50) for latency in latencies)
    generator = np.random.default_rng(0)
    for row, latency in enumerate(latencies):
        colour, median = _SERIES[row % len(_SERIES)], latency.percentile_ms(50)
        times = np.array([time for time in latency.times_ms if time <= limit])
        beyond = len(latency.times_ms) - len(times)
        label = f"{latency.name}: median {median:.3g} ms" + (f", {beyond} runs beyond the axis" if beyond else "")
        axes.barh(row, median, height=0.42, color=colour, alpha=0.22)
        axes.scatter(times, row + generator.uniform(-0.18, 0.18, len(times)), 7, colour, alpha=0.55, linewidths=0)
        axes.plot([median, median], [row - 0.24, row + 0.24], color=_INK, linewidth=1.8)
        axes.text(0, row - 0.33, label, parse_math=False, va="bottom")
    axes.set_xlim(0, limit)
    axes.set_ylim(len(latencies) - 0.6, -0.75)
    axes.set_yticks([])
    axes.set_facecolor("none")
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="x", color=_INK, alpha=0.15, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
