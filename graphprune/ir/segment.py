"""Cut the part out of a model that computes some tensors from others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from graphprune.ir.bodies import captured


def segment(proto: onnx.ModelProto, given: Mapping[str, int], wanted: Iterable[str]) -> onnx.ModelProto:
    """Return the model that computes tensors of another from tensors of it.

    Parameters
    ----------
    proto : onnx.ModelProto
        Not changed.
    given : mapping of str to int
        Tensors that are known, with their element types: the inputs. Those that are not needed are left out.
    wanted : iterable of str
        Tensors of the main graph: the outputs, less those that are given.

    Returns
    -------
    onnx.ModelProto
        Its nodes, initializers and inputs are those of the other that are needed.
    """
    outputs = [name for name in dict.fromkeys(wanted) if name not in given]
    needed, nodes = set(outputs), []
    for node in reversed(proto.graph.node):
        if any(name in needed and name not in given for name in node.output):
            nodes.append(node)
            needed.update(name for name in (*node.input, *captured(node)) if name)
    # What is known may still be an output of a node that other outputs are wanted of.
    needed.difference_update(name for node in nodes for name in node.output)
    inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in given.items() if name in needed]
    unknown = needed - given.keys()
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in unknown]
    sparse = [tensor for tensor in proto.graph.sparse_initializer if tensor.values.name in unknown]
    graph = onnx.GraphProto(
        name=proto.graph.name, input=inputs, initializer=stored, sparse_initializer=sparse, node=reversed(nodes)
    )
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return onnx.ModelProto(
        ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import, functions=proto.functions, graph=graph
    )
