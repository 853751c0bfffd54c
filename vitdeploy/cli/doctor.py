"""`vitdeploy doctor`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vitdeploy.cli.command import command, option
from vitdeploy.cli.output import json_option, print_json, print_table, print_text, size
from vitdeploy.cli.table import by_reason
from vitdeploy.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.assess.environment.backends import BackendCheck
    from vitdeploy.assess.environment.extras import Extra
    from vitdeploy.assess.environment.gpus import GpuDescription
    from vitdeploy.assess.environment.licenses import PackageLicense


@command(examples=("doctor", "doctor --licenses", "doctor --json"))
@option("--licenses", "with_licenses", is_flag=True, help="Also list the licenses of installed packages.")
@json_option
def doctor(with_licenses: bool, as_json: bool) -> None:
    """Show the backends that work here, and what the others need.

    Each backend runs a small model on every available device. Exits with 3 if no backend is ready.
    """
    from vitdeploy.assess.environment.backends import check_backends
    from vitdeploy.assess.environment.caches import caches
    from vitdeploy.assess.environment.cpu_features import fast_precisions
    from vitdeploy.assess.environment.extras import extras
    from vitdeploy.assess.environment.licenses import licenses
    from vitdeploy.assess.environment.machine import machine

    stated = licenses() if with_licenses else None
    checks, here, precisions, offered, places = check_backends(), machine(), fast_precisions(), extras(), caches()
    gpus, gpu_problem = _gpus()
    if as_json:
        data: dict[str, Any] = {
            "machine": here,
            "backends": [check.to_dict() for check in checks],
            "fast_precisions": [item.to_dict() for item in precisions],
            "gpus": [gpu.to_dict() for gpu in gpus],
            "extras": [extra.to_dict() for extra in offered],
            "caches": [cache.to_dict() for cache in places],
        }
        if stated is not None:
            data["licenses"] = [item.to_dict() for item in stated]
        print_json(data)
    else:
        facts = [(name, here[name]) for name in ("vitdeploy", "python", "system", "cpu")]
        facts += [(f"fast {item.precision}", str(item)) for item in precisions]
        facts.append(("threads", _with_reason(here["default threads"])))
        facts += [(f"gpu {index}", str(gpu)) for index, gpu in enumerate(gpus)] or [("gpu", gpu_problem)]
        print_table("machine", ("", ""), facts)
        _print_backends(checks)
        _print_extras(offered)
        _print_versions(here)
        rows = [(cache.content, str(cache.folder or "no home folder"), size(cache.size_bytes)) for cache in places]
        moved = [f"{cache.content}: set {cache.variable} for another folder" for cache in places]
        print_table("\ncaches", ("content", "folder", "size"), rows, moved)
        if stated is not None:
            _print_licenses(stated)
    sys.exit(0 if any(check.ready for check in checks) else 3)


def _gpus() -> tuple[tuple[GpuDescription, ...], str]:
    """The GPUs, and the problem if there are none."""
    from vitdeploy.assess.environment.gpus import describe_gpus

    try:
        return describe_gpus(), "none (no NVIDIA driver is installed)"
    except DeviceError as exc:
        return (), str(exc)


def _print_backends(checks: Sequence[BackendCheck]) -> None:
    from vitdeploy.assess.environment.backends import BUILDS_ONLY, LISTED_ONLY

    shown = [check for check in checks if check.state != LISTED_ONLY]
    rows = [
        (check.backend, check.device.removesuffix("ExecutionProvider"), check.state, check.engine.rpartition(" ")[2])
        for check in shown
    ]
    notes = [
        (check.backend, "copy the engines to a machine with an NVIDIA GPU to run them")
        if check.state == BUILDS_ONLY
        else (check.backend, check.note)
        for check in shown
        if not check.ready
    ]
    print_table("\nbackends", ("backend", "device", "state", "version"), rows, by_reason(notes))


def _print_extras(offered: Sequence[Extra]) -> None:
    if not offered:
        print_text("\nextras: unknown, for vitdeploy was not installed by pip")
        return
    rows = [(extra.name, "installed" if extra.installed else "not installed", extra.purpose) for extra in offered]
    missing = [
        f"{extra.name} lacks {', '.join(extra.missing)}; run: {extra.install_line}"
        for extra in offered
        if not extra.installed
    ]
    print_table("\nextras", ("extra", "state", "to"), rows, missing)


def _print_versions(here: dict[str, str]) -> None:
    from vitdeploy.assess.environment.machine import PACKAGES

    print_text("\nversions: " + ", ".join(f"{name} {here[name]}" for name in PACKAGES if name in here))


def _print_licenses(stated: Sequence[PackageLicense]) -> None:
    rows = [(f"{item.package} {item.version}", item.license, "yes" if item.direct else "") for item in stated]
    note = "vitdeploy itself: Apache-2.0. Packages state their license themselves; read it before you ship them."
    print_table("\nlicenses", ("package", "license", "direct"), rows, [note])


def _with_reason(threads: str) -> str:
    """The number of threads, with the reason in brackets."""
    count, _, reason = threads.partition(": ")
    return f"{count} ({reason})" if count.isdigit() else threads
