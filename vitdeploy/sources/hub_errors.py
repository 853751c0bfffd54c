"""Convert huggingface_hub's errors to vitdeploy's: one line each, with the remedy."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from vitdeploy.errors import CheckpointError, HubError, OutputError, UsageError, first_line
from vitdeploy.sources.hub_settings import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOGIN = "pass a token that may read it, or run: hf auth login"


class ForeignAnswerError(OSError):
    """The server's answer is not one of the Hub's."""


def network_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a request; the HTTP library is requests, httpx or httpx2, by huggingface_hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    return (OSError, json.JSONDecodeError, RuntimeError, http_error)  # RuntimeError: raised by hf_xet


@contextlib.contextmanager
def hub_errors(model: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Convert huggingface_hub's exceptions to a line with the remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as exc:
        raise UsageError(
            f"'{model}' is neither a folder nor a Hub id, 'name' or 'organization/name'", what="model", found=model
        ) from exc
    except errors.GatedRepoError as exc:
        hint = f"ask for access at {endpoint}/{model}, then {_LOGIN}"
        raise HubError(f"'{model}' is gated", what=model, where=endpoint, hint=hint) from exc
    except errors.RepositoryNotFoundError as exc:
        raise CheckpointError(
            f"no folder, and no model at {endpoint}, is named '{model}'",
            what=model, where=endpoint, hint=f"check the name, or if it is private {_LOGIN}",
        ) from exc  # fmt: skip
    except errors.RevisionNotFoundError as exc:
        raise CheckpointError(
            f"'{model}' at {endpoint} has no revision '{revision}'", what="revision", where=endpoint, found=revision
        ) from exc
    except ImportError as exc:
        raise _no_proxy(endpoint, exc) from exc
    except network_errors() as exc:
        if isinstance(exc, OSError) and exc.errno is not None:
            place = f" ({exc.filename!s:.400})" if exc.filename else ""
            raise OutputError(
                f"cannot write '{model}' to the Hub's cache: {exc.strerror}{place}",
                what=model, where=exc.filename, found=exc.strerror,
                hint="make room, or choose another folder: HF_HOME, or the argument cache_dir",
            ) from exc  # fmt: skip
        why = reason(exc)
        raise HubError(
            f"cannot get '{model}' from {endpoint} ({why})",
            what=model, where=endpoint, found=why,
            hint=_LOGIN if is_refusal(exc) else "try again, or pass a local folder",
        ) from exc  # fmt: skip


@contextlib.contextmanager
def push_errors(name: str, endpoint: str) -> Iterator[None]:
    """As `hub_errors`, for writes to the repository `name`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as exc:
        raise UsageError(f"'{name}' is no Hub id, 'name' or 'organization/name'", what="name", found=name) from exc
    except ImportError as exc:
        raise _no_proxy(endpoint, exc) from exc
    except network_errors() as exc:
        status = _status(exc)
        problem, hint = f"cannot push to '{name}' at {endpoint} ({reason(exc)})", "try again"
        if status == 400:
            problem, hint = f"{endpoint} refuses the push: {first_line(exc.__cause__ or exc)}", "correct that"
        elif status == 401:
            problem, hint = f"{endpoint} does not accept the token", "pass another one, or run: hf auth login"
        elif status == 403:
            problem, hint = f"the token may not write to '{name}' at {endpoint}", "pass one that may, or another name"
        elif status == 412:
            problem = f"somebody else has written to '{name}' at {endpoint} meanwhile"
        what = "token" if status == 401 else name
        raise HubError(problem, what=what, where=endpoint, found=reason(exc), hint=hint) from exc


def _no_proxy(endpoint: str, exc: ImportError) -> HubError:
    return HubError(
        f"cannot connect to {endpoint} by this proxy ({first_line(exc)})",
        what="ALL_PROXY", where=endpoint, hint="install the package, or unset ALL_PROXY",
    )  # fmt: skip


def _status(exc: BaseException | None) -> int | None:
    """HTTP status of an answer, or of the one that caused the error."""
    while exc is not None:
        response = getattr(exc, "response", None)
        if response is not None:
            return int(response.status_code)
        exc = exc.__cause__
    return None


def is_refusal(exc: Exception) -> bool:
    """Distinguish the Hub's refusal, which a cached copy must not hide, from a failure to answer."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(exc, HfHubHTTPError) and exc.response is not None and exc.response.status_code in {401, 403, 404}


def reason(exc: Exception) -> str:
    # If huggingface_hub finds no cached file to fall back on, or an upload fails, only the cause has the reason.
    cause = exc.__cause__ if isinstance(exc, FileNotFoundError | RuntimeError) and exc.__cause__ else exc
    if isinstance(cause, json.JSONDecodeError | ForeignAnswerError):
        return f"its answer is not the Hub's; perhaps the network has a login page: {first_line(cause)}"
    return without_password(f"{type(cause).__name__}: {first_line(cause)}")
