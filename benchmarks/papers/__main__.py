"""The tables of the papers that graphprune stands on, the paper's number beside ours.

    python benchmarks/papers TABLE [--quick] [--seeds N] [--threads N] [--keep FOLDER] [--sparsity S ...]

Markdown goes to stdout, progress to stderr. Data is that of ../shared/zoo; models are trained from scratch, or taken
from FOLDER where an earlier command with the same settings has left them. Everything is seeded. The test set is
measured on and never chosen by.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import han
import hu
import storage
import torch
import tradeoffs
import zhu
from pruning import Bench

TABLES = {**han.TABLES, **tradeoffs.TABLES, **hu.TABLES, **zhu.TABLES, **storage.TABLES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", choices=TABLES, help=f"one of {', '.join(TABLES)}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="zhu-*: small networks and few steps, minutes instead of hours; others: a few steps, to see that it runs",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each row; default 1")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch; default 1")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where dense models and figures are kept")
    parser.add_argument(
        "--sparsity", type=float, nargs="+", default=[], metavar="S", help="zhu-*: only these rows; default all"
    )
    arguments = parser.parse_args()
    for name in ("seeds", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if arguments.sparsity and arguments.table not in zhu.TABLES:
        parser.error(f"--sparsity is for {', '.join(zhu.TABLES)}")
    if any(not 0 < sparsity < 1 for sparsity in arguments.sparsity):
        parser.error("--sparsity must be above 0 and below 1")
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    TABLES[arguments.table](Bench(arguments.seeds, arguments.quick, arguments.keep, tuple(arguments.sparsity)))
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"the CPU, {arguments.threads} thread(s)"
    print(f"\n{arguments.seeds} seed(s) from 0, {time.perf_counter() - start:.0f} s on {where}.")


if __name__ == "__main__":
    main()
