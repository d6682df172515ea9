"""From a torch module to ONNX, by either of torch's exporters."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import onnx
import torch
from torch import Tensor, nn

Exporter = Literal["dynamo", "script"]
OPSETS: dict[Exporter, tuple[int, ...]] = {"script": tuple(range(13, 21)), "dynamo": tuple(range(18, 26))}
"""The operator sets that each exporter writes itself."""


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module seeded weights that keep what runs through it at order 1, and statistics that are not trivial."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.dim() > 1 and isinstance(tensor, nn.Parameter):
            fan_in = 1 if "embed" in name else math.prod(tensor.shape[1:])
            tensor.data.normal_(0, math.sqrt(1.6 / fan_in), generator=random)
        elif name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1):
            tensor.data.uniform_(0.6, 1.4, generator=random)
        elif name.endswith(("bias", "running_mean")) or ".bias_" in name:
            tensor.data.uniform_(-0.3, 0.3, generator=random)
    return module.eval()


def export(
    module: nn.Module,
    inputs: Sequence[Tensor],
    exporter: Exporter,
    opset: int,
    *,
    dynamic: bool = False,
    others: Mapping[int, str] | None = None,
) -> onnx.ModelProto:
    """Export a module.

    Parameters
    ----------
    module : torch.nn.Module
    inputs : sequence of Tensor
        Examples, batch first.
    exporter : str
    opset : int
    dynamic : bool
        Whether the batch is symbolic.
    others : mapping, optional
        Other axes that are symbolic, then, and their names.
    """
    others = others or {}
    names = [f"input_{index}" for index in range(len(inputs))]
    with warnings.catch_warnings():
        if exporter == "dynamo":
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            # With a dynamic batch the exporter warns of its own workings, above all in an LSTM.
            warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
            warnings.filterwarnings("ignore", r"The tensor attributes self\.\w+\._flat_weights", UserWarning)
            warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
            warnings.filterwarnings("ignore", "_check_is_size will be removed", FutureWarning)
            free = dict.fromkeys(others, torch.export.Dim.AUTO)  # the exporter may find that some are related
            shapes = [{0: torch.export.Dim("batch"), **free} for _ in inputs] if dynamic else None
            program = torch.onnx.export(
                module, tuple(inputs), dynamo=True, opset_version=opset, input_names=names, dynamic_shapes=shapes,
                verbose=False,
            )  # fmt: skip
            assert program is not None
            return program.model_proto
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # shapes taken for constants: as they are
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size other than 1", UserWarning)
        stream = io.BytesIO()
        axes = {name: {0: "batch", **others} for name in names} if dynamic else None
        torch.onnx.export(
            module, tuple(inputs), stream, dynamo=False, opset_version=opset, input_names=names, dynamic_axes=axes
        )
        return onnx.load_from_string(stream.getvalue())
