"""Zero the smallest weights of the whole model (magnitude pruning, Han et al. 2015; global, Hoefler et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.errors import TargetError
from graphprune.ir.cost import count_nonzero
from graphprune.ir.coupling.units import Contraction
from graphprune.ir.graph import Graph
from graphprune.ir.nodes import Node
from graphprune.ir.tensors import array, replace_values

MOVERS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move a tensor whole."""

Zeros = dict[str, npt.NDArray[np.int64]]
"""By initializer, flat indices of the weights to zero."""


def allowed_nonzero(weights_before: int, target: float) -> int:
    """Return the most weights that may stay for ``1 - nonzero / weights_before >= target`` to hold.

    Parameters
    ----------
    weights_before : int
    target : float
        In [0, 1).
    """
    allowed = int((1 - target) * weights_before) + 1 if weights_before else 0
    while allowed > 0 and 1 - allowed / weights_before < target:
        allowed -= 1
    return allowed


def zeroable(graph: Graph, contractions: tuple[Contraction, ...]) -> list[str]:
    """Return the initializers whose weights may be zeroed.

    Those of two axes and more that contractions multiply by and nothing else reads, at most moved on the way: what a
    weight is computed from (the direction and length of weight normalisation) is not. Biases and norm parameters are
    never zeroed.
    """
    operands = {(c.node.index, c.weight) for c in contractions}
    found: dict[str, None] = {}
    for contraction in contractions:
        for name in graph.sources(contraction.node.input(contraction.weight)):
            if len(graph.initializers[name].dims) > 1 and _only_multiplied(graph, name, operands):
                found[name] = None
    return list(found)


def _only_multiplied(graph: Graph, name: str, operands: set[tuple[int, int]]) -> bool:
    """Whether all that becomes of a tensor, moved or scaled or not, is the weight of a contraction."""
    if name in graph.outputs:
        return False
    for node in graph.consumers.get(name, []):
        slots = [slot for slot, read in enumerate(node.inputs) if read == name]
        if not slots:  # it is captured, or the result of a body
            return False
        if _keeps_zeros(graph, node, name, slots):
            multiplied = all(_only_multiplied(graph, output, operands) for output in node.outputs if output)
        else:
            multiplied = all((node.index, slot) in operands for slot in slots)
        if not multiplied:
            return False
    return True


def _keeps_zeros(graph: Graph, node: Node, name: str, slots: list[int]) -> bool:
    """Whether a zero of the tensor becomes one zero of the output: it is moved, or scaled without being repeated."""
    if node.op in ("DequantizeLinear", "QuantizeLinear"):
        return slots == [0]
    scaled = slots == [0] if node.op == "Div" else node.op == "Mul" and len(slots) == 1
    return (node.op in MOVERS and slots == [0]) or (scaled and graph.shape(name) == graph.shape(node.outputs[0]))


def plan(
    proto: onnx.ModelProto,
    names: list[str],
    *,
    weights_before: int,
    target: float,
    final: onnx.ModelProto | None = None,
    nonzero: int | None = None,
) -> Zeros:
    """Choose the fewest weights to zero, smallest magnitudes of all first.

    Parameters
    ----------
    proto : onnx.ModelProto
    names : list of str
        Initializers whose weights may be zeroed.
    weights_before : int
        Weights of the original model.
    target : float
        Fraction of them that must be gone, in [0, 1).
    final : onnx.ModelProto, optional
        What later passes will make of the model; what is 0 there counts as zero. The model itself by default.
    nonzero : int, optional
        How many of its weights are not 0, or will not be in the end. Those that are not 0 now by default.

    Returns
    -------
    dict of str to ndarray of int
        By initializer, flat indices of the weights to zero.

    Raises
    ------
    TargetError
        When zeroing all that may be zeroed is not enough.
    """
    final = proto if final is None else final
    now, later = Graph(proto), Graph(final)
    names = [name for name in names if name in now.initializers]
    magnitudes = [np.where(_magnitudes(later, name) == 0, 0, _magnitudes(now, name)) for name in names]
    flat = np.concatenate(magnitudes) if magnitudes else np.empty(0, np.float32)
    nonzero = count_nonzero(final) if nonzero is None else nonzero
    needed = nonzero - allowed_nonzero(weights_before, target)
    already = int((flat == 0).sum())
    if not weights_before and target > 0:
        raise TargetError(
            "the model holds no weights to prune", reachable=0.0, hint="check that this is the model meant"
        )
    if needed > len(flat) - already:
        reachable = 1 - (nonzero - (len(flat) - already)) / weights_before
        raise TargetError(
            f"the target {target} cannot be reached",
            reachable=reachable,
            why=f"only {len(flat):,} of {weights_before:,} weights are multiplied by known operators and read by "
            "nothing else; biases and norm parameters are never zeroed",
            hint=f"the most that can be reached is --target {np.floor(reachable * 1e4) / 1e4}; "
            "remove more units (--channels, --structural 1) or lower --target",
        )
    if needed <= 0:
        return {}
    # Zeros that are there already are the smallest magnitudes of all: they come first, and change nothing.
    chosen = np.sort(np.argpartition(flat, needed + already - 1)[: needed + already])
    return _by_name(chosen, names, magnitudes)


def smallest(proto: onnx.ModelProto, kept: Mapping[str, int]) -> Zeros:
    """Choose the smallest entries of weights, so that only so many stay.

    Parameters
    ----------
    proto : onnx.ModelProto
    kept : mapping of str to int
        By initializer, how many of its entries may stay.
    """
    graph, zeros = Graph(proto), {}
    for name in kept.keys() & graph.initializers.keys():
        magnitudes = _magnitudes(graph, name)
        chosen = np.sort(np.argsort(magnitudes, kind="stable")[: max(len(magnitudes) - kept[name], 0)])
        zeros[name] = chosen[magnitudes[chosen] != 0]
    return zeros


def magnitudes(proto: onnx.ModelProto, name: str) -> npt.NDArray[np.floating]:
    """Return the magnitudes of an initializer's entries, flat; of quantised numbers those that they stand for."""
    return _magnitudes(Graph(proto), name)


def _by_name(chosen: npt.NDArray[np.int64], names: list[str], magnitudes: list[npt.NDArray[np.floating]]) -> Zeros:
    """Turn sorted places in the concatenated weights into flat indices by initializer, without zeros already there."""
    starts = np.cumsum([0, *(len(part) for part in magnitudes)])
    cuts = np.searchsorted(chosen, starts)
    zeros: Zeros = {}
    for place, name in enumerate(names):
        indices = chosen[cuts[place] : cuts[place + 1]] - starts[place]
        indices = indices[magnitudes[place][indices] != 0]
        if len(indices):
            zeros[name] = indices
    return zeros


def apply(proto: onnx.ModelProto, zeros: Zeros) -> None:
    """Zero the chosen weights, in place; a quantised one becomes its zero point."""
    quantized = Graph(proto).quantized
    for tensor in proto.graph.initializer:
        if tensor.name in zeros:
            values = array(tensor).copy()
            zero = quantized[tensor.name].zero_points(values) if tensor.name in quantized else np.zeros_like(values)
            chosen = zeros[tensor.name]
            values.reshape(-1)[chosen] = zero.reshape(-1)[chosen]
            replace_values(tensor, values)


def _magnitudes(graph: Graph, name: str) -> npt.NDArray[np.floating]:
    """Absolute values, flat, in a type that holds them all and that numpy can partition."""
    values = array(graph.initializers[name])
    if name in graph.quantized:
        values = graph.quantized[name].numbers(values)
    return np.abs(values if values.dtype == np.float64 else values.astype(np.float32)).ravel()
