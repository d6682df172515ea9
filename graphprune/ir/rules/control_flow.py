"""If, Loop and Scan: what crosses the boundary of a body is tied on both sides of it.

- If: y = a where the condition holds, b elsewhere. Position j of y goes where position j of both a and b goes.
- Loop and Scan carry states: s[0] is given, s[t + 1] = body(s[t]), the last one is an output. Position j of the initial
  value, of what the body reads, of what it gives back and of the final value are one. As within any other graph, what
  is removed is masked wherever it is consumed, in the body too; so, by induction over the iterations, all that stays is
  computed as before.
- Scan hands its body one position of an axis at a time: that axis stays, the others pass. Results of all iterations
  are stacked along an axis, which stays.

A state that does not keep its shape from one iteration to the next is frozen.

References: https://onnx.ai/onnx/operators/onnx__If.html, onnx__Loop.html, onnx__Scan.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from graphprune.ir.coupling.atoms import Reason, support
from graphprune.ir.coupling.coupler import Coupler
from graphprune.ir.nodes import Body, Node
from graphprune.ir.rules.rule import Rule
from graphprune.ir.shapes.flow import scan_axes


def couple_if(node: Node, coupler: Coupler) -> Iterator[Body]:
    """Join the outputs of both branches."""
    if not node.bodies:
        coupler.freeze_node(node, f"the branches of {node.op} cannot be looked into")
        return
    first, second = node.bodies["then_branch"], node.bodies["else_branch"]
    yield first
    yield second
    for made, one, other in zip(node.outputs, first.outputs, second.outputs, strict=False):
        _join(node, coupler, (one, other), made, f"the branches of {node.op} make different shapes")


def couple_loop(node: Node, coupler: Coupler) -> Iterator[Body]:
    """Tie the states, and stack the other results of the iterations along axis 0."""
    if not node.bodies:
        coupler.freeze_node(node, f"the body of {node.op} cannot be looked into")
        return
    body = node.bodies["body"]
    count = len(node.inputs[2:])
    kept = Reason(node.label, node.op, f"{node.op} counts and stops by it")
    for name in (*node.inputs[:2], *body.inputs[:2]):
        coupler.freeze_tensor(name, kept)
    yield from _iterate(node, coupler, body, node.inputs[2:], body.inputs[2:], body.outputs[1 : 1 + count])
    coupler.freeze_tensor(body.outputs[0], kept)
    for made, result in zip(node.outputs[count:], body.outputs[1 + count :], strict=False):
        _stack(node, coupler, result, made, 0)


def couple_scan(node: Node, coupler: Coupler) -> Iterator[Body]:
    """Tie the states; scanned and stacked axes stay."""
    if not node.bodies:
        coupler.freeze_node(node, f"the body of {node.op} cannot be looked into")
        return
    body, axes = node.bodies["body"], scan_axes(node.proto)
    count = len(node.inputs) - len(axes.inputs)
    for source, entry, axis in zip(node.inputs[count:], body.inputs[count:], axes.inputs, strict=True):
        _unstack(node, coupler, source, entry, axis)
    yield from _iterate(node, coupler, body, node.inputs[:count], body.inputs[:count], body.outputs[:count])
    for made, result, axis in zip(node.outputs[count:], body.outputs[count:], axes.outputs, strict=False):
        _stack(node, coupler, result, made, axis)


def _iterate(
    node: Node, coupler: Coupler, body: Body, initial: Iterable[str], entries: Iterable[str], exits: Iterable[str]
) -> Iterator[Body]:
    """Tie initial values, what the body reads, what it gives back and the final values, and let the body be walked."""
    states = list(zip(initial, entries, exits, strict=True))
    for start, entry, _ in states:
        _enter(node, coupler, start, entry)
    yield body
    for (_, entry, leaving), made in zip(states, node.outputs, strict=False):
        _join(node, coupler, (entry, leaving), made, f"{node.op} does not keep the shape of {entry!r}")


def _enter(node: Node, coupler: Coupler, start: str, entry: str) -> None:
    """Hand an initial value's ids to the body, along the axes that keep their extent."""
    given, kept = coupler.shape(start), coupler.shape(entry)
    reason = Reason(node.label, node.op, f"{node.op} does not keep the shape of {entry!r}")
    if given is None or kept is None or len(given) != len(kept):
        coupler.freeze_tensor(start, reason)
        coupler.set(entry, [], reason)
        return
    passed = []
    for ids in coupler.ids(start):
        if all(given[axis] == kept[axis] for axis in support(ids)):
            passed.append(ids)
        else:
            coupler.freeze([ids], reason)
    coupler.set(entry, passed, coupler.why_untracked(start))
    coupler.apart(entry)


def _join(node: Node, coupler: Coupler, values: tuple[str, str], made: str, text: str) -> None:
    """Join two tensors that a third stands for, axis by axis; where they are not known to be alike, both stay."""
    reason = Reason(node.label, node.op, text)
    shapes = [coupler.shape(name) for name in values]
    for name in values:
        coupler.apart(name)
    if None in shapes or len({len(shape or ()) for shape in shapes}) > 1:
        for name in values:
            coupler.freeze_tensor(name, reason)
        coupler.set(made, [], reason)
        return
    for axis in sorted({axis for name in values for ids in coupler.ids(name) for axis in support(ids)}):
        coupler.join(coupler.vector(values[0], axis), coupler.vector(values[1], axis), reason)
    coupler.set(made, coupler.ids(values[0]), coupler.why_untracked(values[0]))


def _stack(node: Node, coupler: Coupler, result: str, made: str, axis: int) -> None:
    """Give the results of all iterations, stacked along an axis, the ids of one."""
    shape = coupler.shape(result)
    coupler.apart(result)
    if shape is None:
        coupler.freeze_tensor(result, Reason(node.label, node.op, f"the rank of {result!r} is not known"))
        coupler.set(made, [], coupler.why_untracked(result))
        return
    place = axis % (len(shape) + 1)
    ids = [np.expand_dims(ids, place) for ids in coupler.ids(result)]
    coupler.set(made, ids, coupler.why_untracked(result))


def _unstack(node: Node, coupler: Coupler, source: str, entry: str, axis: int) -> None:
    """Give one position of a scanned axis the ids of the others."""
    shape = coupler.shape(source)
    reason = Reason(node.label, node.op, f"the rank of {source!r} is not known")
    if shape is None:
        coupler.freeze_tensor(source, reason)
        coupler.set(entry, [], reason)
        return
    place = axis % len(shape)
    others = [other for other in range(len(shape)) if other != place]
    ids = coupler.pass_axes(node, source, others, f"{node.op} runs along the axis")
    coupler.set(entry, [own.squeeze(place) for own in ids], coupler.why_untracked(source))
    coupler.apart(entry)


RULES = {"If": Rule(couple_if), "Loop": Rule(couple_loop), "Scan": Rule(couple_scan)}
