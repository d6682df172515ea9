"""Repair a pruned model layer by layer, in the order in which it computes: sequential least squares.

Every layer is solved anew on what it really reads by then, towards the original's outputs; where an output is only
added to others (the end of a residual branch), towards the original's sum, so that a branch makes up for what the
branches before it lack. Weights are zeroed on the way: the layers behind make up for that, too. At last the variance of
the outputs is put right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.calib.pairs import Pair
from graphprune.entries import LayerRecord
from graphprune.ir.coupling.units import BoolArray, Coupling
from graphprune.ir.graph import Graph
from graphprune.ir.layers.layer import Layer, find_layers
from graphprune.ir.layers.writing import add_biases, drop_biases, write
from graphprune.ir.tensors import array
from graphprune.passes.damping import damped, damping
from graphprune.passes.patterns import Choice, within
from graphprune.passes.ridge import Centred, SecondMoments, solve
from graphprune.passes.sparse import sparse
from graphprune.passes.variance import matched

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Zeroing:
    """Which weights may stay.

    Attributes
    ----------
    choices : mapping of str to callable
        By weight; others stay whole.
    method : str
        A key of `graphprune.passes.sparse.METHODS`.
    """

    choices: Mapping[str, Choice] = field(default_factory=dict)
    method: str = "admm"


def repair(
    coupling: Coupling,
    removed: BoolArray,
    draft: onnx.ModelProto,
    pair: Callable[[onnx.ModelProto, onnx.ModelProto], Pair],
    zeroing: Zeroing,
) -> list[LayerRecord]:
    """Solve all layers of a pruned model anew, in place.

    Parameters
    ----------
    coupling : Coupling
        Of the original.
    removed : ndarray of bool, shape (units,)
        What the draft lost.
    draft : onnx.ModelProto
    pair : callable
        Puts original and draft side by side on the calibration data.
    zeroing : Zeroing
        What is zeroed on the way.

    Returns
    -------
    list of LayerRecord
    """
    made = add_biases(draft, only_folded=not removed.any())  # nothing else makes up for the time they take
    stored = {tensor.name: tensor for tensor in draft.graph.initializer}
    both, done = pair(coupling.graph.proto, draft), []
    for number, (before, layer) in enumerate(solved_layers(coupling, draft)):
        both.advance(layer)
        done.append(_repair_layer(before, layer, number, coupling, removed, both, stored, zeroing))
    drop_biases(draft, made)
    return done


def solved_layers(coupling: Coupling, draft: onnx.ModelProto) -> list[tuple[Layer, Layer]]:
    """Return the layers that are solved anew, each as it is in the original and in the draft.

    A layer that is too wide to be one in the original is none in the draft, however narrow it has become.
    """
    originals = {layer.output: layer for layer in find_layers(coupling.graph)}
    return [(originals[layer.output], layer) for layer in find_layers(Graph(draft)) if layer.output in originals]


def _repair_layer(
    before: Layer,
    layer: Layer,
    number: int,
    coupling: Coupling,
    removed: BoolArray,
    pair: Pair,
    stored: Mapping[str, onnx.TensorProto],
    zeroing: Zeroing,
) -> LayerRecord:
    parts = pair.measure(before, layer, kept_outputs(coupling, removed, before), number)
    solution = solve(parts, biased=bool(layer.bias))
    old = layer.form.matrix(layer.node.attributes, array(stored[layer.weight]).astype(np.float64))
    dense = old + solution.change
    shift = solution.shift
    choose, present = zeroing.choices.get(layer.weight), old != 0
    if not present.all():  # a zero stays one
        choose = within(present, choose or (lambda magnitudes: np.ones(magnitudes.shape, dtype=np.bool_)))
    if choose is not None:
        new, lost = _sparse(parts, solution.rows, dense, choose, zeroing.method, biased=bool(layer.bias))
        shift = shift + lost
    else:
        new = dense
    if layer.total == layer.output:  # the end of a branch makes up for the branches before it instead
        new, rest = matched(solution.rows, old, new)
        shift = shift + rest
    if shift.any() or not np.array_equal(new, old):
        write(layer, stored, new, shift)
    return LayerRecord(layer.weight, solution.ridge, solution.before, solution.after)


def _sparse(
    parts: Sequence[SecondMoments], rows: Centred, dense: FloatArray, choose: Choice, method: str, *, biased: bool
) -> tuple[FloatArray, FloatArray]:
    """The sparse matrix, and the mean that the output then lacks; by magnitude where a row overflowed."""
    if not np.isfinite(rows.covariance).all():
        return dense * choose(np.abs(dense)), np.zeros_like(rows.error)
    gram = damped(rows, damping(parts, dense, choose, biased=biased), dense)
    new = sparse(gram, dense, choose, method)
    return new, (rows.mean[:, None] @ (dense - new))[:, 0]


def kept_outputs(coupling: Coupling, removed: BoolArray, layer: Layer) -> BoolArray | None:
    """Return which of a layer's outputs stay, None when all do."""
    if layer.form.computed:
        axis = 1 if layer.form.channel_axis == 1 else len(coupling.graph.shape(layer.output) or ()) - 1
        lost = coupling.lost(layer.output, axis, removed)
        return None if lost is None else ~lost
    keep = coupling.keeps(layer.weight, removed)
    if keep is None:
        return None
    whole = np.broadcast_to(keep, tuple(coupling.graph.initializers[layer.weight].dims))
    return np.asarray(whole.any(axis=-1).ravel())
