"""The proof of a removal: the pruned model equals the original with the removed positions masked where consumed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from graphprune.errors import EquivalenceError, ModelError
from graphprune.ir.bodies import drop_nodes, rename_inputs
from graphprune.ir.coupling.resizing import resized
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.rewriting.simplify import drop_dead
from graphprune.ir.session import Feeds, ModelLike, open_session, run_session
from graphprune.verify.fidelity import RelativeError, relative_error
from graphprune.verify.masking import masked
from graphprune.verify.picks import with_same_picks
from graphprune.verify.saturation import unsaturated

TOLERANCES: dict[int, float] = {
    onnx.TensorProto.FLOAT: 1e-4,
    onnx.TensorProto.DOUBLE: 1e-4,
    onnx.TensorProto.FLOAT16: 2e-2,
    onnx.TensorProto.BFLOAT16: 1e-1,
}
"""Relative L2 error allowed, by the widest-rounding element type of the weights: the two models sum the same products
in another order, and half precision keeps 11 bits of each sum, bfloat16 8."""
QUANTISERS = frozenset(
    "QuantizeLinear DynamicQuantizeLinear com.microsoft.DynamicQuantizeLSTM com.microsoft.DynamicQuantizeMatMul".split()
)
"""Operators that round activations to a few steps."""
FUSED = QUANTISERS | {"DequantizeLinear"}
"""Operators that ONNX Runtime fuses with their neighbours, and then rounds elsewhere (mobilenet_v1, quantised: 4e-2
between the same model fused and as it is written): models with such are compared as they are written."""
QUANTISED = 5e-2
"""Relative L2 error allowed where such are left (see `without_rounding`): a float sum on the edge between two of 255
steps may fall to either, and what follows differs by that step and more edges."""
NUMBERS = "fiub"
"""Kinds of numpy arrays that are compared; texts are not computed from weights."""
ROUNDING = 1e-6
"""Differences of this size, or this share of the largest value, are rounding whatever the norm: a saturated output
(a detector that sees nothing) is all rounding."""


class Proof(NamedTuple):
    """How the pruned model and the masked original compare.

    Attributes
    ----------
    max_abs, max_rel, relative_l2 : float
        As in `RelativeError`, the worst over the outputs that show anything; of one that loses positions, over those
        that stay.
    constant : tuple of str
        Outputs whose values are all the same up to rounding, or that have none: wrong weights would give them too, so
        that nothing is proven of them.
    """

    max_abs: float
    max_rel: float
    relative_l2: float
    constant: tuple[str, ...] = ()


def without_rounding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose activations are not rounded where they are quantised only to be dequantised again.

    A removal is exact whatever is done to every element by itself, so it is proven without the rounding, too, which
    turns another order of summing into a whole step.
    """
    graph = Graph(proto)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        quantize = graph.producer.get(node.input(0)) if node.op == "DequantizeLinear" else None
        if quantize is None or quantize.op != "QuantizeLinear":
            continue
        source = quantize.input(0)
        if graph.element_types.get(source) == graph.element_types.get(node.outputs[0]):
            renamed[node.outputs[0]] = renamed.get(source, source)
    if not renamed:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for copied in result.graph.node:
        rename_inputs(copied, renamed)
    last = [onnx.helper.make_node("Identity", [renamed[name]], [name]) for name in graph.outputs if name in renamed]
    drop_nodes(result, lambda node: bool(node.output) and node.output[0] in renamed)
    result.graph.node.extend(last)
    drop_dead(result)
    return result


def check_equivalence(
    coupling: Coupling,
    removed: BoolArray,
    pruned: onnx.ModelProto,
    feeds: Feeds,
    *,
    threads: int = 0,
    custom_ops: Sequence[str] = (),
) -> Proof:
    """Run the masked original and the pruned model on the same inputs, and demand that they agree.

    Parameters
    ----------
    coupling : Coupling
        Of the original.
    removed : ndarray of bool, shape (units,)
    pruned : onnx.ModelProto
        What surgery made, before any weight was changed.
    feeds : mapping of str to array
        One call's inputs, in the original's shapes.
    threads : int, default 0
        Threads of ONNX Runtime; 0 for all cores.
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.

    Returns
    -------
    Proof

    Raises
    ------
    EquivalenceError
        When an output differs by more than `TOLERANCES` allow for the model's element type.
    """
    original, pruned = unsaturated(masked(coupling, removed)), unsaturated(pruned)
    pairs = [(original, pruned)]
    if _has(pruned, QUANTISERS):
        pairs.append((without_rounding(original), without_rounding(pruned)))
    change = resized(coupling, removed)
    errors = [RelativeError(0.0, 0.0, 0.0)]
    constant: dict[str, bool] = {}
    for one, other in pairs:
        before, after, picks = with_same_picks(
            one, other, coupling, removed, feeds, threads=threads, custom_ops=custom_ops
        )
        # As it is written: ONNX Runtime, pushing a Transpose through a mask, can break a Pad that has an axes input.
        expected = open_session(before, threads=threads, custom_ops=custom_ops, optimise=False)
        actual = open_session(after, threads=threads, custom_ops=custom_ops, optimise=not _has(after, FUSED))
        names = [value.name for value in expected.get_outputs()]
        reference = change.cut_outputs(names, run_session(expected, {**feeds, **picks}, names))
        results = run_session(actual, {**change.cut_feeds(feeds), **picks}, names)
        _demand(names, reference, results, tolerance_for(after), "the pruned model does not equal the masked original")
        for name, a, b in zip(names, reference, results, strict=True):
            if np.asarray(a).dtype.kind in NUMBERS:
                same = _constant(a)
                constant[name] = constant.get(name, True) and same
                errors += [] if same else [relative_error(a, b)]
    worst = max(errors, key=lambda error: error.max_rel)
    return Proof(*worst, constant=tuple(name for name, same in constant.items() if same))


def check_canonical(
    original: ModelLike, canonical: onnx.ModelProto, feeds: Feeds, *, threads: int = 0, custom_ops: Sequence[str] = ()
) -> None:
    """Demand that the original can be compared with at all, and that its canonical form is the same function.

    Parameters
    ----------
    original : path-like, bytes or onnx.ModelProto
    canonical : onnx.ModelProto
    feeds : mapping of str to array
        One call's inputs.
    threads : int, default 0
        Threads of ONNX Runtime; 0 for all cores.
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.

    Raises
    ------
    ModelError
        When the original gives other outputs the second time, or outputs that are not numbers.
    EquivalenceError
        When the canonical form gives other outputs.
    """
    optimise = not _has(canonical, FUSED)
    session = open_session(original, threads=threads, custom_ops=custom_ops, optimise=optimise)
    other = open_session(canonical, threads=threads, custom_ops=custom_ops, optimise=optimise)
    names = [value.name for value in session.get_outputs()]
    first, second = run_session(session, feeds, names), run_session(session, feeds, names)
    for name, a, b in zip(names, first, second, strict=True):
        values = np.asarray(a)
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise ModelError(
                "the model's own outputs are not numbers on the calibration data",
                where=f"output {name!r}",
                why=f"{int(np.isnan(values).sum())} of {values.size} values are NaN",
                hint="check the model and the range of the calibration data",
            )
        if values.dtype.kind in NUMBERS and relative_error(a, b).relative_l2 > tolerance_for(canonical):
            raise ModelError(
                "the model gives other outputs for the same inputs the second time",
                where=f"output {name!r}",
                why="it draws random numbers; so nothing can be proven of a pruned one",
                hint="export it for inference, without random operators",
            )
    results = run_session(other, feeds, names)
    _demand(names, first, results, tolerance_for(canonical), "the canonical form does not equal the original")


def tolerance_for(proto: onnx.ModelProto) -> float:
    """Return the relative L2 error that rounding may cause, by the element types of the weights and by quantisation."""
    allowed = [TOLERANCES[t.data_type] for t in proto.graph.initializer if t.data_type in TOLERANCES]
    return max([1e-4, *allowed, *([QUANTISED] if _has(proto, QUANTISERS) else [])])


def _has(proto: onnx.ModelProto, operators: Collection[str]) -> bool:
    return any(node.op in operators for node in Graph(proto).nodes)


def _constant(output: Any) -> bool:
    """Whether an output is the same everywhere, up to what `_demand` takes for rounding; one number, if it is 0."""
    values = np.asarray(output, np.float64)
    values = values[np.isfinite(values)]
    largest = float(np.abs(values).max(initial=0.0))
    spread = float(np.ptp(values)) if values.size > 1 else largest
    return spread <= ROUNDING * max(1.0, largest)


def _demand(names: Sequence[str], reference: list[Any], results: list[Any], tolerance: float, what: str) -> None:
    for name, expected, found in zip(names, reference, results, strict=True):
        if np.asarray(expected).dtype.kind not in NUMBERS:
            continue
        error = relative_error(expected, found)
        largest = float(np.abs(np.asarray(expected, np.float64)).max(initial=0.0))
        if error.relative_l2 > tolerance and error.max_abs > ROUNDING * max(1.0, largest):
            raise EquivalenceError(
                what,
                where=f"output {name!r}",
                why=f"relative L2 error {error.relative_l2:.2e}, and at most {tolerance:.0e} is rounding",
                hint="nothing was written; please report the model, this is a defect of graphprune",
            )
