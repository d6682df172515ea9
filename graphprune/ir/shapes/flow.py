"""Control flow laid flat, for shape inference: nodes of bodies among those of the main graph.

ONNX's own inference stops at what Loop carries from one iteration to the next. Here If, Loop and Scan are replaced by
their bodies' nodes and by stand-ins that pass shapes on, but no values:

- If: its output has the shape of the first branch's, as long as the other branch agrees;
- Loop and Scan: what is carried has the shape of its initial value, as long as the body gives back one of that shape
  (then it has it after every iteration, by induction);
- elements of a sequence that is scanned lack its axis; results that are stacked have one axis more, of unknown extent.

Where the two sides do not agree, the stand-in is replaced by an input of the shape that both have, and inference begins
anew; nothing that has not been found to hold is left in the end.

References: https://onnx.ai/onnx/operators/onnx__If.html, onnx__Loop.html, onnx__Scan.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphprune.ir.bodies import DEFAULT_DOMAINS, are_open, is_control_flow

Extents = list[int | str | None]
PREFIX = "graphprune_flow_"
UNKNOWN_PLACE, UNKNOWN_PLACES = f"{PREFIX}place", f"{PREFIX}places"
MADE_UP = "unk__"
"""How the symbols begin that shape inference makes up; they mean something in one run alone."""


@dataclass
class Flat:
    """A model in the making.

    Attributes
    ----------
    wide : dict of str to onnx.ValueInfoProto
        What is known of tensors whose two sides do not agree.
    opset : int
    nodes : list of onnx.NodeProto
    inputs : list of onnx.ValueInfoProto
    pairs : list of (str, str)
        What a stand-in makes, and what must have the same shape.
    """

    wide: Mapping[str, onnx.ValueInfoProto]
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)

    def same(self, made: str, source: str, other: str, declared: onnx.ValueInfoProto) -> None:
        """Let a tensor have the shape that two others have; sequences and optionals are as declared."""
        if made in self.wide:
            self.inputs.append(self.wide[made])
            self.pairs.append((made, other))
        elif declared.type.WhichOneof("value") not in (None, "tensor_type"):
            self.inputs.append(onnx.ValueInfoProto(name=made, type=declared.type))
        else:
            # It keeps the shape of what it writes into, whatever it writes: so no value passes through.
            op = "Scatter" if self.opset < 11 else "ScatterElements"
            self.nodes.append(helper.make_node(op, [source, UNKNOWN_PLACES, source], [made]))
            self.pairs.append((made, other))

    def scalar(self, declared: onnx.ValueInfoProto, kind: int) -> None:
        """Let a tensor be as declared, else one number of that element type."""
        known = declared.type.tensor_type.HasField("shape")
        self.inputs.append(declared if known else helper.make_tensor_value_info(declared.name, kind, []))

    def element(self, made: str, source: str, axis: int) -> None:
        """Let a tensor be one position of another along an axis."""
        self.nodes.append(helper.make_node("Gather", [source, UNKNOWN_PLACE], [made], axis=axis))

    def stacked(self, made: str, source: str, axis: int) -> None:
        """Let a tensor be any number of another stacked along an axis."""
        once = f"{PREFIX}{made}"
        if self.opset < 13:
            self.nodes.append(helper.make_node("Unsqueeze", [source], [once], axes=[axis]))
        else:
            value = numpy_helper.from_array(np.array([axis], np.int64))
            self.nodes.append(helper.make_node("Constant", [], [f"{once}_axis"], value=value))
            self.nodes.append(helper.make_node("Unsqueeze", [source, f"{once}_axis"], [once]))
        self.nodes.append(helper.make_node("Gather", [once, UNKNOWN_PLACES], [made], axis=axis))


def infer_flat(bare: onnx.ModelProto, infer: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Infer the shapes of all tensors of a model, those in open bodies too.

    Parameters
    ----------
    bare : onnx.ModelProto
        Not changed.
    infer : callable
        Returns a model without open bodies with its ``value_info``.

    Returns
    -------
    onnx.ModelProto
        The model laid flat; itself where it has no open bodies.
    """
    if not any(is_control_flow(node) for node in bare.graph.node) or not are_open(bare):
        return infer(bare)
    wide: dict[str, onnx.ValueInfoProto] = {}
    while True:
        model, pairs = _flattened(bare, wide)
        inferred = infer(model)
        broken = list(_broken(inferred, pairs, wide))
        if not broken:
            return inferred
        wide.update((value.name, value) for value in broken)


def _flattened(
    bare: onnx.ModelProto, wide: Mapping[str, onnx.ValueInfoProto]
) -> tuple[onnx.ModelProto, list[tuple[str, str]]]:
    opset = next((o.version for o in bare.opset_import if o.domain in DEFAULT_DOMAINS), 1)
    flat = Flat(wide, opset)
    _lay(bare.graph.node, flat)
    model = onnx.ModelProto()
    model.CopyFrom(bare)
    del model.graph.node[:]
    model.graph.node.extend(flat.nodes)
    for name, shape in ((UNKNOWN_PLACE, []), (UNKNOWN_PLACES, [None])):
        model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape))
    model.graph.input.extend(flat.inputs)
    for value in [value for value in model.graph.value_info if value.name in wide]:
        model.graph.value_info.remove(value)
    return model, flat.pairs


def _lay(nodes: Iterable[onnx.NodeProto], flat: Flat) -> None:
    for node in nodes:
        if is_control_flow(node):
            LAYERS[node.op_type](node, {a.name: helper.get_attribute_value(a) for a in node.attribute}, flat)
        else:
            flat.nodes.append(node)


def _lay_if(node: onnx.NodeProto, attributes: Mapping[str, onnx.GraphProto], flat: Flat) -> None:
    first, second = attributes["then_branch"], attributes["else_branch"]
    _lay(first.node, flat)
    _lay(second.node, flat)
    for made, one, other in zip(node.output, first.output, second.output, strict=False):
        if made:
            flat.same(made, one.name, other.name, one)


def _lay_loop(node: onnx.NodeProto, attributes: Mapping[str, onnx.GraphProto], flat: Flat) -> None:
    body, carried = attributes["body"], len(node.input[2:])
    flat.scalar(body.input[0], onnx.TensorProto.INT64)
    flat.scalar(body.input[1], onnx.TensorProto.BOOL)
    states = _Carried(node.input[2:], body.input[2:], body.output[1 : 1 + carried], node.output)
    _lay_body(body, states, flat)
    for made, value in zip(node.output[carried:], body.output[1 + carried :], strict=False):
        if made:
            flat.stacked(made, value.name, 0)


def _lay_scan(node: onnx.NodeProto, attributes: Mapping[str, onnx.GraphProto], flat: Flat) -> None:
    body, scan = attributes["body"], scan_axes(node)
    carried = len(node.input) - len(scan.inputs)
    for source, entry, axis in zip(node.input[carried:], body.input[carried:], scan.inputs, strict=True):
        flat.element(entry.name, source, axis)
    states = _Carried(node.input[:carried], body.input[:carried], body.output[:carried], node.output)
    _lay_body(body, states, flat)
    for made, value, axis in zip(node.output[carried:], body.output[carried:], scan.outputs, strict=False):
        if made:
            flat.stacked(made, value.name, axis)


@dataclass
class _Carried:
    """What is carried, position by position: initial values, the body's inputs and outputs, final values."""

    initial: Iterable[str]
    entries: Iterable[onnx.ValueInfoProto]
    exits: Iterable[onnx.ValueInfoProto]
    final: Iterable[str]


def _lay_body(body: onnx.GraphProto, carried: _Carried, flat: Flat) -> None:
    ends = list(zip(carried.initial, carried.entries, carried.exits, carried.final, strict=False))
    for initial, entry, leaving, _ in ends:
        flat.same(entry.name, initial, leaving.name, entry)
    _lay(body.node, flat)
    for _, entry, _, final in ends:
        if final:
            flat.same(final, entry.name, entry.name, entry)


LAYERS = {"If": _lay_if, "Loop": _lay_loop, "Scan": _lay_scan}


@dataclass(frozen=True)
class ScanAxes:
    """Axes along which Scan takes its inputs apart and stacks its outputs, one for each; they may be negative."""

    inputs: list[int]
    outputs: list[int]


def scan_axes(node: onnx.NodeProto) -> ScanAxes:
    """Return the axes of a Scan (operator set 9 and later)."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    scanned = int(attributes["num_scan_inputs"])
    stacked = len(attributes["body"].output) - (len(node.input) - scanned)
    inputs = list(attributes.get("scan_input_axes", [0] * scanned))
    return ScanAxes(inputs, list(attributes.get("scan_output_axes", [0] * stacked)))


def _broken(
    inferred: onnx.ModelProto, pairs: Iterable[tuple[str, str]], wide: Mapping[str, onnx.ValueInfoProto]
) -> Iterator[onnx.ValueInfoProto]:
    """For pairs that do not agree, what holds for both."""
    graph = inferred.graph
    known = {value.name: value for value in (*graph.value_info, *graph.output, *graph.input)}
    known.update((t.name, helper.make_tensor_value_info(t.name, t.data_type, t.dims)) for t in graph.initializer)
    for made, other in pairs:
        claimed, found = _extents(wide.get(made, known.get(made))), _extents(known.get(other))
        if claimed is None:
            continue
        both: Extents | None = None
        if found is not None and len(found) == len(claimed):
            both = [mine if mine == yours else None for mine, yours in zip(claimed, found, strict=True)]
        if both != claimed:
            # What inference has made up means something else in the next run.
            lasting = both and [None if str(extent).startswith(MADE_UP) else extent for extent in both]
            yield helper.make_tensor_value_info(made, known[made].type.tensor_type.elem_type, lasting)


def _extents(value: onnx.ValueInfoProto | None) -> Extents | None:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]
