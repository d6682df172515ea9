"""What is right, found without the code under test: masks on weights, slices by index, counts by brute force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from graphprune.ir.coupling.units import FROZEN, Coupling
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.ir.surgery import Kept, remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.verify.masking import masked

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Indices = list[int] | list[list[int]]

TOLERANCE = 1e-5
"""Relative L2 error of float32 models. The contract is 1e-4; the sums differ only in their order."""
ROUNDING = 1e-6
"""Root mean square error that is rounding whatever the output's norm: what runs through these nets is of order 1,
and an output may be small by cancellation."""


def values(model: onnx.ModelProto) -> dict[str, Array]:
    """Return the initializers' values, by name."""
    return {t.name: np.asarray(numpy_helper.to_array(t)) for t in model.graph.initializer}


def feeds(model: onnx.ModelProto, seed: int = 0, batch: int = 2) -> Feeds:
    """Return random inputs; symbolic extents become ``batch``."""
    random = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    made = {}
    for value in model.graph.input:
        if value.name not in stored:
            kind = value.type.tensor_type
            shape = [dim.dim_value or batch for dim in kind.shape.dim]
            made[value.name] = random.normal(size=shape).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return made


def run(model: onnx.ModelProto, inputs: Mapping[str, Array], *, optimised: bool = True) -> dict[str, Array]:
    """Run a model in ONNX Runtime, on one thread."""
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def assert_close(expected: Mapping[str, Array], got: Mapping[str, Array], tolerance: float = TOLERANCE) -> None:
    """Demand the same outputs, of the same shapes, to a relative L2 error."""
    assert list(expected) == list(got)
    for name, reference in expected.items():
        other = got[name]
        assert other.shape == reference.shape, name
        assert other.dtype == reference.dtype, name
        wanted, found = reference.astype(np.float64), other.astype(np.float64)
        assert np.isfinite(wanted).all(), f"{name}: the reference itself is not finite"
        error = float(np.linalg.norm(found - wanted))
        bound = tolerance * float(np.linalg.norm(wanted)) + ROUNDING * np.sqrt(wanted.size) * (tolerance / TOLERANCE)
        assert error <= bound, f"{name}: error {error:.2e}, bound {bound:.2e}"


def masked_by_kept(original: onnx.ModelProto, kept: Kept) -> onnx.ModelProto:
    """Return the original with zeros in the weights that read removed channels, and nothing else changed.

    Where activations meet each other, no weight reads them; then all that is removed of the weights and biases that
    make them is zero instead.

    Parameters
    ----------
    original : onnx.ModelProto
    kept : dict
        What surgery says it kept.
    """
    result = onnx.ModelProto()
    result.CopyFrom(original)
    before = values(original)
    zeros = _zero_points(original, before)
    zeroed: dict[str, Array] = {}
    nodes = list(_with_bodies(result.graph))
    producer = {name: node for node in nodes for name in node.output}
    for node in nodes:
        read = [(*_stored(node.input[slot], before, producer), axis) for slot, axis in _contracted(node)]
        if read and not any(name for name, _, _ in read):
            linear = {
                _stored(name, before, producer)[0]
                for other in nodes
                for name in other.input
                if other.op_type == "Add" or _contracted(other)
            }
            zeroed = {
                name: np.where(_kept_mask(before[name].shape, kept[name]), before[name], 0)
                for name in linear & set(kept)
            }
            break
        for name, places, axis in read:
            if name in kept:
                stays = _kept_mask(before[name].shape, kept[name]).ravel()[places]
                # A whole output that goes is masked where it is read, and left as it is here.
                gone = ~stays & stays.any(axis=axis, keepdims=True)
                zero = np.broadcast_to(zeros.get(name, 0), before[name].shape).ravel()[places[gone]]
                zeroed.setdefault(name, before[name].copy()).reshape(-1)[places[gone]] = zero
    for tensor in result.graph.initializer:
        if tensor.name in zeroed:
            values_left = zeroed[tensor.name].astype(before[tensor.name].dtype)
            tensor.CopyFrom(numpy_helper.from_array(values_left, tensor.name))
    return result


def _with_bodies(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Walk the nodes of a graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_bodies(attribute.g)


def _contracted(node: onnx.NodeProto) -> list[tuple[int, int | tuple[int, ...]]]:
    """Inputs that a node may contract with an activation, and their contracted axes."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    op = node.op_type.removeprefix("Fused")
    if op in ("QLinearConv", "ConvInteger"):
        return [(3 if op == "QLinearConv" else 1, 1)]
    if op in ("QLinearMatMul", "MatMulInteger", "QGemm"):
        return [(1 if op == "MatMulInteger" else 3, -1 if attributes.get("transB") else -2)]
    if op == "Conv":
        return [(1, 1)]
    if op == "ConvTranspose":
        return [(1, 0)]
    if op in ("Gemm", "MatMul"):
        return [(0, -2 if attributes.get("transA") else -1), (1, -1 if attributes.get("transB") else -2)]
    if op == "Einsum":
        terms, result = attributes["equation"].decode().split("->")
        letters = [[axis for axis, letter in enumerate(term) if letter not in result] for term in terms.split(",")]
        return [(slot, tuple(axes)) for slot, axes in enumerate(letters) if axes]
    if op in ("LSTM", "GRU", "RNN"):
        return [(1, 2), (2, 2)]
    if op == "Attention":
        return [(1, 0)] if node.domain else [(0, -1), (1, -1)]
    return []


def _zero_points(model: onnx.ModelProto, stored: Mapping[str, Array]) -> dict[str, Array]:
    """Return what quantised weights hold for 0, broadcastable to them."""
    slots = {"DequantizeLinear": (0, 2), "QLinearConv": (3, 5), "QLinearMatMul": (3, 5), "QGemm": (3, 5)}
    slots |= {"ConvInteger": (1, 3), "MatMulInteger": (1, 3)}
    found = {}
    for node in _with_bodies(model.graph):
        weight, zero = ([*node.input, "", "", "", ""][place] for place in slots.get(node.op_type, (-1, -1)))
        if weight in stored and zero in stored:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            rows = "Conv" in node.op_type or attributes.get("transB", 0)
            axis = attributes.get("axis", 1) if node.op_type == "DequantizeLinear" else 0 if rows else -1
            shape = [1] * stored[weight].ndim
            if stored[zero].size > 1:
                shape[axis] = -1
            found[weight] = stored[zero].reshape(shape if shape else ())
    return found


def _stored(name: str, stored: Mapping[str, Array], producer: Mapping[str, onnx.NodeProto]) -> tuple[str, Array]:
    """Return the initializer that a tensor is a view of, and where each of its elements is stored there."""
    if name in stored:
        return name, np.arange(stored[name].size).reshape(stored[name].shape)
    node = producer.get(name)
    if node is None or node.op_type not in ("Transpose", "Cast", "Reshape", "Split", "DequantizeLinear"):
        return "", np.zeros(0, dtype=np.int64)
    source, places = _stored(node.input[0], stored, producer)
    if source and node.op_type == "Transpose":
        places = places.transpose(next((list(a.ints) for a in node.attribute), None))
    elif source and node.op_type == "Reshape":
        places = places.reshape(stored[node.input[1]])
    elif source and node.op_type == "Split":
        sizes = np.cumsum(stored[node.input[1]])[:-1] if len(node.input) > 1 else len(node.output)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        places = np.split(places, sizes, axis)[list(node.output).index(name)]
    return source, places


def _kept_mask(shape: tuple[int, ...], kept: Mapping[int, Indices]) -> Array:
    """Return which elements of an array stay; along an axis it may differ from row to row of axis 0."""
    rows: Any = kept.get(0, list(range(shape[0])))
    stays = np.zeros(shape, dtype=np.bool_)
    stays[rows] = True
    for axis, indices in kept.items():
        along = np.zeros((shape[0], shape[axis]), dtype=np.bool_)
        for place, row in enumerate(rows):
            along[row, indices[place] if isinstance(indices[0], list) else indices] = True
        if axis > 0:
            stays &= along.reshape(shape[0], *(shape[axis] if other == axis else 1 for other in range(1, len(shape))))
    return stays


def sliced(array: Array, kept: Mapping[int, Indices]) -> Array:
    """Take what is kept of an array by indexing alone."""
    for axis in sorted(kept):
        indices = kept[axis]
        if indices and isinstance(indices[0], list):
            array = np.stack([row[chosen] for row, chosen in zip(array, indices, strict=True)])
        else:
            array = array.take(indices, axis=axis)
    return array


def assert_reproduces(original: onnx.ModelProto, pruned: onnx.ModelProto, kept: Kept) -> None:
    """Demand that indexing the original's weights by ``kept`` gives the pruned ones, bit for bit."""
    before, after = values(original), values(pruned)
    for name, array in before.items():
        if name in after:
            expected = sliced(array, kept.get(name, {}))
            assert after[name].dtype == expected.dtype, name
            assert after[name].shape == expected.shape, name
            assert after[name].tobytes() == np.ascontiguousarray(expected).tobytes(), name
        else:
            assert array.dtype.kind == "i", f"{name} is gone, and no shape constant"
    for name in set(after) - set(before):
        assert after[name].dtype.kind == "i", f"{name} is new, and no shape constant"


def assert_legal(coupling: Coupling, removed: Array) -> None:
    """Demand that a removal respects the balances and leaves every axis a position."""
    gone = np.append(removed, False)
    assert FROZEN == -1
    for name, arrays in coupling.ids.items():
        assert not _emptied(arrays, gone), name
    for parts in coupling.balances:
        counts = gone[parts].sum(axis=1)
        assert (counts == counts[0]).all()


def check_removal(coupling: Coupling, removed: Array, inputs: Feeds, tolerance: float = TOLERANCE) -> onnx.ModelProto:
    """Cut units out, and demand everything that is promised of it; return the pruned model.

    The pruned model is valid, has the original's outputs, equals it masked in two independent ways, and its weights
    are the original's, indexed.
    """
    original = coupling.graph.proto
    assert_legal(coupling, removed)
    before = original.SerializeToString(deterministic=True)
    pruned, kept = remove(coupling, removed)
    assert original.SerializeToString(deterministic=True) == before, "the original was changed"
    onnx.checker.check_model(pruned, full_check=True)
    expected = run(masked_by_kept(original, kept), inputs)
    got = run(pruned, inputs)
    assert_close(expected, got, tolerance)
    # Pushing a Transpose through the masks, ORT breaks a Pad that has an axes input; so node by node, as written.
    assert_close(run(masked(coupling, removed), inputs, optimised=False), got, tolerance)
    assert_reproduces(original, pruned, kept)
    return pruned


def assert_untouched(coupling: Coupling) -> None:
    """Demand that removing nothing changes nothing, byte for byte."""
    pruned, kept = remove(coupling, np.zeros(coupling.units, dtype=np.bool_))
    original = coupling.graph.proto
    assert kept == {}
    assert pruned.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)


def coupled(model: onnx.ModelProto) -> Coupling:
    """Couple the canonical form of a model."""
    return couple(Graph(canonicalize(model)))


def units_on(coupling: Coupling, name: str, axis: int) -> list[int]:
    """Return the unit at every position of an axis, -1 where the position must stay."""
    found = coupling.along(name, axis)
    if not found:
        shape = coupling.graph.shape(name)
        assert shape is not None, name
        return [FROZEN] * int(shape[axis] or 0)
    assert len(found) == 1, "positions of several units; see Coupling.along"
    return [int(unit) for unit in found[0]]


def removal(coupling: Coupling, units: Sequence[int]) -> Array:
    """Return the removal of these units."""
    removed = np.zeros(coupling.units, dtype=np.bool_)
    assert FROZEN not in units, "a position that must stay"
    removed[list(units)] = True
    return removed


def random_removal(coupling: Coupling, fraction: float | None, seed: int, *, spare_groups: bool = True) -> Array:
    """Return a random legal removal: too much is chosen, and put back until all constraints hold.

    Parameters
    ----------
    coupling : Coupling
    fraction : float or None
        Share of the units to start from; None for all but one unit of each group.
    seed : int
    spare_groups : bool
        Whether each group keeps a unit, beside what the constraints demand.
    """
    random = np.random.default_rng(seed)
    if fraction is None:
        removed = np.ones(coupling.units, dtype=np.bool_)
        for group in coupling.groups:
            removed[random.choice(group.units)] = False
    else:
        removed = random.random(coupling.units) < fraction
    tensors = [*coupling.ids.values()]
    if spare_groups:
        tensors += [(group.units,) for group in coupling.groups]
    while _put_back(removed, tensors, coupling.balances, random):
        pass
    return removed


def _emptied(arrays: Sequence[Array], gone: Array) -> bool:
    """Whether nothing of a tensor is left: each of its positions goes by one of its arrays."""
    return bool(arrays) and bool(np.logical_or.reduce(np.broadcast_arrays(*(gone[ids] for ids in arrays))).all())


def _put_back(
    removed: Array, tensors: Sequence[Sequence[Array]], balances: Sequence[Array], random: np.random.Generator
) -> bool:
    """Put units back where a constraint is broken; return whether any was."""
    changed = False
    for arrays in tensors:
        while _emptied(arrays, np.append(removed, False)):
            lost = [ids[np.append(removed, False)[ids]] for ids in arrays]
            removed[random.choice(np.concatenate(lost))] = False
            changed = True
    for parts in balances:
        lost = np.append(removed, False)[parts]
        for row, gone in zip(parts, lost, strict=True):
            if gone.sum() > lost.sum(axis=1).min():
                removed[random.choice(row[gone])] = False
                changed = True
    return changed


def assert_exact(
    model: onnx.ModelProto, *, tolerance: float = TOLERANCE, batch: int = 2, inputs: Feeds | None = None
) -> Coupling:
    """Demand that random removals, the extreme one among them, do what is promised; return the coupling."""
    coupling = coupled(model)
    assert coupling.units > 0, "nothing to remove"
    inputs = inputs or feeds(model, batch=batch)
    assert_close(run(model, inputs), run(coupling.graph.proto, inputs), tolerance)
    assert_untouched(coupling)
    tried = 0
    for seed, fraction in enumerate([0.2, 0.5, 0.8, None, None]):
        removed = random_removal(coupling, fraction, seed)
        if removed.any():
            check_removal(coupling, removed, inputs, tolerance)
            tried += 1
    assert tried > 0, "no unit could be removed"
    return coupling


def assert_masked(coupling: Coupling, *, tolerance: float = TOLERANCE, batch: int = 2) -> None:
    """Demand that random removals equal the masked original, where no weight reads some units (queries meet keys)."""
    original = coupling.graph.proto
    inputs = feeds(original, batch=batch)
    assert_untouched(coupling)
    tried = 0
    for seed, fraction in enumerate([0.2, 0.5, 0.8, None, None]):
        removed = random_removal(coupling, fraction, seed)
        if removed.any():
            assert_legal(coupling, removed)
            pruned, kept = remove(coupling, removed)
            onnx.checker.check_model(pruned, full_check=True)
            expected = run(masked(coupling, removed), inputs, optimised=False)
            assert_close(expected, run(pruned, inputs), tolerance)
            assert_reproduces(original, pruned, kept)
            tried += 1
    assert tried > 0, "no unit could be removed"


def all_groups(coupling: Coupling) -> dict[tuple[tuple[str, int], ...], int]:
    """Return the number of units by the axes that they live on."""
    return {group.axes: len(group.units) for group in coupling.groups}


def reasons(coupling: Coupling) -> dict[tuple[str, int], str]:
    """Return why each declined axis is left alone."""
    return {(d.tensor, d.axis): d.reason.text for d in coupling.declined}
