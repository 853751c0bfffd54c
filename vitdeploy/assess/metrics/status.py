"""Status and checks of results, in one form for reports."""

from __future__ import annotations

import abc
import dataclasses
import re
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vitdeploy.assess.data.folder_listing import LeftOut

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


class CheckResult(NamedTuple):
    """The outcome of a check: its subject, name ("max_drop") and one-line message.

    `status` is "passed", "failed" or "skipped"; also "new" in a gate, for an artifact that its baseline lacks, and
    "error" for a command that ended without an outcome. `seconds` is None if not timed.
    """

    subject: str
    name: str
    status: str
    message: str
    seconds: float | None = None


class Judged(Protocol):
    """A result with an outcome: a comparison of outputs or layers, or a gate's."""

    @property
    def bundle(self) -> str: ...

    @property
    def processor(self) -> str | None: ...

    @property
    def status(self) -> str: ...

    @property
    def check_results(self) -> tuple[CheckResult, ...]: ...

    @property
    def changes(self) -> tuple[str, ...]:
        """Differences from an earlier result, one line each."""
        ...

    @property
    def left_out(self) -> LeftOut | None:
        """Files of the folder that are not among its images; None if no folder was listed."""
        ...


@dataclasses.dataclass(frozen=True, repr=False)
class Assessment(abc.ABC):
    """Result of an assessment; its `repr` is one line.

    Attributes:
        bundle: The bundle's folder.
        processor: Origin of the image processor, one line; None if the bundle does not record it.
        left_out: Files of the folder that are not among its images; None if no folder was listed.
    """

    bundle: str
    processor: str | None = dataclasses.field(default=None, kw_only=True)
    left_out: LeftOut | None = dataclasses.field(default=None, kw_only=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.bundle!r}: {self.brief}>"

    @property
    @abc.abstractmethod
    def brief(self) -> str:
        """The result in a few words."""


@dataclasses.dataclass(frozen=True, repr=False)
class ImageAssessment(Assessment):
    """Result of comparing outputs on images without labels.

    Attributes:
        images: Number of images.
        synthetic: True if no images were given and they were generated.
    """

    images: int
    synthetic: bool

    @property
    def images_text(self) -> str:
        return f"{self.images} {'synthetic ' if self.synthetic else ''}image{'' if self.images == 1 else 's'}"


class ByResult:
    """A comparison of several artifacts, each with a `status` and `check_results`."""

    results: tuple[Any, ...]

    @property
    def status(self) -> str:
        """Outcome, "failed" if any result failed, "skipped" if any was skipped or nothing ran, else "passed"."""
        return overall(result.status for result in self.results)

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        """Checks of every result."""
        return tuple(check for result in self.results for check in result.check_results)

    @property
    def changes(self) -> tuple[str, ...]:
        """Always empty, because a comparison has no earlier result."""
        return ()


def overall(statuses: Iterable[str]) -> str:
    """The outcome of several: "failed" if any failed, "passed" if all passed and there is one, else "skipped"."""
    found = set(statuses)
    return "failed" if "failed" in found else "passed" if found == {"passed"} else "skipped"


def counted(statuses: Sequence[str], noun: str) -> str:
    """A summary such as "14 checks, 2 failed, 1 skipped"."""
    counts = {status: statuses.count(status) for status in ("failed", "new", "skipped")}
    parts = [
        f"{len(statuses)} {noun}{'' if len(statuses) == 1 else 's'}",
        *(f"{count} {status}" for status, count in counts.items() if count),
    ]
    return ", ".join(parts)


def writable(text: str) -> str:
    """The text, with characters replaced that XML or UTF-8 cannot hold: file and class names may contain anything."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
