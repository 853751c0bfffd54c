"""Put something that is no file, or another file, where a file belongs."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from fuzz.damage import choose

if TYPE_CHECKING:
    import numpy as np

KINDS = ("missing", "folder", "pipe", "dangling", "loop", "device", "socket", "empty", "unreadable", "copy", "long")


def replace(rng: np.random.Generator, path: Path) -> tuple[str, bool]:
    """Replace a file; in words, and whether what is read there is still the same."""
    kind = choose(rng, KINDS)
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to(choose(rng, ("/dev/zero", "/dev/null", "/dev/full", "/dev/random", "/dev/tty")))
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name has 107 bytes at most
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "empty":
        path.touch()
    elif kind == "unreadable":
        path.write_bytes(content)
        path.chmod(0)
        if os.access(path, os.R_OK):  # root reads everything
            return "link: unreadable, for others than root", True
    elif kind == "copy":
        outside = path.parent / f"{path.name}.real"
        outside.write_bytes(content)
        path.symlink_to(outside.name)
        return "link: to the same content", True
    elif kind == "long":
        path.symlink_to("x" * 200 + "/" + "y" * 200)
    return f"no file: {kind}", False


def copy_tree(source: Path, target: Path) -> Path:
    """A copy whose files are hard links: whoever alters one replaces it."""
    return shutil.copytree(source, target, copy_function=os.link)


def rewrite(path: Path, content: bytes) -> None:
    """Give a file other content, not those that it shares it with."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
