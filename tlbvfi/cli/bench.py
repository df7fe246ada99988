"""`tlbvfi bench`: how fast TLB-VFI is here, and how much memory it takes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .arguments import Commands, add_network, named_path
from .interpolate import method_config
from .show import say

if TYPE_CHECKING:
    from ..bench.aims import Verdict

SIZES = "256,512,720,1080,1440,2160"


def add_parsers(subparsers: Commands, shared: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "bench",
        parents=[shared],
        help="measure speed and memory of tlbvfi on this machine",
        description="Measure TLB-VFI: time and memory of a mid frame, its stages, and a job from "
        "file to file. If no weights are installed, stand-ins of the same shapes are used.",
    )
    parser.add_argument(
        "--sizes", default=SIZES, help=f"heights (16:9) or WIDTHxHEIGHT (default {SIZES})"
    )
    add_network(parser)
    parser.add_argument(
        "--pairs", type=int, help="number of mid frames to measure (default 3, on a GPU 20)"
    )
    parser.add_argument("--threads", type=int, help="torch's CPU threads (default: torch's choice)")
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="also measure a plain float32 implementation (needs a checkout)",
    )
    parser.add_argument(
        "--clip", type=named_path, metavar="FILE", help="frames to measure on (default: generated)"
    )
    parser.add_argument(
        "--aims",
        action="store_true",
        help="measure all of the project's aims for this kind of device, with the options they "
        "need; exit code 1 if anything falls short (needs a checkout)",
    )
    parser.set_defaults(run=run_bench, method="tlbvfi")


def run_bench(arguments: argparse.Namespace) -> int:
    """Measure and print tables on stdout; Ctrl-C prints what is measured so far."""
    if not arguments.aims:
        return _measure(arguments)[0]
    from ..bench.aims import RUNS, are_met
    from ..device import device_type
    from ..errors import SettingsError

    device = device_type(arguments.device)
    if device not in RUNS:
        raise SettingsError(f"There are no aims for {device}: choose --device cpu or cuda.")
    _refuse_what_aims_set(arguments, RUNS[device])
    verdicts: list[Verdict] = []
    for words in RUNS[device]:
        say(f"bench {words}")
        argv = [*(word for word in arguments.argv if word != "--aims"), *words.split()]
        run = arguments.parser.parse_args(argv, argparse.Namespace(argv=argv))
        code, found = _measure(run)
        if code:
            return code
        verdicts += found
        print(flush=True)
    met = are_met(verdicts, device)
    say("every aim is reached" if met else "not every aim is reached")
    return 0 if met else 1


def _refuse_what_aims_set(arguments: argparse.Namespace, runs: Iterable[str]) -> None:
    """Refuse options that these runs would silently override.

    Raises:
        SettingsError: such options are given; the text names them.
    """
    from ..errors import SettingsError

    plain = vars(arguments.parser.parse_args(["bench"]))
    set_by_runs = {
        name
        for words in runs
        for name, value in vars(arguments.parser.parse_args(["bench", *words.split()])).items()
        if value != plain[name]
    }
    given = sorted(name for name in set_by_runs if getattr(arguments, name) != plain[name])
    if given:
        raise SettingsError(
            f"--aims sets --{' and --'.join(given)} by itself, as each aim needs it: leave that "
            "out, or measure without --aims."
        )


def _measure(arguments: argparse.Namespace) -> tuple[int, list[Verdict]]:
    """Run and print one benchmark; return its exit code and verdicts."""
    from ..bench.aims import judge
    from ..bench.figures import Row
    from ..bench.report import BenchOptions, open_bench
    from ..bench.sizes import parse_sizes
    from ..bench.table import as_json, heading, tables

    options = BenchOptions(
        sizes=parse_sizes(arguments.sizes),
        method=method_config(arguments),
        pairs=arguments.pairs,
        baseline=arguments.baseline,
        clip=arguments.clip,
        threads=arguments.threads,
    )
    rows: list[Row] = []
    code = 0
    with open_bench(options, say) as bench:
        try:
            rows.extend(bench.rows())
        except KeyboardInterrupt:
            code = 130
        verdicts = judge(rows, options.method, bench.machine["device"])
        if arguments.json:
            print(json.dumps(as_json(bench, rows, verdicts, arguments.argv), default=str))
        else:
            print("\n".join([*heading(bench), *tables(bench, rows, verdicts)]))
    return code, verdicts
