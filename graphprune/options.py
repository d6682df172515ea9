"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from graphprune.ir.session import CPU
from graphprune.values import CRITERIA, ENCODINGS, PACKINGS, SPARSIFIERS

existing_file = click.Path(exists=True, dir_okay=False)


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options in the order given."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


calibration = click.option(
    "--calib", metavar="PATH", help="Calibration inputs: .npz, .npy, a folder, or module:function."
)
pruning = together(
    click.option(
        "--target", type=float, metavar="T", help="Fraction of all float weights that must be gone, 0 <= T < 1."
    ),
    click.option("--channels", type=float, metavar="F", help="Remove this fraction of every group's units."),
    click.option(
        "--macs", type=float, metavar="F", help="Remove units until this fraction of the multiply-accumulates is saved."
    ),
    click.option("--speedup", type=float, metavar="S", help="Remove units until the model is this many times as fast."),
    click.option(
        "--structural",
        default="auto",
        show_default=True,
        metavar="S",
        help="Share of the target met by removing units: auto, or 0 (zeros only) to 1 (removal only).",
    ),
    click.option(
        "--criterion",
        default="auto",
        show_default=True,
        metavar="C",
        help=f"What orders the units that go: {', '.join(CRITERIA)}.",
    ),
    click.option(
        "--sparsifier",
        default="admm",
        show_default=True,
        metavar="Z",
        help=f"What chooses the weights to zero: {', '.join(SPARSIFIERS)}.",
    ),
    click.option(
        "--align",
        default="auto",
        show_default=True,
        metavar="A",
        help="Channels that convolutions keep are a multiple of this: a number, auto (what is fast here), or off.",
    ),
    click.option("--pattern", metavar="P", help="Where zeros may be: N:M input channels, or blocks INPUTSxOUTPUTS."),
    click.option(
        "--pack",
        default="off",
        show_default=True,
        metavar="K",
        help=f"Zeros in blocks that products leave out, where that is faster: {', '.join(PACKINGS)}.",
    ),
    click.option("--no-recover", is_flag=True, help="Plain removal and zeroing: kept weights stay bit-identical."),
    click.option(
        "--encode",
        default="off",
        show_default=True,
        metavar="E",
        help=f"How sparse weights are stored: {', '.join(ENCODINGS)} (rounded).",
    ),
)
training = together(
    click.option(
        "--finetune",
        metavar="F",
        help="Train what is left: distill (the original teaches, without labels), or module:function (takes a torch "
        "module, trains it in place).",
    ),
    click.option(
        "--rounds", type=int, default=1, show_default=True, metavar="N", help="Prune and train so many times."
    ),
    click.option("--epochs", type=int, metavar="N", help="Of distill: 30 where not given, fewer where it ends early."),
)
resize = click.option(
    "--allow-resize",
    multiple=True,
    metavar="NAME",
    help="Graph input or output that may lose positions; IN=OUT for a state that is fed back. Repeatable.",
)
custom_ops = click.option(
    "--custom-ops",
    type=existing_file,
    multiple=True,
    metavar="LIBRARY",
    help="Shared library of ONNX Runtime custom operators. Repeatable.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Of everything random.")
json = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
verbosity = together(
    click.option("-q", "--quiet", is_flag=True, help="No table and no progress bar."),
    click.option("-v", "--verbose", is_flag=True, help="More detail, and a traceback with an error."),
)
latency = together(
    click.option("--threads", type=int, default=1, show_default=True, help="Threads of the latency runs."),
    click.option("--batch", type=int, metavar="N", help="Samples in one call of the latency runs."),
    click.option(
        "--provider",
        default=CPU,
        show_default=True,
        metavar="NAME",
        help="Execution provider of ONNX Runtime for latency runs and metric.",
    ),
    click.option("--runs", type=int, default=50, show_default=True, help="Latency runs of each model."),
)
gates = together(
    click.option("--max-latency-ratio", type=float, metavar="R", help="Exit 1 if latency after / before is above R."),
    click.option("--min-speedup", type=float, metavar="S", help="Exit 1 if latency before / after is below S."),
    click.option(
        "--max-drop",
        type=float,
        metavar="D",
        help="Exit 1 if the metric's loss, or the share of changed answers, is above D.",
    ),
    click.option(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="Takes an onnxruntime.InferenceSession, returns a number, the higher the better: what --max-drop is on.",
    ),
)
ci = together(
    click.option("--junit", type=click.Path(dir_okay=False), help="Write the gates to this file as JUnit XML."),
    click.option("--summary", type=click.Path(dir_okay=False), help="Append a Markdown summary to this file."),
)
