"""Command lines: numbers out of range, odd texts and odd paths in every option that a command has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from fuzz.cases import DAMAGED, FAILED, PASSED, UNAVAILABLE, USAGE, Case
from fuzz.damage import choose
from vitdeploy.cli import COMMANDS, cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

_NUMBERS = (
    "-1", "0", "1", "2", "-0", "0.5", "-0.5", "1e400", "-1e400", "nan", "inf", "-inf", "NaN%", "101", "100", "99%",
    "0.5%", "-1%", "1e-320", "9" * 30, "9" * 5000, str(2**31), str(2**63), str(2**64), "0x10", "1_000", "१", "1,5",
    "", " ", "+1", "1e3", "%", "1/255",
)  # fmt: skip
_TEXTS = (
    "", " ", "x", "-", "--", "é", "\udcff", "a\nb", "a\x1b[31mb", "x" * 5000, "x" * 300_000, "../..", "/", ".", "%s",
    "{}", "~", "None", "onnxruntime:fp16", "onnxruntime:", ":fp32", "torch:fp32", "cuda", "cuda:99", "cuda:-1", "cpu:1",
    "fp64", "1:2", "1:2:3", "3:2:1", "0:0:0", "-1:1:1", "1:8:99999999999", "32x32", "0x0", "-1x1", "32", "1x1:2x2",
    "99999999x99999999", "shortest:0", "shortest:-1", "off", "1,1,1", "1,2", ",", "nan,nan,nan", "0,0,0", "1e400",
    "1,8", "1,1", "logits", "hidden_states", "user/x@y", "http://x", "torchscript:fp32",
)  # fmt: skip
_PATHS = (
    "", ".", "..", "/", "/dev/null", "/dev/zero", "/dev/full", "nowhere", "nowhere/x", "x" * 300, "x/" * 2500,
    "\udcff", "a\nb", "-", "/proc/self/mem", "/proc/self/environ", "/root/x", "~", "data/cat", "file", "folder",
    "link", "loop", "pipe", "é/é", "*", "file/x",
)  # fmt: skip
# Not run to their end: they start processes and servers, or take seconds; what comes before their work is.
_HEAVY = frozenset({"benchmark", "debug", "demo", "doctor", "export", "serve", "tune"})


class Arguments:
    """One command with one to three odd arguments.

    Oracle: one of the five exit codes; of a heavy command not 0, since one of its arguments is never right.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        context = click.Context(cli)
        self._commands = {name: cli.get_command(context, name) for name in COMMANDS}
        group = self._commands.pop("debug")
        assert isinstance(group, click.Group)
        self._commands |= {f"debug {name}": command for name, command in group.commands.items()}
        self._right: dict[str, Callable[[], list[str]]] = {
            "predict": lambda: ["bundle", "image.png"],
            "embed": lambda: ["bundle", "image.png", "--output", "vectors.npy"],
            "compare": lambda: ["bundle", "--backend", "onnxruntime", "--golden", str(base / "golden.npz")],
            "evaluate": lambda: ["bundle", "--data", "data", "--backend", "onnxruntime"],
            "gate": lambda: ["bundle", "--data", "data", "--backend", "onnxruntime"],
            "inspect": lambda: ["bundle"],
            "verify": lambda: ["bundle"],
            "sign": lambda: ["bundle", "--private-key", "file"],
            "triton": lambda: ["bundle", "models"],
            "serve": lambda: ["bundle", "--triton", "nowhere"],
            "pack": lambda: ["bundle", "--artifact", "onnx-fp32", "-o", "packed"],
            "push": lambda: ["nowhere", "org/name"],
            "benchmark": lambda: ["nowhere"],
            "tune": lambda: ["nowhere", "--data", "data", "--min-agreement", "0.9"],
            **{f"debug {name}": lambda: ["nowhere"] for name in group.commands},
            "export": lambda: ["--model", "nowhere"],
            "doctor": lambda: ["x"],
            "demo": lambda: ["x"],
        }

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        for name in ("bundle", "data"):
            (folder / name).symlink_to(self._base / name, target_is_directory=True)
        (folder / "image.png").symlink_to(self._base / "data" / "cat" / "0.png")
        (folder / "file").write_text("{}")
        (folder / "folder").mkdir()
        (folder / "link").symlink_to("nowhere")
        (folder / "loop").symlink_to("loop")
        os.mkfifo(folder / "pipe")
        name = choose(rng, (*self._commands, "predict", "gate", "compare", "evaluate", "export"))
        args, command = self._right[name](), self._commands[name]
        assert command is not None
        odd = []
        for _ in range(int(rng.integers(1, 4))):
            parameter = choose(rng, command.params)
            value = self._value(rng, parameter)
            odd.append(f"{parameter.opts[0]} {value!r:.40}")
            if isinstance(parameter, click.Argument):
                positions = [at for at, arg in enumerate(args) if not arg.startswith("-")]
                args[choose(rng, positions[:2] or [0])] = value
            elif isinstance(parameter, click.Option) and parameter.is_flag:
                args.append(parameter.opts[0])
            else:
                args += (
                    [f"{parameter.opts[-1]}={value}"] if rng.random() < 0.7 and value else [parameter.opts[-1], value]
                )
        if rng.random() < 0.05:
            args.append(choose(rng, ("--x", "-x", "--", "extra", "--json=1", "")))
        allowed = frozenset({USAGE, UNAVAILABLE, DAMAGED})
        if name.split()[0] not in _HEAVY or "--help" in args:
            allowed |= {PASSED, FAILED}
        return Case(f"{name}: {'; '.join(odd)}", (*name.split(), *args), allowed)

    @staticmethod
    def _value(rng: np.random.Generator, parameter: click.Parameter) -> str:
        kind = parameter.type
        if isinstance(kind, (click.types.IntParamType, click.types.FloatParamType)):
            return choose(rng, _NUMBERS)
        if isinstance(kind, click.Path):
            return choose(rng, _PATHS)
        if isinstance(kind, click.Choice) and rng.random() < 0.7:
            return str(choose(rng, list(kind.choices)))
        return choose(rng, choose(rng, (_NUMBERS, _TEXTS, _TEXTS)))
