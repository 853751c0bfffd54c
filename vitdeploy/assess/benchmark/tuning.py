"""The result of a tuning: candidates with their accuracy, settings with their times, and the choice."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from vitdeploy.assess.data.folder_listing import left_out_dict
from vitdeploy.assess.metrics.intervals import Interval
from vitdeploy.assess.metrics.status import Assessment

CandidateStatus = Literal["met", "missed", "not made", "left out", "not measured"]
SettingStatus = Literal["chosen", "final", "dropped", "not run"]


def interval_dict(interval: Interval | None) -> dict[str, float | None] | None:
    """An interval for JSON; a bound is null if there is none."""
    if interval is None:
        return None
    low, high = interval.to_list()
    return {"estimate": interval.estimate, "low": low, "high": high}


@dataclasses.dataclass(frozen=True)
class BoundedAccuracy:
    """Accuracy of an artifact on held-out images, against a bound.

    Attributes:
        bound: The bound as text.
        met: True if the bound holds on these images.
        value: Share of images with the wanted class; or the 5th percentile of the cosine with the reference.
        low, high: Its 95 % interval: Wilson's for a share, a bootstrap's for a percentile.
        required: Smallest value allowed.
        images: Number of images.
        output: Output that was compared; of several, the worst.
        batch_size: Images per run.
        problem: Another reason for missing the bound: vectors of other lengths; else None.
    """

    bound: str
    met: bool
    value: float
    low: float
    high: float
    required: float
    images: int
    output: str
    batch_size: int = 1
    problem: str | None = None

    @property
    def is_certain(self) -> bool:
        """True if the whole interval meets the bound; else a few images decide."""
        return self.met and self.low >= self.required

    def __str__(self) -> str:
        text = f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f}), {self.required:.4f} required"
        return text if self.problem is None else f"{text}; {self.problem}"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An artifact on a backend, or an artifact that is none.

    Attributes:
        variant: Name, such as "onnx-int8 dynamic"; see `artifact`.
        artifact: Name that the artifact has in the bundle.
        backend: Backend; "" if the artifact was not made.
        is_new: True if tune made it, or would have.
        status: "met" or "missed", the bound; "not made"; "left out", with the reason; "not measured", its accuracy.
        accuracy: Measured accuracy; None without.
        reason: Why there is none, or why it was left out.
        size_bytes: Size of its files.
    """

    variant: str
    artifact: str
    backend: str
    is_new: bool
    status: CandidateStatus
    accuracy: BoundedAccuracy | None = None
    reason: str | None = None
    size_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class TimedSetting:
    """A candidate with run-time options and a batch size, and its times from image files to outputs.

    Attributes:
        variant, backend: The candidate.
        options: Runtime options that differ from the backend's defaults.
        batch_size: Images per run.
        status: "chosen"; "final", also measured in the final; "dropped", earlier; "not run".
        reason: Why it was dropped, or not chosen.
        ms: Milliseconds per image, with their 95 % interval; None if it did not run.
        ratio: Time relative to the fastest setting of the final, with its 95 % interval; None outside the final.
        p99_ms: 99th percentile of a run's time; None if it did not run.
        ready_ms: Median milliseconds per image on preprocessed input.
        runs: Number of timed runs.
        front: True if no other setting of the final is faster and at least as accurate.
    """

    variant: str
    backend: str
    options: dict[str, Any]
    batch_size: int
    status: SettingStatus
    reason: str | None = None
    ms: Interval | None = None
    ratio: Interval | None = None
    p99_ms: float | None = None
    ready_ms: float | None = None
    runs: int = 0
    front: bool = False

    @property
    def images_per_second(self) -> float | None:
        return None if self.ms is None else 1e3 / self.ms.estimate

    @property
    def options_text(self) -> str:
        """Options as text; "defaults" for none."""
        return ", ".join(f"{name} {value}" for name, value in self.options.items()) or "defaults"

    def __str__(self) -> str:
        return f"{self.variant} on {self.backend}, {self.options_text}, batch size {self.batch_size}"

    def to_dict(self) -> dict[str, Any]:
        intervals = {"ms": interval_dict(self.ms), "ratio": interval_dict(self.ratio)}
        return {**dataclasses.asdict(self), **intervals, "images_per_second": self.images_per_second}


@dataclasses.dataclass(frozen=True, repr=False)
class Tuning(Assessment):
    """The fastest setting of a bundle within an accuracy bound, and the evidence.

    Attributes:
        settings: The request: bound, target, largest batch, time limit, seed.
        data: Data set, numbers of images and their hashes.
        machine: Machine that measured.
        candidates: Artifacts, on each backend.
        timed: Settings, the chosen one first, then by time.
        usual: The setting that is opened without a choice, as text; None if the bundle had no artifact.
        gain: Time of the choice relative to the usual setting, with its 95 % interval; None without one.
        notes: What was left out for want of time, or is uncertain.
        seconds: Duration.
    """

    settings: dict[str, Any]
    data: dict[str, Any]
    machine: dict[str, str]
    candidates: tuple[Candidate, ...]
    timed: tuple[TimedSetting, ...]
    usual: str | None
    gain: Interval | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def chosen(self) -> TimedSetting | None:
        """The choice; None if nothing meets the bound, or nothing was measured."""
        return next((setting for setting in self.timed if setting.status == "chosen"), None)

    @property
    def nearest(self) -> Candidate | None:
        """The candidate that comes nearest to the bound, if none meets it."""
        measured = [candidate for candidate in self.candidates if candidate.accuracy is not None]
        return max(measured, key=lambda item: item.accuracy.value if item.accuracy else 0.0, default=None)

    @property
    def status(self) -> str:
        """Outcome: "passed" with a choice, "failed" if no candidate meets the bound, "skipped" if none was measured."""
        if self.chosen is not None:
            return "passed"
        return "skipped" if any(candidate.status == "met" for candidate in self.candidates) else "failed"

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return str(self.chosen or f"{self.status}: no setting meets {self.settings['accuracy']}")

    @property
    def summary(self) -> str:
        """The result in a sentence."""
        chosen, nearest = self.chosen, self.nearest
        if chosen is not None:
            gain = "" if self.gain is None else f"; {self.gain[0]:.2f} ({self.gain[1]:.2f} to {self.gain[2]:.2f}) "
            usual = "" if self.gain is None else f"of the time of {self.usual}"
            return f"chosen: {chosen}{gain}{usual}"
        if self.status == "skipped":
            return "no setting was measured"
        if nearest is None:
            return f"no artifact could be measured against {self.settings['accuracy']}"
        return (
            f"no artifact meets {self.settings['accuracy']}; the nearest is {nearest.variant} on {nearest.backend}: "
            f"{nearest.accuracy}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.bundle,
            "processor": self.processor,
            "status": self.status,
            "summary": self.summary,
            "settings": self.settings,
            "data": self.data,
            "left_out": left_out_dict(self.left_out),
            "machine": self.machine,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "timed": [setting.to_dict() for setting in self.timed],
            "usual": self.usual,
            "gain": interval_dict(self.gain),
            "notes": list(self.notes),
            "seconds": self.seconds,
        }
