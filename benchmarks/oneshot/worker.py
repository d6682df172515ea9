"""One peer on one model, in a process of its own: prints one line of JSON for every row.

    python worker.py PEER MODEL --calib FILE --limit N KIND:AMOUNT ...

A peer tries its variants; the best on the evaluation data is kept, which favours the peer.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from judge import ZOO, model_path
from task import Candidate, Task, UnavailableError

# peer: kind: module and function of its candidates
PEERS: dict[str, dict[str, tuple[str, str]]] = {
    "onnxsim": {"structural": ("simplifier", "structural"), "zeros": ("simplifier", "zeros")},
    "Torch-Pruning": {"structural": ("dependency", "structural")},
    "SparseGPT": {"zeros": ("sparsegpt", "zeros")},
    "magnitude": {"structural": ("dependency", "plain"), "zeros": ("magnitude", "zeros")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one peer on one model.")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("rows", nargs="+", help="KIND:AMOUNT")
    arguments = parser.parse_args()
    task = Task(arguments.model, model_path(arguments.model), arguments.calib)
    judge = _judge(arguments.model, arguments.limit)
    for row in arguments.rows:
        kind, amount = row.split(":")
        print(json.dumps({"row": row, **_answer(arguments.peer, task, kind, float(amount), judge)}), flush=True)


def _answer(
    peer: str, task: Task, kind: str, amount: float, judge: Callable[[onnx.ModelProto], float]
) -> dict[str, Any]:
    """The best candidate of the peer, or the reason why there is none."""
    if kind not in PEERS[peer]:
        return {"reason": f"no {kind} pruning"}
    start = time.perf_counter()
    try:
        results = [(judge(c.proto), c.variant, c.gone) for c in _candidates(peer, task, kind, amount)]
    except UnavailableError as error:
        return {"reason": str(error)}
    except Exception as error:  # a peer that breaks is a result, with its own words
        traceback.print_exc(file=sys.stderr)
        return {"reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    top1, variant, gone = max(results)
    seconds = time.perf_counter() - start
    tried = [{"variant": v, "top1": t, "gone": g} for t, v, g in results]
    return {"top1": top1, "variant": variant, "gone": gone, "seconds": seconds, "tried": tried}


def _candidates(peer: str, task: Task, kind: str, amount: float) -> Iterator[Candidate]:
    module, function = PEERS[peer][kind]
    candidates: Iterator[Candidate] = getattr(importlib.import_module(module), function)(task, amount)
    return candidates


def _judge(name: str, limit: int) -> Callable[[onnx.ModelProto], float]:
    """Top-1 in percent by the zoo's own `evaluate`, its data read once."""
    sys.path.insert(0, str(ZOO))
    zoo = importlib.import_module("zoo")
    feed, data, offset, base = zoo.LABELLED[name]
    zoo.LABELLED[name] = (feed, functools.cache(data), offset, base)

    def judge(proto: onnx.ModelProto) -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "candidate.onnx"
            onnx.save(proto, path)
            return 100 * float(zoo.evaluate(path, name, limit)["top1"])

    return judge


if __name__ == "__main__":
    main()
