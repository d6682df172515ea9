"""Zero the smallest weights of the whole model (magnitude pruning, Han et al. 2015; global, Hoefler et al. 2021)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from graphprune.errors import TargetError
from graphprune.ir.cost import count_nonzero
from graphprune.ir.graph import Graph
from graphprune.ir.tensors import array, replace_values
from graphprune.ir.units import Contraction

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
    """Return the initializers whose weights may be zeroed: those of two axes and more that contractions multiply by.

    Biases and norm parameters are never zeroed.
    """
    found: dict[str, None] = {}
    for contraction in contractions:
        for name in graph.sources(contraction.node.input(contraction.weight)):
            if len(graph.initializers[name].dims) > 1:
                found[name] = None
    return list(found)


def plan(proto: onnx.ModelProto, names: list[str], *, weights_before: int, target: float) -> Zeros:
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

    Returns
    -------
    dict of str to ndarray of int
        By initializer, flat indices of the weights to zero.

    Raises
    ------
    TargetError
        When zeroing all that may be zeroed is not enough.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    names = [name for name in names if name in tensors]
    magnitudes = [_magnitudes(tensors[name]) for name in names]
    flat = np.concatenate(magnitudes) if magnitudes else np.empty(0, np.float32)
    nonzero = count_nonzero(proto)
    needed = nonzero - allowed_nonzero(weights_before, target)
    already = int((flat == 0).sum())
    if not weights_before and target > 0:
        raise TargetError(
            "the model holds no weights to prune", reachable=0.0, hint="check that this is the model meant"
        )
    if needed > len(flat) - already:
        reachable = 1 - (nonzero - (len(flat) - already)) / weights_before
        raise TargetError(
            f"the target {target} cannot be reached: biases and norm parameters are never zeroed",
            reachable=reachable,
            hint=f"the most that can be reached is --target {np.floor(reachable * 1e4) / 1e4}; "
            "remove more units (--channels, --structural 1) or lower --target",
        )
    if needed <= 0:
        return {}
    # Zeros that are there already are the smallest magnitudes of all: they come first, and change nothing.
    chosen = np.sort(np.argpartition(flat, needed + already - 1)[: needed + already])
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
    """Zero the chosen weights, in place."""
    for tensor in proto.graph.initializer:
        if tensor.name in zeros:
            values = array(tensor).copy()
            values.reshape(-1)[zeros[tensor.name]] = 0
            replace_values(tensor, values)


def _magnitudes(tensor: onnx.TensorProto) -> npt.NDArray[np.floating]:
    """Absolute values, flat, in a type that holds them all and that numpy can partition."""
    values = array(tensor)
    return np.abs(values if values.dtype == np.float64 else values.astype(np.float32)).ravel()
