"""Mutation tests of the engine runtime, and the test that detects each; `make mutations` runs them on copies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from common import document, parser, save

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("test_runtime_on_fake.py", "test_compatibility.py", "test_engine_api.py")
LIMIT_S = 600  # a mutation that makes the tests hang counts as detected


class Mutation(NamedTuple):
    """One edit.

    Attributes:
        module: Module in `runtimes/engine`.
        name: The broken rule.
        before: Text that occurs once in the module.
        after: Replacement text.
    """

    module: str
    name: str
    before: str
    after: str


MUTATIONS = [
    Mutation(**json.loads(line))
    for line in Path(__file__).with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
]


def notice(mutation: Mutation) -> dict[str, str]:
    """The first test that fails with a mutation; "" if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vitdeploy", "exporters", "runtimes", "tests", "pyproject.toml"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        if (ROOT / ".venvs").exists():
            Path(folder, ".venvs").symlink_to((ROOT / ".venvs").resolve())
        module = Path(folder, "runtimes", "engine", f"{mutation.module}.py")
        text = module.read_text(encoding="utf-8")
        if text.count(mutation.before) != 1:
            raise SystemExit(
                f"{mutation.module}.py has {mutation.before!r} {text.count(mutation.before)} times, not once"
            )
        module.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        files = [f"tests/runtimes/engine/{name}" for name in TESTS]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
        environ = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            run = subprocess.run(
                command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return {"module": mutation.module, "mutation": mutation.name, "noticed_by": f"none within {LIMIT_S} s"}
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    noticed = failed[0].split("::", 1)[-1].split(" - ")[0] if failed else "the import" if run.returncode else ""
    return {"module": mutation.module, "mutation": mutation.name, "noticed_by": noticed}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", default="", help="mutations with this in their names")
    options.add_argument("--jobs", type=int, default=2, help="mutations at a time")
    arguments = options.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = []
        for row in pool.map(notice, [each for each in MUTATIONS if arguments.only in each.name]):
            rows.append(row)
            print(f"{row['module']}: {row['mutation']}: {row['noticed_by'] or 'SURVIVED'}", flush=True)
    save(arguments, document(arguments, {"mutations": rows}))
    raise SystemExit(not all(row["noticed_by"] for row in rows))


if __name__ == "__main__":
    main()
