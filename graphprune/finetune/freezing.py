"""Train convolutional and fully connected layers in turns (Han et al. 2015, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from graphprune.errors import RecipeError
from graphprune.finetune.layers import CONVOLUTIONAL, FULLY_CONNECTED, find_graph, structure

KINDS = {"convolutional": CONVOLUTIONAL, "fully connected": FULLY_CONNECTED}


@contextmanager
def frozen(module: nn.Module, kind: str) -> Iterator[list[str]]:
    """Leave the layers of one kind as they are while a block runs.

    Deep networks learn better after pruning where the convolutional layers are kept fixed while the fully connected
    ones are trained, and the other way round (Han et al. 2015): no gradient has to run through all of them.

    Parameters
    ----------
    module : torch.nn.Module
        What `to_torch` returned, or a module that holds it.
    kind : {"convolutional", "fully connected"}
        Conv and ConvTranspose, or Gemm and MatMul by a stored weight; weights and biases both. Normalisation goes on.

    Yields
    ------
    list of str
        ONNX names of what is frozen; what was frozen before, and stays so, is not among them.

    Raises
    ------
    RecipeError
        When there is no such kind.

    Notes
    -----
    Gradients that are there are dropped, so that momentum and weight decay do not move what is frozen either. Where its
    schedule is due, a `Pruner` still zeroes weights of frozen layers. LBFGS moves what is frozen by what it has seen
    before: make it inside the block. So has DistributedDataParallel to be: it waits for the gradients of all parameters
    that needed one when it was made.
    """
    if kind not in KINDS:
        raise RecipeError(
            f"layers to freeze must be {' or '.join(repr(known) for known in KINDS)}, not {kind!r}",
            where="frozen",
            hint="freeze one kind of layers while the other is trained",
        )
    graph = find_graph(module)
    found: dict[str, nn.Parameter] = {}
    for layer in structure(graph).layers:
        if layer.op in KINDS[kind]:
            found.update((name, graph.parameter_of(name)) for name in (*layer.weights, *layer.biases))
    held = {name: parameter for name, parameter in found.items() if parameter.requires_grad}
    for parameter in held.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield list(held)
    finally:
        there = set(graph.initializer_names.values())
        for name in held.keys() & there:  # a parameter that was trimmed meanwhile is another one
            graph.parameter_of(name).requires_grad_(True)
