"""The part of `run.sh` on the GPU machine that is not shell: receive slices, install their wheels, show the times.

Needs pip and the standard library alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomllib

from gpu.slices import MANIFEST, join, problem, read_manifest
from gpu.times import Times, table, write

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    receiving = commands.add_parser("receive", help="check the slices of BUNDLE, and move them to STORE")
    receiving.add_argument("bundle", type=Path)
    receiving.add_argument("store", type=Path)
    commands.add_parser("install", help="join wheels, and install them in STORE/site").add_argument("store", type=Path)
    times = commands.add_parser("times", help="write OUT/gpu_times.json, and print its table")
    times.add_argument("store", type=Path)
    times.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.store.mkdir(parents=True, exist_ok=True)
    if arguments.command == "receive":
        receive(arguments.bundle, arguments.store)
    elif arguments.command == "install":
        install(arguments.store)
    else:
        print(table(write(Times(arguments.store), arguments.out)))


def receive(bundle: Path, store: Path) -> None:
    """Move the slices that lie in `bundle` to `store`. A damaged one is removed, and ends the program."""
    times, manifest = Times(store), read_manifest(bundle)
    transfer = times.since_last()  # of all slices of this call
    shutil.copy(bundle / MANIFEST, store / MANIFEST)
    problems = []
    for expected in manifest.slices:
        path = bundle / expected.name
        if not path.exists():
            continue
        times.add(
            {"step": f"transfer {expected.name}", "bytes": path.stat().st_size, "seconds": transfer, "result": "passed"}
        )
        transfer = None
        with times.step(f"check {expected.name}") as row:
            reason = problem(bundle, expected)
            if reason:
                path.unlink()
                problems.append(reason)
                row["result"], row["reason"] = "damaged", reason
            else:
                shutil.move(path, store / expected.name)
    there = [file.name for file in manifest.slices if (store / file.name).exists()]
    print(f"{len(there)} of {len(manifest.slices)} slices are here: {', '.join(there) or 'none'}", flush=True)
    if problems:
        raise SystemExit("\n".join([*problems, "send again what is damaged"]))


def install(store: Path) -> None:
    """Join the wheels of the slices that are there, and install those that this Python lacks into `store/site`."""
    times, manifest = Times(store), read_manifest(store)
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != manifest.python:
        raise SystemExit(
            f"the wheels are for Python {manifest.python}, this is {running}: "
            f"make the bundle with --python {running}, or set PYTHON"
        )
    with times.step("join") as row:
        wheels, problems = join(manifest, store, store / "wheels")
        lacking = [wheel.name for wheel in manifest.wheels if store / "wheels" / wheel.name not in wheels]
        row["bytes"] = sum(wheel.stat().st_size for wheel in wheels)
        row["reason"] = "; ".join([*problems, *(f"not installed: {name}" for name in lacking)])
        if row["reason"]:
            print(row["reason"].replace("; ", "\n"), flush=True)
    with times.step("install") as row:
        sys.path.extend(
            str(wheel) for wheel in wheels if wheel.name.startswith("packaging-")
        )  # if the machine has none
        site = store / "site"
        shutil.rmtree(site, ignore_errors=True)
        needed = [wheel for wheel in wheels if is_needed(wheel)]
        row["bytes"] = sum(wheel.stat().st_size for wheel in needed)
        own = [wheel.name for wheel in wheels if wheel not in needed]
        print("not installed, this machine's version will do:", *own or ["none"], flush=True)
        failed = _pip(needed, site) and [wheel.name for wheel in needed if _pip([wheel], site)]
        _link_cuda(site)
        if failed:
            row["reason"] = f"pip could not install {', '.join(failed)}"
            raise SystemExit(row["reason"])


def is_needed(wheel: Path) -> bool:
    """Whether no version of the wheel's package is here, or one that pyproject.toml does not allow."""
    name = wheel.name.split("-")[0]
    try:
        own = version(name)
    except PackageNotFoundError:
        return True
    canonical: Any = importlib.import_module("packaging.utils").canonicalize_name
    return any(
        canonical(required.name) == canonical(name) and not required.specifier.contains(own, prereleases=True)
        for required in _requirements()
    )


def _requirements() -> list[Any]:
    """Requirements of the project, those of all extras included."""
    requirement: Any = importlib.import_module("packaging.requirements").Requirement
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return [
        requirement(line)
        for lines in [project["dependencies"], *project["optional-dependencies"].values()]
        for line in lines
    ]


def _link_cuda(site: Path) -> None:
    """Put NVIDIA's libraries, which came with torch, beside ONNX Runtime: it looks for them there alone."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if folders and site.is_dir() and not (site / "nvidia").exists():
        (site / "nvidia").symlink_to(folders[0])


def _pip(wheels: Sequence[Path], site: Path) -> int:
    """Exit code of pip, which installs `wheels` from their files alone."""
    options = ("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *options]
    return subprocess.run([*command, *map(str, wheels)], check=False).returncode if wheels else 0


if __name__ == "__main__":
    main()
