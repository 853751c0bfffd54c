"""Plots of a report: SVG in the page's theme."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.errors import MissingDependencyError
from vitdeploy.exporters.naming.layer_names import readable_name

try:
    import matplotlib as mpl
    from markupsafe import Markup
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter
except ModuleNotFoundError as exc:
    raise MissingDependencyError("the HTML report", "report") from exc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

    from vitdeploy.assess.debug.layer_results import ArtifactLayers
    from vitdeploy.assess.debug.sensitivity import Sensitivity
    from vitdeploy.assess.evaluate.evaluate import Evaluation
    from vitdeploy.assess.metrics.latency import Latency

# Colours in matplotlib's output that the page replaces by its own style.
_INK, _BAD = "#0000e0", "#0000e1"
_SERIES = ("#0000f0", "#0000f1", "#0000f2", "#0000f3")
_MARKERS = "osD^"
_WIDTH = 4  # inches: on a phone, text of 10 points is then as large as the page's smallest
_BELOW = 0.2  # a difference of 0 has no logarithm: drawn at this fraction of the smallest other


def latency_plot(batches: Mapping[str, Sequence[Latency]]) -> Markup:
    """A panel per batch and image size with a row per backend: each run as a dot, and a bar up to the median."""
    rows = [len(latencies) for latencies in batches.values()]

    def draw(panels: Sequence[Axes]) -> None:
        for axes, (size, latencies) in zip(panels, batches.items(), strict=True):
            axes.set_title(f"batch {size}", loc="left", fontweight="bold")
            _latencies(axes, latencies)
        panels[-1].set_xlabel("milliseconds a run", color=_INK)

    return _svg("latency", draw, [0.62 * count + 0.75 for count in rows])


def pareto_plot(batches: Mapping[str, Sequence[Latency]], front: Sequence[Latency]) -> Markup:
    """A panel per batch and image size: time against accuracy, the settings of the Pareto front filled and joined."""
    rated = {size: [item for item in latencies if item.quality is not None] for size, latencies in batches.items()}
    rated = {size: latencies for size, latencies in rated.items() if latencies}

    def draw(panels: Sequence[Axes]) -> None:
        for axes, (size, latencies) in zip(panels, rated.items(), strict=True):
            best = sorted(
                (item.interval_ms.estimate, item.quality.value)
                for item in latencies
                if item.quality is not None and any(item is other for other in front)
            )
            axes.step([time for time, _ in best], [value for _, value in best], color=_INK, alpha=0.4, where="post")
            for row, item in enumerate(latencies):
                if item.quality is not None:
                    time, low, high = item.interval_ms
                    colour, value = _SERIES[row % len(_SERIES)], item.quality.value
                    face = colour if (time, value) in best else "none"
                    if math.isfinite(high):
                        axes.plot([low, high], [value] * 2, color=colour, linewidth=2, alpha=0.5)
                    axes.plot(time, value, _MARKERS[row % len(_MARKERS)], color=colour, mfc=face, label=item.name)
            axes.set_xlim(left=0)
            axes.set_ylabel("top-1" if latencies[0].quality and latencies[0].quality.top1 else "cosine", color=_INK)
            axes.legend(title=f"batch {size}", alignment="left", frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        panels[-1].set_xlabel("milliseconds a run; filled: the Pareto front", color=_INK)

    return _svg("pareto", draw, [2.7 + 0.22 * len(latencies) for latencies in rated.values()])


def accuracy_plot(evaluation: Evaluation) -> Markup:
    """A row per backend: top-1 and top-5 as dots, with their 95 % Wilson intervals."""
    ran = [result for result in evaluation.results if result.skipped is None]

    def draw(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        for row, result in enumerate(ran):
            for name, marker, shift in (("top1", "o", 0.0), ("top5", "s", 0.2)):
                accuracy = getattr(evaluation, name)(result)
                low, high = (100 * bound for bound in accuracy.interval)
                axes.plot([low, high], [row + shift] * 2, color=_SERIES[row % len(_SERIES)], linewidth=2, alpha=0.5)
                face = _SERIES[row % len(_SERIES)] if marker == "o" else "none"
                axes.plot(100 * accuracy.value, row + shift, marker, color=_SERIES[row % len(_SERIES)], mfc=face)
            text = f"{result.artifact} on {result.backend}: {evaluation.top1(result).value:.2%}"
            axes.text(0, row - 0.22, text, parse_math=False, va="bottom", transform=axes.get_yaxis_transform())
        axes.set_ylim(len(ran) - 0.5, -0.85)
        axes.set_yticks([])
        axes.set_xlabel("percent of the images; filled: top-1, open: top-5", color=_INK)

    return _svg("accuracy", draw, [0.62 * len(ran) + 0.6])


def calibration_plot(evaluation: Evaluation) -> Markup:
    """Mean score against accuracy, a point per bin; scores on the diagonal are calibrated."""
    ran = [result for result in evaluation.results if result.skipped is None]

    def draw(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, alpha=0.4)
        for row, result in enumerate(ran):
            bins = [interval for interval in evaluation.calibration(result).bins if interval.count]
            points = [interval.score for interval in bins], [interval.accuracy for interval in bins]
            colour, marker = _SERIES[row % len(_SERIES)], _MARKERS[row % len(_MARKERS)]
            sizes = [10 + 200 * interval.count / len(evaluation.images) for interval in bins]
            axes.plot(*points, color=colour, linewidth=1, alpha=0.35)
            axes.scatter(*points, sizes, marker=marker, edgecolors=colour, facecolors="none", label=result.name)
        axes.set_xlabel("mean score of a bin", color=_INK)
        axes.set_ylabel("accuracy in it", color=_INK)
        # Above the points, which may be anywhere.
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)

    return _svg("calibration", draw, [3.2 + 0.22 * len(ran)])


def layers_plot(results: Sequence[ArtifactLayers]) -> Markup:
    """A panel per artifact with a bar per part: its largest difference, beside the tolerance."""

    def draw(panels: Sequence[Axes]) -> None:
        for axes, result in zip(panels, results, strict=True):
            axes.set_title(result.artifact, loc="left", fontweight="bold", parse_math=False)
            _parts(axes, result)
        panels[-1].set_xlabel("difference, relative to the largest value", color=_INK)

    return _svg("layers", draw, [0.2 * len(result.parts) + 0.8 for result in results])


def sensitivity_plot(result: Sensitivity) -> Markup:
    """A bar per layer, in graph order: the error with that layer alone in the lower precision, beside that of all."""

    def draw(panels: Sequence[Axes]) -> None:
        axes = panels[0]
        values = [layer.error for layer in result.layers]
        colours = [_SERIES[1] if math.isfinite(value) else _BAD for value in values]
        _log_bars(axes, values, colours, result.error, alpha=0.3)
        for row, layer in enumerate(result.layers):  # names of nodes may be as long as the plot is wide
            axes.text(0.01, row, layer.layer, parse_math=False, va="center", transform=axes.get_yaxis_transform())
        axes.set_yticks([])
        axes.set_xlabel("relative error of the outputs", color=_INK)

    return _svg("sensitivity", draw, [0.2 * len(result.layers) + 0.65])


def _parts(axes: Axes, result: ArtifactLayers) -> None:
    values = [part.worst.max_relative for part in result.parts]
    colours = [_SERIES[1] if part.worst.within(result.tolerance) else _BAD for part in result.parts]
    _log_bars(axes, values, colours, result.tolerance)
    parts = [(readable_name(part.part), part.part == result.first) for part in result.parts]
    names = [f"{name} (first)" if first else name for name, first in parts]
    axes.set_yticks(range(len(names)), names)


def _log_bars(axes: Axes, values: Sequence[float], colours: Sequence[str], line: float, alpha: float = 0.75) -> None:
    """A bar per value on a logarithmic axis, full length if not finite, and a dashed line."""
    finite = [value for value in (*values, line) if 0 < value < math.inf] or [1.0]
    low, high = _BELOW * min(finite), 3 * max(finite)
    drawn = [min(max(value, low), high) if math.isfinite(value) else high for value in values]
    axes.barh(range(len(values)), drawn, left=0, height=0.62, color=colours, alpha=alpha)
    axes.axvline(min(line, high) or low, color=_INK, linewidth=1.4, linestyle="--")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.xaxis.set_minor_formatter(NullFormatter())  # labels between powers of ten would overlap
    axes.set_xlim(low / 2, high)
    axes.set_ylim(len(values) - 0.3, -0.6)


def _latencies(axes: Axes, latencies: Sequence[Latency]) -> None:
    # A few runs may take many times the median because of other processes: they are counted, not drawn.
    limit = 2 * max(latency.p50_ms for latency in latencies)
    generator = np.random.default_rng(0)
    for row, latency in enumerate(latencies):
        colour, median = _SERIES[row % len(_SERIES)], latency.p50_ms
        times = np.array([time for time in latency.times_ms if time <= limit])
        beyond = len(latency.times_ms) - len(times)
        label = f"{latency.name}: median {median:.3g} ms" + (
            f" ({beyond} run{'s' if beyond > 1 else ''} beyond)" if beyond else ""
        )
        axes.barh(row, median, height=0.42, color=colour, alpha=0.22)
        axes.scatter(times, row + generator.uniform(-0.18, 0.18, len(times)), 7, colour, alpha=0.55, linewidths=0)
        axes.plot([median, median], [row - 0.24, row + 0.24], color=_INK, linewidth=1.8)
        axes.text(0, row - 0.33, label, parse_math=False, va="bottom")
    axes.set_xlim(0, limit)
    axes.set_ylim(len(latencies) - 0.6, -0.75)
    axes.set_yticks([])


def _svg(name: str, draw: Callable[[Sequence[Axes]], None], heights: Sequence[float]) -> Markup:
    """Panels of these heights, in inches, one below the other; `name` prefixes the page's identifiers."""
    with mpl.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "font.sans-serif": ["DejaVu Sans"],
        "text.color": _INK,
    }):  # fmt: skip
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0].tolist()
        for axes in panels:
            axes.set_facecolor("none")
            axes.tick_params(which="both", colors=_INK, length=0)
            axes.grid(axis="x", color=_INK, alpha=0.15, linewidth=0.8)
            axes.tick_params(axis="x", which="both", pad=6)
            axes.set_axisbelow(True)
            axes.spines[:].set_visible(False)
        draw(panels)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_BAD, "var(--bad)")
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    for attribute in (' id="', ' xlink:href="#', "url\\(#"):
        svg = re.sub(f"(<[a-z][^<>]*?{attribute})", rf"\g<1>{name}-", svg)
    return Markup(svg)  # noqa: S704  (matplotlib escapes the names that it draws)
