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
    """An outcome: its subject, name ("max_drop") and, in a line, what was found.

    `status` is "passed", "failed" or "skipped"; of a gate "new", too, for what its baseline does not have; and "error"
    for a command that ended without an outcome. `seconds` is None where no time was taken.
    """

    subject: str
    name: str
    status: str
    message: str
    seconds: float | None = None


class Judged(Protocol):
    """A result with an outcome: a comparison, of outputs or of layers, or a gate's."""

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
        """The files of the folder that are not among its images; None where no folder was listed."""
        ...


@dataclasses.dataclass(frozen=True, repr=False)
class Assessment(abc.ABC):
    """A result of assessing a bundle; its `repr` is one line.

    Attributes:
        bundle: The folder.
        processor: Where the image processor came from, in a line; None where the bundle does not say.
        left_out: The files of the folder that are not among its images; None where no folder was listed.
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
        images: How many.
        synthetic: Whether they were made up, none having been given.
    """

    images: int
    synthetic: bool

    @property
    def images_text(self) -> str:
        return f"{self.images} {'synthetic ' if self.synthetic else ''}images"


class ByResult:
    """A comparison of several, judged by what each came to; they have a `status` and `check_results` of their own."""

    results: tuple[Any, ...]

    @property
    def status(self) -> str:
        """The outcome: "failed" if a result is, else "skipped" if one is or nothing ran, else "passed"."""
        return overall(result.status for result in self.results)

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        """Checks of every result."""
        return tuple(check for result in self.results for check in result.check_results)

    @property
    def changes(self) -> tuple[str, ...]:
        """None: nothing is compared with an earlier comparison."""
        return ()


def overall(statuses: Iterable[str]) -> str:
    """The outcome of several: "failed" if one is, "passed" if all are and there is one, else "skipped"."""
    found = set(statuses)
    return "failed" if "failed" in found else "passed" if found == {"passed"} else "skipped"


def counted(statuses: Sequence[str], noun: str) -> str:
    """Such as "14 checks, 2 failed, 1 skipped"."""
    counts = {status: statuses.count(status) for status in ("failed", "new", "skipped")}
    parts = [
        f"{len(statuses)} {noun}{'' if len(statuses) == 1 else 's'}",
        *(f"{count} {status}" for status, count in counts.items() if count),
    ]
    return ", ".join(parts)


def writable(text: str) -> str:
    """The text, with what no XML or UTF-8 file can hold replaced: names of files and classes are anybody's."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
