"""The proof of a removal: the pruned model equals the original with the removed positions masked where consumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from graphprune.errors import EquivalenceError, ModelError
from graphprune.ir.edit import set_input
from graphprune.ir.session import Feeds, ModelLike, open_session, run_session
from graphprune.ir.units import FROZEN, BoolArray, Coupling
from graphprune.verify.fidelity import RelativeError, relative_error

TOLERANCES: dict[int, float] = {
    onnx.TensorProto.FLOAT: 1e-4,
    onnx.TensorProto.DOUBLE: 1e-4,
    onnx.TensorProto.FLOAT16: 2e-2,
    onnx.TensorProto.BFLOAT16: 1e-1,
}
"""Relative L2 error allowed, by the widest-rounding element type of the weights: the two models sum the same products
in another order, and half precision keeps 11 bits of each sum, bfloat16 8."""
NUMBERS = "fiub"
"""Kinds of numpy arrays that are compared; texts are not computed from weights."""
ROUNDING = 1e-6
"""Differences of this size, or this share of the largest value, are rounding whatever the norm: a saturated output
(a detector that sees nothing) is all rounding."""


def masked(coupling: Coupling, removed: BoolArray) -> onnx.ModelProto:
    """Return the original model with removed positions multiplied by zero where they are consumed.

    Parameters
    ----------
    coupling : Coupling
        Of the original.
    removed : ndarray of bool, shape (units,)

    Returns
    -------
    onnx.ModelProto
        Every contraction reads its activation through a Mul with a 0/1 mask along the contracted axis.
    """
    graph = coupling.graph
    gone = np.append(removed, False)
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    nodes = list(result.graph.node)
    inserted: list[tuple[int, onnx.NodeProto]] = []
    for contraction in coupling.contractions:
        # What is summed over inside the node is masked on the weight that it meets there.
        inside = contraction.data_axis is None
        slot = contraction.weight if inside else contraction.data
        axis = contraction.weight_axis if contraction.data_axis is None else contraction.data_axis
        name = contraction.node.input(slot)
        units = coupling.vector(name, axis)
        if units is None or not gone[units].any():
            continue
        shape = [1] * len(graph.shape(name) or ())
        shape[axis] = len(units)
        mask = np.where(gone[units] & (units != FROZEN), 0.0, 1.0).reshape(shape)
        index = contraction.node.index
        mask_name, output = f"graphprune_mask_{index}_{slot}", f"graphprune_masked_{index}_{slot}"
        kind = graph.element_types.get(name, onnx.TensorProto.FLOAT)
        values = mask.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        result.graph.initializer.append(onnx.numpy_helper.from_array(values, mask_name))
        inserted.append((index, onnx.helper.make_node("Mul", [name, mask_name], [output])))
        set_input(nodes[index], slot, output)
    for index, node in sorted(inserted, key=lambda item: -item[0]):
        nodes.insert(index, node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    return result


def check_equivalence(
    coupling: Coupling, removed: BoolArray, pruned: onnx.ModelProto, feeds: Feeds, *, threads: int = 0
) -> RelativeError:
    """Run the masked original and the pruned model on the same inputs, and demand that they agree.

    Parameters
    ----------
    coupling : Coupling
        Of the original.
    removed : ndarray of bool, shape (units,)
    pruned : onnx.ModelProto
        What surgery made, before any weight was changed.
    feeds : mapping of str to array
        One call's inputs.
    threads : int, default 0
        Threads of ONNX Runtime; 0 for all cores.

    Returns
    -------
    RelativeError
        The worst over all outputs.

    Raises
    ------
    EquivalenceError
        When an output differs by more than `TOLERANCES` allow for the model's element type.
    """
    # As it is written: ONNX Runtime, pushing a Transpose through a mask, can break a Pad that has an axes input.
    expected = open_session(masked(coupling, removed), threads=threads, optimise=False)
    actual = open_session(pruned, threads=threads)
    names = [value.name for value in expected.get_outputs()]
    reference, results = run_session(expected, feeds, names), run_session(actual, feeds, names)
    tolerance = tolerance_for(pruned)
    _demand(names, reference, results, tolerance, "the pruned model does not equal the masked original")
    numbers = [pair for pair in zip(reference, results, strict=True) if np.asarray(pair[0]).dtype.kind in NUMBERS]
    errors = [relative_error(a, b) for a, b in numbers]
    return max(errors, key=lambda error: error.max_rel, default=RelativeError(0.0, 0.0, 0.0))


def check_canonical(original: ModelLike, canonical: onnx.ModelProto, feeds: Feeds, *, threads: int = 0) -> None:
    """Demand that the original can be compared with at all, and that its canonical form is the same function.

    Parameters
    ----------
    original : path-like, bytes or onnx.ModelProto
    canonical : onnx.ModelProto
    feeds : mapping of str to array
        One call's inputs.
    threads : int, default 0
        Threads of ONNX Runtime; 0 for all cores.

    Raises
    ------
    ModelError
        When the original gives other outputs the second time, or outputs that are not numbers.
    EquivalenceError
        When the canonical form gives other outputs.
    """
    session, other = open_session(original, threads=threads), open_session(canonical, threads=threads)
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
    """Return the relative L2 error that rounding may cause, by the element types of the weights."""
    return max((TOLERANCES[t.data_type] for t in proto.graph.initializer if t.data_type in TOLERANCES), default=1e-4)


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
