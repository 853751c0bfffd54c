"""Timed settings (an artifact, its backend and run-time options) and loads (batch and image size)."""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Union, get_args, get_origin

from vitdeploy.assess.metrics.latency import setting_name
from vitdeploy.assess.runs.targets import REFERENCE, Selected, select
from vitdeploy.errors import UsageError, check_count
from vitdeploy.runtimes import BACKENDS, runtime_class
from vitdeploy.system.argument_types import hints_of
from vitdeploy.system.cpu import MOST_THREADS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime

_BOOLS = {"true": True, "false": False}


class Load(NamedTuple):
    """Images per run, and their (height, width) in pixels; None for the model's own."""

    batch_size: int = 1
    image_size: tuple[int, int] | None = None

    def __str__(self) -> str:
        size = "" if self.image_size is None else f", images of {self.image_size[0]}x{self.image_size[1]}"
        return f"batch size {self.batch_size}{size}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """An artifact, its backend and run-time options.

    Attributes:
        selected: Artifact and backend.
        options: Options of the backend that differ from its defaults, by name; see the `options_type` of its runtime.
        threads: Threads of the backend; 0 for its default.

    Raises:
        UsageError: If an option is unknown or invalid, or the backend ignores the number of threads.
        UnavailableError: If there are options, and the backend's engine is not installed or does not load.
    """

    selected: Selected
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    threads: int = 0

    def __post_init__(self) -> None:
        check_count("threads", self.threads, 0, MOST_THREADS)
        backend, option = self.selected.backend, self._thread_option
        if self.threads and backend and option is None:
            heeding = [name for name, row in BACKENDS.items() if row.threads_option is not None]
            raise UsageError(
                f"threads has no effect on {backend}, only on {', '.join(heeding)}",
                what="threads", expected=heeding, found=backend, hint="leave it out",
            )  # fmt: skip
        if self.threads and option and option in self.options:
            raise UsageError(
                f"threads and {option} of {backend} are the same option",
                what="threads", found=(self.threads, self.options[option]), hint="give one of them",
            )  # fmt: skip
        if self.options:
            runtime_class(backend).options_type.of(backend, self.options)

    def __hash__(self) -> int:
        return hash((self.selected, str(self)))

    @property
    def name(self) -> str:
        """See `setting_name`."""
        return setting_name(self.selected.backend, self.selected.precision, self.changes)

    @property
    def changes(self) -> str:
        """Threads and options that differ from the defaults, such as "threads=1,allow_spinning=false"."""
        given = {**({"threads": self.threads} if self.threads else {}), **self.options}
        return ",".join(f"{name}={_written(value)}" for name, value in given.items())

    def with_threads(self, threads: int) -> Setting:
        """This setting with a number of threads, unless it states one; UsageError as `Setting`."""
        stated = self.threads or self._thread_option in self.options
        return self if stated else dataclasses.replace(self, threads=threads)

    def __str__(self) -> str:
        return f"{self.selected}{', ' if self.changes else ''}{self.changes.replace(',', ', ')}"

    @property
    def all_options(self) -> dict[str, Any]:
        """The options with the number of threads, as the backend takes them."""
        option = self._thread_option
        return {**self.options, **({option: self.threads} if self.threads and option else {})}

    @property
    def is_reference(self) -> bool:
        return self.selected.artifact == REFERENCE

    def open(self, bundle: Bundle, device: str, *, any_size: bool = False) -> Runtime:
        """Open the artifact; raises as `Selected.open`.

        Args:
            bundle: Its bundle.
            device: "cpu", "cuda" or "cuda:1".
            any_size: True to open the reference for images of every size, instead of those that its artifacts take.
        """
        every = {"dynamic_image_size": True} if any_size and self.is_reference else {}
        return self.selected.open(bundle, {**every, **self.all_options}, device=device)

    @property
    def _thread_option(self) -> str | None:
        row = BACKENDS.get(self.selected.backend)
        return None if row is None else row.threads_option

    def to_dict(self) -> dict[str, Any]:
        return {**self.selected._asdict(), "options": dict(self.options), "threads": self.threads}


def thread_counts(threads: int | Sequence[int]) -> tuple[int, ...]:
    """The different numbers of one or several."""
    return tuple(dict.fromkeys([threads] if isinstance(threads, int) else threads))


def settings_of(
    bundle: Bundle,
    backends: Sequence[str] | None = None,
    texts: Sequence[str] = (),
    threads: Iterable[int] = (0,),
) -> list[Setting]:
    """Every combination of artifacts and numbers of threads, the artifacts in the order of `select`.

    Args:
        bundle: The bundle.
        backends: As in `select`; if there are texts, None selects only these.
        texts: Settings such as "onnxruntime:int8,intra_op_threads=1", see `read_setting`.
        threads: Numbers of threads; 0 for each backend's default.

    Raises:
        UsageError, UnavailableError: As `select`, `read_setting` and `Setting`.
    """
    settings = [Setting(selected) for selected in select(bundle, backends)] if backends or not texts else []
    settings += [setting for text in texts for setting in read_setting(bundle, text)]
    counts = tuple(threads) or (0,)
    return list(dict.fromkeys(setting.with_threads(count) for setting in settings for count in counts))


def read_setting(bundle: Bundle, text: str) -> list[Setting]:
    """Parse BACKEND[:PRECISION][,OPTION=VALUE...], such as "onnxruntime:int8,intra_op_threads=1,allow_spinning=false".

    Options are the fields of the backend's options. Several names are joined by "+". Without a precision, the settings
    are those of every artifact that the backend runs.

    Raises:
        UsageError: If the backend, an option or a value is invalid.
        UnavailableError: If there are options, and the backend's engine is not installed or does not load.
    """
    name, *rest = (part.strip() for part in text.split(","))
    selection = select(bundle, [name])
    given: dict[str, Any] = {}
    kind: Any = runtime_class(selection[0].backend).options_type if rest else None
    hints = {} if kind is None else hints_of(kind)
    for part in rest:
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not option or option in given:
            problem = "is given twice" if option in given else "is not OPTION=VALUE"
            raise UsageError(f"{part!r:.80} in the setting {text!r:.80} {problem}", what="settings", found=text)
        if option not in hints:
            known = tuple(hints)
            raise UsageError(
                f"options of the {selection[0].backend} backend are {', '.join(known)}; got {option!r:.80}",
                what=option, expected=known, found=option,
            )  # fmt: skip
        given[option] = _value(option, value, hints[option])
    return [Setting(selected, given) for selected in selection]


def _value(name: str, text: str, hint: Any) -> Any:
    """A value of the annotated type."""
    kinds = {get_origin(kind) or kind for kind in _parts(hint)}
    if bool in kinds and text.lower() in _BOOLS:
        return _BOOLS[text.lower()]
    if int in kinds and re.fullmatch("-?[0-9]{1,18}", text):
        return int(text)
    if float in kinds and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text):
        return float(text)
    if Sequence in kinds:
        return tuple(text.split("+"))
    if kinds & {bool, int, float}:
        expected = "true or false" if bool in kinds else "a whole number" if int in kinds else "a number"
        raise UsageError(f"{name} takes {expected}, got {text!r:.80}", what=name, expected=expected, found=text)
    if Mapping in kinds:
        raise UsageError(f"{name} takes a mapping, which only Python can give", what=name, found=text)
    return text


def _parts(hint: Any) -> Iterator[Any]:
    """The members of a union; else the type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        yield from get_args(hint)
    else:
        yield hint


def _written(value: Any) -> str:
    """A value as `read_setting` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
