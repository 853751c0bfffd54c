"""`vitdeploy doctor`."""

from __future__ import annotations

import sys

from vitdeploy.cli.command import command
from vitdeploy.cli.output import json_option, print_json, print_table
from vitdeploy.cli.table import by_reason


@command(examples=("doctor", "doctor --json"))
@json_option
def doctor(as_json: bool) -> None:
    """Try every backend on every device that it knows here; say what the others need.

    Exits with 3 if no backend is ready.
    """
    from vitdeploy.assess.benchmark.environment import check_backends, machine

    checks, here = check_backends(), machine()
    if as_json:
        print_json({"machine": here, "backends": [check.to_dict() for check in checks]})
    else:
        print_table("machine", ("", ""), here.items())
        rows = [(check.backend, check.device, "ready" if check.ready else "not ready") for check in checks]
        notes = [
            (f"{check.backend} on {check.device}" if check.device else check.backend, check.note)
            for check in checks
            if check.note
        ]
        print_table("\nbackends", ("backend", "device", "state"), rows, by_reason(notes))
    sys.exit(0 if any(check.ready for check in checks) else 3)
