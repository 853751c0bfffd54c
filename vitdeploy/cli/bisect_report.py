"""`vitdeploy compare --bisect`: what must stay in float32, as a table or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.number_options import COUNT
from vitdeploy.cli.output import print_table, print_text
from vitdeploy.errors import InputError
from vitdeploy.files.json_text import strict_json
from vitdeploy.files.regular_file import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitdeploy.assess.debug.bisection import Bisection


def lower_precision_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `--bisect` and `--sensitivity`, which take the same graph."""
    options = (
        click.option("--bisect", is_flag=True, help="Find the nodes that must stay float32 for --precision to pass."),
        click.option("--sensitivity", is_flag=True, help="Measure each layer alone in --precision."),
        click.option(
            "--precision", metavar="fp16|bf16|int8|fp8",
            help="Of --bisect, fp16 by default, and of --sensitivity, int8 by default.",
        ),
        click.option(
            "--max-images", type=COUNT,
            help="Of --bisect, 16 by default, and of --sensitivity, 32 by default: how many of --images.",
        ),
        click.option(
            "--max-runs", type=click.IntRange(2, COUNT.max), help="Of --bisect: sets of nodes to run; 200 by default."
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def kept_nodes(path: str) -> tuple[str, ...]:
    """The names of the nodes in a file that `vitdeploy compare --bisect --json` printed.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        names = tuple(node["name"] for node in strict_json(read_regular(path))["kept"])
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError(f"{path} must hold what vitdeploy compare --bisect --json prints; make it again") from exc
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{path} must hold names of nodes under kept, holds {str(names)[:80]}; make it again")
    return names


def print_bisection(result: Bisection) -> None:
    """Print which nodes must stay in float32."""
    kind = "synthetic images" if result.synthetic else "images"
    print_text(
        f"{result.bundle} in {result.precision} against the reference, {result.images} {kind}: {result.status}\n"
        f"{result.summary}\n"
        f"largest difference {result.error_without:.2e} without, {result.error:.2e} with them in float32; "
        f"tolerance {result.tolerance:g}; {result.runs} runs"
    )
    if result.kept:
        print_table("", ("part", "operator", "node"), [(node.part, node.op_type, node.name) for node in result.kept])
