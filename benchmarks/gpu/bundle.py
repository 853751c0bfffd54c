"""Prepare what must travel to a GPU machine without a network: wheels in slices, the project, and `run.sh`.

The bundle is the folder `gpu-bundle`: slices that each fit one transfer, their manifest, the project's commit as an
archive, and `run.sh`, which joins, installs and runs them there. Wheels come with the hashes of requirements.txt.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpu.slices import Manifest, cut
from gpu.times import wheels_table

ROOT = Path(__file__).parents[2]
PINS = Path(__file__).with_name("requirements.txt")
NAMES = PINS.with_suffix(".in")
RUN = PINS.with_name("run.sh")
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = ("3.12", "3.11")  # a GPU machine's, and the rehearsal's, for which there is a torch for the CPU
SOURCES = ("tensorrt-rtx", "tensorrt-rtx-cu13")  # pure Python, published without wheels
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
CALL_BYTES = 64 * 2**20  # of the repository's files and a slice, where a call sends both
SLICE_MB = 58
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
_LINE = re.compile(r"^(?P<name>[\w-]+)(==(?P<version>[\w.]+))?  # (?P<reason>.+)$", re.MULTILINE)
_PIN = re.compile(r"^(?P<name>[\w-]+)==[^\n]*\n(    --hash=[^\n]*\n)+", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "gpu-bundle", help="folder of the bundle")
    parser.add_argument("--python", choices=PYTHONS, default=PYTHONS[0], help="version of the machine's Python")
    parser.add_argument("--slice-mb", type=float, help=f"size of a slice, in 10^6 bytes; by default at most {SLICE_MB}")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "gpu-wheels", help="folder of downloads")
    parser.add_argument("--pin", action="store_true", help=f"only rewrite {PINS.name} from {NAMES.name}")
    arguments = parser.parse_args()
    if arguments.pin:
        PINS.write_text(pin(), encoding="utf-8")
        return
    wheels = download(PINS.read_text(encoding="utf-8"), arguments.python, arguments.wheels / arguments.python)
    size = slice_mb(tree_bytes()) if arguments.slice_mb is None else arguments.slice_mb
    manifest = bundle(wheels, arguments.output, arguments.python, int(size * 1e6))
    print(wheels_table(contents(manifest)))


def tree_bytes() -> int:
    """Size of the repository's files that git does not ignore."""
    names = _run("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard").decode()
    paths = [ROOT / name for name in names.rstrip("\0").split("\0")]
    return sum(path.lstat().st_size for path in paths if path.is_symlink() or path.exists())


def slice_mb(tree: int) -> int:
    """Size of the slices that leave room for `tree` bytes and some more in each call, in 10^6 bytes."""
    size = min(SLICE_MB, (CALL_BYTES - tree - 500_000) // 10**6)
    if size < 1:
        raise SystemExit(f"the repository's files, {tree / 1e6:.1f} MB, leave no room for a slice; state --slice-mb")
    return size


def bundle(wheels: Sequence[Path], folder: Path, python: str, slice_bytes: int) -> Manifest:
    """Write a bundle of `wheels` and of the project's commit into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commit = _run("git", "-C", str(ROOT), "rev-parse", "HEAD").decode().strip()
    archive = _run("git", "-C", str(ROOT), "archive", "HEAD")
    (folder / "project.tar.gz").write_bytes(gzip.compress(archive, mtime=0))
    shutil.copy(RUN, folder / RUN.name)
    manifest = Manifest(python, commit, *cut(wheels, folder, slice_bytes))
    manifest.write(folder)
    return manifest


def download(pins: str, python: str, folder: Path) -> list[Path]:
    """Wheels of pinned requirements for one version of Python, in their order; pip checks the hashes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    blocks = {match["name"]: match[0] for match in _PIN.finditer(pins)}
    binary = "".join(block for name, block in blocks.items() if name not in SOURCES)
    source = "".join(block for name, block in blocks.items() if name in SOURCES)
    options = ("--no-deps", "--require-hashes", "-r")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        for text, command in (
            (binary, (*_PIP, "download", *_target(python), "--dest", str(folder))),
            (source, (*_PIP, "wheel", "--no-build-isolation", "--wheel-dir", str(folder))),
        ):
            if text:
                file.seek(0)
                file.truncate()
                file.write(text)
                file.flush()
                _run(*command, *options, file.name)
    found = {package(path): path for path in folder.glob("*.whl")}
    if missing := blocks.keys() - found.keys():
        raise SystemExit(f"pip left no wheel for Python {python} of: {', '.join(sorted(missing))}")
    return [found[name] for name in blocks]


def pin() -> str:
    """Requirements of requirements.in with their versions, and the hashes of all files that PYTHONS need."""
    names = _LINE.findall(NAMES.read_text(encoding="utf-8"))
    wanted = {name: f"{name}{version}" for name, version, *_ in names}
    hashes: dict[str, set[str]] = {name: set() for name in wanted}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        binary = [wanted[name] for name in wanted if name not in SOURCES]
        reports = [_report(binary, *_target(python), "--target", folder) for python in PYTHONS]
        reports.append(_report(SOURCES, "--no-build-isolation", "--no-binary", ",".join(SOURCES)))
    for report in reports:
        for name, version, digest in report:
            versions[name] = version
            hashes[name].add(digest)
    pins = "".join(
        " \\\n".join([f"{name}=={versions[name]}", *(f"    --hash=sha256:{each}" for each in sorted(hashes[name]))])
        + "\n"
        for name in wanted
    )
    return f"# Written by `python -m gpu.bundle --pin` from {NAMES.name} and {CONSTRAINTS.name}.\n{pins}"


def contents(manifest: Manifest) -> list[dict[str, Any]]:
    """Wheels of a bundle: name, bytes, slices that hold them, and why they travel."""
    reasons = {name: reason for name, *_, reason in _LINE.findall(NAMES.read_text(encoding="utf-8"))}
    return [
        {"wheel": wheel.name, "bytes": wheel.bytes, "slices": manifest.slices_of(wheel),
         "reason": reasons[package(Path(wheel.name))]}
        for wheel in manifest.wheels
    ]  # fmt: skip


def package(wheel: Path) -> str:
    """Normalized name of a wheel's package."""
    return re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()


def _target(python: str) -> list[str]:
    options = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    return [*options, *(word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64"))]


def _report(requirements: Iterable[str], *options: str) -> list[tuple[str, str, str]]:
    """Name, version and SHA-256 of the file that pip would install for each requirement."""
    command = (
        *_PIP,
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--report",
        "-",
        "-c",
        str(CONSTRAINTS),
    )
    report = json.loads(_run(*command, *options, *requirements))
    return [
        (re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(), item["metadata"]["version"],
         item["download_info"]["archive_info"]["hashes"]["sha256"])
        for item in report["install"]
    ]  # fmt: skip


def _run(*command: str) -> bytes:
    """Output of a command; its messages end this program if it fails."""
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}  # wheels made here have the same bytes each time
    result = subprocess.run(command, capture_output=True, check=False, env=environ)
    if result.returncode:
        said = result.stderr.decode(errors="replace").splitlines()[-12:]
        advice = ["pip needs a package index here; only the GPU machine needs no network"] if "pip" in command else []
        raise SystemExit(
            "\n".join([*said, f"exit code {result.returncode} from: {' '.join(command[:5])} ...", *advice])
        )
    return result.stdout


if __name__ == "__main__":
    main()
