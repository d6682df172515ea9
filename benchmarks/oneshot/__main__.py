"""One-shot pruning against its acceptance table, and against other tools on the same data in the same run.

    python benchmarks/oneshot [MODEL ...] [--peers] [--peers-python PATH] [--quick]

256 unlabelled calibration inputs, no training, one setting for all models. A row of kind `both` is asked to be at least
as accurate as the better of graphprune's own two single kinds at the same target, and faster than the original.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import engine
import report
from judge import model_path, require_zoo, top1
from peers import PEERS, ask
from rows import MODELS, Row, rows

QUICK_LIMIT = 500
FULL_LIMIT = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; default all")
    parser.add_argument("--peers", action="store_true", help="run the other tools too")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PATH", help="the Python that has them")
    parser.add_argument("--quick", action="store_true", help=f"one row of each kind, {QUICK_LIMIT} evaluation inputs")
    arguments = parser.parse_args()
    unknown = set(arguments.models) - set(MODELS)
    if unknown:
        parser.error(f"unknown model {', '.join(sorted(unknown))}: choose from {', '.join(MODELS)}")
    if arguments.peers and shutil.which(arguments.peers_python) is None:
        parser.error(f"--peers-python: {arguments.peers_python} is not an executable")
    require_zoo()
    models = tuple(arguments.models) or MODELS
    limit = QUICK_LIMIT if arguments.quick else FULL_LIMIT
    python = arguments.peers_python if arguments.peers else None
    print(report.heading(arguments.peers), flush=True)
    remarks = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            chosen = [row for row in rows(models, arguments.quick) if row.model == model]
            remarks += benchmark(model, chosen, python, Path(folder), limit)
    print("\n" + "\n".join(remarks) if remarks else "", flush=True)


def benchmark(model: str, chosen: list[Row], python: str | None, folder: Path, limit: int) -> list[str]:
    """Print the lines of one model, each when it is known; returns the notes."""
    original = top1(model_path(model), model, limit)
    answers = {peer: ask(peer, chosen, python, folder, limit) for peer in PEERS} if python else {}
    runs: dict[str, engine.Run] = {}

    def run(kind: str, amount: float) -> engine.Run:
        name = setting(kind, amount)
        if name not in runs:
            runs[name] = engine.prune(model, kind, amount, folder, limit)
        return runs[name]

    for row in chosen:
        better = None
        if row.kind == "both":
            single = [run(kind, row.amount).top1 for kind in ("structural", "zeros")]
            better = max((value for value in single if value is not None), default=None)
        others = {peer: found[row] for peer, found in answers.items() if row in found} if python else None
        print(report.line(row, original, run(row.kind, row.amount), others, better), flush=True)
    failures = {name: done.note for name, done in runs.items() if done.note}
    remarks = [report.note(model, "graphprune", failures)] if failures else []
    for peer, found in answers.items():
        said = {setting(row.kind, row.amount): report.said(answer) for row, answer in found.items()}
        remarks.append(report.note(model, peer, said))
    return remarks


def setting(kind: str, amount: float) -> str:
    return f"{kind} {amount:.0%}"


if __name__ == "__main__":
    main()
