"""An ONNX graph as a torch module, and back: train the very graph that will be deployed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor, nn

from graphprune.errors import ModelError
from graphprune.finetune import constants, graph
from graphprune.finetune.tensors import store
from graphprune.ir.model import Model, fingerprint, from_proto, load, save
from graphprune.ir.tensors import FLOAT_TYPES, array


class GraphModule(nn.Module):
    """A torch module that interprets an ONNX model. Made by `to_torch`.

    Float initializers and float Constant nodes are parameters, those in the branches of If and the bodies of Loop and
    Scan too, so that any torch optimizer trains them. Running statistics of BatchNormalization, settings such as Clip's
    bounds, masks and scalars of rank 0 are buffers (`graphprune.finetune.constants.trained`), and so is what local
    functions store. ``train()`` and ``eval()`` switch BatchNormalization and Dropout.

    Parameters
    ----------
    model : Model
        The model; it is copied.

    Attributes
    ----------
    initializer_names : dict of str to str
        The ONNX name of every float parameter and buffer, by its torch name. The two differ where the ONNX
        name holds a dot, which torch forbids, or is taken. Of a name that several bodies give to weights of their own,
        all but the first get a number behind it.
    input_names : tuple of str
        Graph inputs without an initializer, in order: the arguments of the module.
    output_names : tuple of str
        Graph outputs, in order.
    constraints : list of callable
        Called without arguments before every forward pass and before `to_onnx` writes; `Masks` puts itself
        here.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        self.model = replace(model, proto=proto)
        self.constraints: list[Callable[[], None]] = []
        self.initializer_names: dict[str, str] = {}
        opened, self._stored_names = constants.opened(proto)
        self.steps = graph.steps(opened)
        values = constants.constants(opened)
        self.input_names = tuple(entry.name for entry in proto.graph.input if entry.name not in values)
        self.output_names = tuple(entry.name for entry in proto.graph.output)
        kinds = zip(self._stored_names, constants.stored(proto), strict=True)
        floats = {name for name, (_, tensor) in kinds if tensor.data_type in FLOAT_TYPES}
        weights = constants.trained(opened, values, floats)
        self._torch_names: dict[str, str] = {}
        for name, value in values.items():
            torch_name = self._free_name(name)
            self._torch_names[name] = torch_name
            if name in weights:
                self.register_parameter(torch_name, nn.Parameter(value))
            else:
                self.register_buffer(torch_name, value, persistent=name in floats)
            if name in floats:
                self.initializer_names[torch_name] = name

    def __getstate__(self) -> dict[str, Any]:
        # The steps hold functions that cannot be pickled, and the constraints belong to this module's weights.
        return {**self.__dict__, "steps": (), "constraints": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore: Any = super().__setstate__  # torch leaves it untyped
        restore(state)
        self.steps = graph.steps(constants.opened(self.model.proto)[0])

    def _free_name(self, name: str) -> str:
        candidate = name.replace(".", "_")
        while hasattr(self, candidate):
            candidate += "_"
        return candidate

    def parameter_of(self, name: str) -> nn.Parameter:
        """Return the parameter that an ONNX initializer (or Constant node's output) became.

        Parameters
        ----------
        name : str
            Its name in the ONNX graph.

        Returns
        -------
        torch.nn.Parameter

        Raises
        ------
        KeyError
            When no parameter has this ONNX name.
        """
        value = getattr(self, self._torch_names[name])
        if not isinstance(value, nn.Parameter):
            raise KeyError(name)
        return value

    def replace_graph(self, proto: onnx.ModelProto, values: Mapping[str, Tensor]) -> None:
        """Interpret another graph from now on, in place.

        Whoever holds the module goes on holding it; hooks, constraints and the mode (training or evaluation) stay.

        Parameters
        ----------
        proto : onnx.ModelProto
            The graph; it is copied.
        values : mapping of str to torch.Tensor
            By ONNX name, what its parameters and buffers become, in the graph's shapes: a parameter becomes the very
            object that is given. Others get the graph's values, on the device of those that are given.
        """
        fresh = GraphModule(Model(proto, None, *fingerprint(proto), external=self.model.external))
        fresh.to(next((value.device for value in values.values()), None))
        for torch_name, name in fresh.initializer_names.items():
            value = values.get(name, getattr(fresh, torch_name))
            delattr(fresh, torch_name)  # all anew, so that their order is that of a module of this very graph
            if isinstance(value, nn.Parameter):
                fresh.register_parameter(torch_name, value)
            else:
                fresh.register_buffer(torch_name, value)
        own = vars(nn.Module()).keys() - {"_parameters", "_buffers", "_non_persistent_buffers_set"} | {"constraints"}
        self.__dict__.update((key, value) for key, value in vars(fresh).items() if key not in own)

    def forward(self, *inputs: Tensor, **by_name: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the graph.

        Parameters
        ----------
        *inputs : torch.Tensor
            Graph inputs in the order of ``input_names``.
        **by_name : torch.Tensor
            Further graph inputs by their ONNX names.

        Returns
        -------
        torch.Tensor or tuple of torch.Tensor
            The graph's output, a tuple where it has several.

        Raises
        ------
        TypeError
            When an input is missing, unknown, or given twice.
        """
        values = self._bind(inputs, by_name)
        for constraint in self.constraints:
            constraint()
        for name, torch_name in self._torch_names.items():
            values[name] = getattr(self, torch_name)
        for step in self.steps:
            step.run(values, self.training)
        outputs = tuple(values[name] for name in self.output_names)
        return outputs[0] if len(outputs) == 1 else outputs

    def _bind(self, inputs: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> dict[str, Tensor]:
        if len(inputs) > len(self.input_names):
            raise TypeError(f"{len(inputs)} inputs were given, and the graph has {len(self.input_names)}")
        bound = dict(zip(self.input_names, inputs, strict=False))
        for name, value in by_name.items():
            if name not in self.input_names or name in bound:
                raise TypeError(f"input {name!r} is {'given twice' if name in bound else 'unknown to the graph'}")
            bound[name] = value
        missing = [name for name in self.input_names if name not in bound]
        if missing:
            raise TypeError(f"inputs are missing: {', '.join(missing)}")
        return bound


def to_torch(path_or_model: str | os.PathLike[str] | onnx.ModelProto | Model) -> GraphModule:
    """Make a torch module that computes what an ONNX model computes, with its weights as parameters.

    Parameters
    ----------
    path_or_model : path-like, onnx.ModelProto or Model
        The model. Operator set 7 or newer.

    Returns
    -------
    GraphModule
        In evaluation mode, as the graph is.

    Raises
    ------
    UnsupportedOperatorError
        When the graph has an operator that the interpreter does not know.
    ModelError
        When the model cannot be read.
    RecipeError
        When there is no such file.
    """
    if isinstance(path_or_model, Model):
        model = path_or_model
    elif isinstance(path_or_model, onnx.ModelProto):
        model = from_proto(path_or_model)
    else:
        model = load(path_or_model)
    module = GraphModule(model)
    module.eval()
    return module


def to_onnx(module: nn.Module, path: str | os.PathLike[str]) -> int:
    """Write a module's weights back into the very graph that it was made from.

    Nodes, names, metadata and all else stay as they were read, and a weight that has not changed stays the
    same to the bit. The file appears whole or not at all.

    Parameters
    ----------
    module : torch.nn.Module
        A module made by `to_torch`.
    path : path-like
        The ``.onnx`` file to write; weights go beside it into external data where they came from there.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    TypeError
        When the module was not made by `to_torch`.
    ModelError
        When a weight's shape has changed, or a weight or running statistic is not finite any more.
    RecipeError
        When the folder does not exist or cannot be written.
    """
    if not isinstance(module, GraphModule):
        raise TypeError("to_onnx writes modules made by to_torch; unwrap yours first (.module)")
    return save(to_proto(module), path, external=module.model.external)


def to_proto(module: GraphModule) -> onnx.ModelProto:
    """Return the graph that a module was made from, with its weights as they are now.

    Parameters
    ----------
    module : GraphModule

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ModelError
        When a weight's shape has changed, or a weight or running statistic is not finite any more.
    """
    for constraint in module.constraints:
        constraint()
    proto = onnx.ModelProto()
    proto.CopyFrom(module.model.proto)
    tensors = (tensor for _, tensor in constants.stored(proto))
    by_name = dict(zip(module._stored_names, tensors, strict=True))
    for torch_name, name in module.initializer_names.items():
        value = getattr(module, torch_name)
        if not value.isfinite().all() and (_is_trained(value) or np.isfinite(_floats(by_name[name])).all()):
            raise ModelError(
                "a weight is infinite or not a number: the training diverged",
                where=name,
                hint="train again with a smaller learning rate",
            )
        store(value, by_name[name])
    return proto


def _is_trained(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) and value.requires_grad


def _floats(tensor: onnx.TensorProto) -> npt.NDArray[np.float64]:
    """What a tensor was: one that is not trained may hold an infinity from the beginning, such as a mask."""
    return array(tensor).astype(np.float64)
