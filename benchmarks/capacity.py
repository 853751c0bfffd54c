"""Throughput, cost and number of machines for a load, computed from recorded `vitdeploy benchmark ... --json`.

    vitdeploy benchmark BUNDLE --backend onnxruntime --scenario offline --batch-sizes 1 --json > offline.json
    vitdeploy benchmark BUNDLE --backend onnxruntime --scenario server --p99 50ms --json > server.json
    python benchmarks/capacity.py offline.json --server server.json --price 1.00 --rate 1000

The model measures nothing and knows no prices: see docs/guides/capacity.md for its formulas and limits.
"""

from __future__ import annotations

import argparse
import dataclasses
import decimal
import json
import math
from pathlib import Path
from typing import Any

from markdown_table import markdown
from recorded_throughput import Measurement, choose, read_results

from vitdeploy.errors import UsageError, VitDeployError

_PERCENTILE = 0.99
_HIGHEST = 0.95  # utilization that a plan should have: above it, a small change of the rate makes queues long
_LONGEST_WAIT = 60  # in service times; at 95 % utilization, 99 % of the queries wait less than 45
_DIGITS = 120


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine, and what an hour of it costs.

    Attributes:
        processor: "core" or "GPU".
        processors: Number of them that all copies use.
        copies: Copies of the measured process that it runs, each on processors of its own.
        price: Price of the machine per hour; None if unknown.
    """

    processor: str
    processors: int
    copies: int
    price: float | None


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Rate, cost and machines at one throughput.

    Attributes:
        basis: Where the throughput comes from.
        images_per_second: Throughput of a machine.
        share: Throughput relative to offline.
        per_processor: Images per second of a core, or of a GPU.
        machines: Number of machines for the given rate; None without one.
        machine_hours: Hours of one machine for the given number of images.
        cost_per_million: Cost of 1,000,000 images; None without a price.
        cost: Cost of the given number of images; None without a price.
    """

    basis: str
    images_per_second: float
    share: float
    per_processor: float
    machines: int | None
    machine_hours: float
    cost_per_million: float | None
    cost: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rate, cost and machines at each throughput.

    Attributes:
        measured: The offline measurement.
        machine: The machine.
        rate: Images per second that all machines together must answer; None if not given.
        images: Number of images to compute.
        rows: One per throughput.
        unmet: Bounds that no rate meets.
    """

    measured: Measurement
    machine: Machine
    rate: float | None
    images: float
    rows: tuple[Capacity, ...]
    unmet: tuple[str, ...]


def share_within(wait: float, utilization: float) -> float:
    """Share of queries that wait no longer than `wait` in an M/D/1 queue: random arrivals, constant service times.

    Erlang's distribution of 1909, see Franx 2001, doi:10.1016/S0167-6377(01)00108-0. Its terms alternate and are large,
    so they are summed in decimals.

    Args:
        wait: Time before the service, in units of the service time; at most 60, where the precision ends.
        utilization: Share of the time in which the session works, below 1.
    """
    with decimal.localcontext(prec=_DIGITS):
        load, total, factorial = decimal.Decimal(utilization), decimal.Decimal(0), 1
        for index in range(math.floor(wait) + 1):
            factorial *= max(index, 1)
            product = load * (decimal.Decimal(wait) - index)
            total += (-product) ** index / factorial * product.exp() if index else product.exp()
        return float((1 - load) * total)


def highest_utilization(bound: float) -> float:
    """Highest utilization at which 99 % of the queries of an M/D/1 queue are answered within a bound, at most 95 %.

    Args:
        bound: Latency, in units of the service time.

    Returns:
        The utilization, to 0.1 %; 0 if an idle session misses the bound.
    """
    if bound < 1:
        return 0.0
    wait, low, high = min(bound - 1, _LONGEST_WAIT), 0.0, _HIGHEST
    if share_within(wait, high) >= _PERCENTILE:
        return high
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if share_within(wait, middle) >= _PERCENTILE else (low, middle)
    return low


def highest_utilization_of_exponential(bound: float) -> float:
    """The same for an M/M/1 queue, whose service times are exponential: 99 % of latencies are below ln(100)/(1 - u)."""
    return min(max(1 + math.log(1 - _PERCENTILE) / bound, 0.0), _HIGHEST)


def capacity(
    basis: str, images_per_second: float, offline: float, machine: Machine, rate: float | None, images: float
) -> Capacity:
    """Rate, cost and machines.

    Args:
        basis: Where the throughput comes from.
        images_per_second: Throughput of the measured process.
        offline: Its offline throughput.
        machine: The machine.
        rate: Images per second that all machines together must answer.
        images: Number of images to compute.
    """
    of_machine = images_per_second * machine.copies
    cost_per_million = None if machine.price is None else 1e6 * machine.price / (3600 * of_machine)
    return Capacity(
        basis,
        of_machine,
        images_per_second / offline,
        of_machine / machine.processors,
        None if rate is None else math.ceil(rate / of_machine * (1 - 1e-9)),  # rounding adds no machine
        images / of_machine / 3600,
        cost_per_million,
        None if cost_per_million is None else cost_per_million * images / 1e6,
    )


def plan(arguments: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    offline = Measurement("given", arguments.images_per_second, 1, 1, None)
    if arguments.results is not None:
        offline = choose(read_results(arguments.results, "offline"), arguments.setting)
    used = arguments.gpus or arguments.cores or offline.threads
    if used is None:
        raise UsageError(
            "the number of cores of the measurement is unknown", what="cores", hint="give --cores or --gpus"
        )
    processors = arguments.machine_processors or used
    if processors % used:
        raise UsageError(
            f"a machine of {processors} cannot be divided into copies of the measured process, which used {used}",
            what="machine_processors", expected=used, found=processors, hint=f"measure with a divisor of {processors}",
        )  # fmt: skip
    price = arguments.price
    if price is not None and arguments.per == "processor":
        price *= processors
    machine = Machine("GPU" if arguments.gpus else "core", processors, processors // used, price)
    rates = {"offline: no bound on the latency": offline.images_per_second}
    if arguments.server is not None:
        server = _server(arguments, offline)
        rates[f"server, measured: p99 within {server.bound_ms:g} ms"] = server.images_per_second
    if arguments.p99_ms is not None:
        rates |= modelled(offline, arguments.p99_ms)
    rows = tuple(
        capacity(basis, rate, offline.images_per_second, machine, arguments.rate, arguments.images)
        for basis, rate in rates.items() if rate > 0
    )  # fmt: skip
    return Plan(
        offline, machine, arguments.rate, arguments.images, rows, tuple(k for k, rate in rates.items() if not rate)
    )


def _server(arguments: argparse.Namespace, offline: Measurement) -> Measurement:
    given = arguments.results is None
    server = choose(read_results(arguments.server, "server"), arguments.setting if given else offline.name)
    used = (server.sessions, server.threads)
    if not given and used != (offline.sessions, offline.threads):
        raise UsageError(
            f"server ran {used[0]} sessions with {used[1]} threads, offline {offline.sessions} with {offline.threads}",
            what="sessions", expected=(offline.sessions, offline.threads), found=used, hint="measure both alike",
        )  # fmt: skip
    return server


def modelled(offline: Measurement, p99_ms: float) -> dict[str, float]:
    """Throughput within a bound by two queue models, each session with a queue of its own; 0 if there is none.

    Raises:
        UsageError: If the measurement is one of batches.
    """
    if offline.batch_size != 1:
        raise UsageError(
            f"the queue model needs the time of a single image, measured were batches of {offline.batch_size}",
            what="p99_ms", expected=1, found=offline.batch_size, hint="measure with --batch-sizes 1",
        )  # fmt: skip
    bound = p99_ms / offline.service_ms
    shares = {"M/D/1": highest_utilization(bound), "M/M/1": highest_utilization_of_exponential(bound)}
    return {
        f"model {name}: p99 within {p99_ms:g} ms": share * offline.images_per_second for name, share in shares.items()
    }


def table(plan: Plan) -> str:
    """The rows in Markdown, and the bounds that no rate meets."""
    machine, images = plan.machine, f"{plan.images:,.0f}"
    size = f"{machine.processors} {machine.processor}{'s' if machine.processors > 1 else ''}"
    header = ["", f"images/s, machine of {size}", "of offline", f"images/s a {machine.processor}"]
    header += [] if plan.rate is None else [f"machines for {plan.rate:,g} images/s"]
    header += [f"{images} images, machine hours"]
    header += [] if machine.price is None else ["cost of 1,000,000", f"cost of {images}"]
    cells = []
    for row in plan.rows:
        line = [row.basis, f"{row.images_per_second:,.4g}", f"{row.share:.0%}", f"{row.per_processor:,.4g}"]
        line += [] if row.machines is None else [f"{row.machines:,}"]
        line += [f"{row.machine_hours:,.1f}"]
        line += [] if row.cost is None else [f"{row.cost_per_million:,.4g}", f"{row.cost:,.2f}"]
        cells.append(line)
    return "\n".join([markdown(header, cells), *(f"No rate meets this: {basis}" for basis in plan.unmet)])


def _positive(kind: type) -> Any:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"takes a number above 0, got {text}")
        return float(value) if kind is float else value

    read.__name__ = kind.__name__
    return read


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "results", type=Path, nargs="?", metavar="JSON", help="result of `benchmark --scenario offline`"
    )
    source.add_argument(
        "--images-per-second",
        type=_positive(float),
        metavar="X",
        help="throughput, instead of a file; 1/X is the time of an image",
    )
    result.add_argument("--server", type=Path, metavar="JSON", help="result of `benchmark --scenario server`")
    result.add_argument("--setting", metavar="NAME", help='such as "onnxruntime int8"; by default the fastest')
    used = result.add_mutually_exclusive_group()
    used.add_argument("--cores", type=_positive(int), help="cores that the measurement used; by default its threads")
    used.add_argument("--gpus", type=_positive(int), help="GPUs that the measurement used")
    result.add_argument("--machine-processors", type=_positive(int), metavar="N",
                        help="cores, or GPUs, of a machine; by default those of the measurement")  # fmt: skip
    result.add_argument("--price", type=_positive(float), help="price per hour, in any currency")
    result.add_argument("--per", choices=("machine", "processor"), default="machine", help="what the price is for")
    result.add_argument("--p99-ms", type=_positive(float), metavar="MS", help="bound for the queue model")
    result.add_argument("--rate", type=_positive(float), metavar="X", help="images per second to answer")
    result.add_argument("--images", type=_positive(float), default=1e9, help="number of images to compute")
    result.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return result


def main(words: list[str] | None = None) -> None:
    arguments = parser().parse_args(words)
    try:
        found = plan(arguments)
    except VitDeployError as exc:
        raise SystemExit(f"Error: {exc}") from exc
    print(json.dumps(dataclasses.asdict(found), indent=2) if arguments.json else table(found))


if __name__ == "__main__":
    main()
