"""Activations in full, and what the passes are given of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from graphprune.calib.run import calibrate, probes_for
from graphprune.calib.sources import input_specs, open_source
from graphprune.calib.stats import Key, Moments
from graphprune.ir.coupling.units import Coupling
from graphprune.ir.coupling.walk import couple
from graphprune.ir.graph import Graph
from graphprune.passes.canonicalize import canonicalize
from graphprune.passes.criteria import Scores, score

Array = npt.NDArray[Any]


def materialise(model: onnx.ModelProto, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the values of inner tensors, the whole of them; nothing is fused."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    kinds = Graph(model).element_types
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, kinds[name], None) for name in names)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(inputs)), strict=True))


def measured(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> tuple[Coupling, dict[Key, Moments]]:
    """Couple the canonical form of a model, weights as they are, and measure it on these samples."""
    coupling = couple(Graph(canonicalize(model)))
    source = open_source(dict(inputs), input_specs(model))
    return coupling, calibrate(coupling.graph, probes_for(coupling), source, threads=1)


def scored(model: onnx.ModelProto, inputs: Mapping[str, Array], criterion: str = "apoz") -> tuple[Coupling, Scores]:
    """Couple a model and score its units on these samples."""
    coupling, statistics = measured(model, inputs)
    return coupling, score(coupling, statistics, criterion)


def given_scores(coupling: Coupling, seed: int = 0, *, criterion: str = "apoz", levels: int = 0) -> Scores:
    """Return random scores in [0, 1); with ``levels`` only so many different ones, so that there are ties."""
    values = np.random.default_rng(seed).random(coupling.units)
    if levels:
        values = np.floor(values * levels) / levels
    return Scores(values, (criterion,) * len(coupling.groups), np.zeros(coupling.units, dtype=np.bool_))


def editable(model: onnx.ModelProto) -> dict[str, Array]:
    """Return copies of the initializers' values, by name."""
    return {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}


def replaced(model: onnx.ModelProto, **arrays: Array) -> onnx.ModelProto:
    """Return the model with other values in some initializers, of the same element types."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in arrays:
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name].astype(kind), tensor.name))
    return result
