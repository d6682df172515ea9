"""Torch-Pruning 1.6.1 on the networks rebuilt in torch: group magnitude, and BatchNorm re-estimation afterwards."""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from task import Candidate, Task, UnavailableError, every, search

if TYPE_CHECKING:
    from networks import Network
    from torch import nn


@dataclass(frozen=True)
class Setting:
    """Norm of the importance, one threshold everywhere or a ratio for each layer, trunk pruned or kept."""

    norm: int
    everywhere: bool
    trunk: bool
    repair: bool

    def __str__(self) -> str:
        where = "global" if self.everywhere else "per layer"
        return f"L{self.norm}, {where}{'' if self.trunk else ', trunk kept'}"


def structural(task: Task, share: float) -> Iterator[Candidate]:
    """L1 and L2, global and per layer, with and without the trunk; then BatchNorm re-estimation."""
    network = _rebuilt(task)
    trunks = (True, False) if network.trunk else (True,)
    settings = [Setting(*values, repair=True) for values in itertools.product((1, 2), (True, False), trunks)]
    yield from every(functools.partial(_pruned, task, network, share, setting) for setting in settings)


def plain(task: Task, share: float) -> Iterator[Candidate]:
    """L1 magnitude, every layer alike, nothing repaired (Li et al. 2017)."""
    yield _pruned(task, _rebuilt(task), share, Setting(1, everywhere=False, trunk=True, repair=False))


def _pruned(task: Task, network: Network, share: float, setting: Setting) -> Candidate:
    """One variant at the asked share; the search is on copies, the winner is repaired and exported."""
    before = _weights(network.module)
    modules: dict[str, nn.Module] = {}

    def prune(ratio: float) -> Candidate:
        variant = f"{setting} at ratio {ratio:.4f}"
        modules[variant] = _removed(task, network, ratio, setting)
        return Candidate(variant, onnx.ModelProto(), 1 - _weights(modules[variant]) / before)

    best = search(prune, share, guess=share / 2)
    module = modules[best.variant]
    if setting.repair:
        _reestimate(task, module)
    return replace(best, proto=_exported(task, module))


def _removed(task: Task, network: Network, ratio: float, setting: Setting) -> nn.Module:
    import torch_pruning  # noqa: PLC0415  (optional)

    network = copy.deepcopy(network)
    module: nn.Module = network.module
    pruner = torch_pruning.pruner.MagnitudePruner(
        module,
        _inputs(task, 1),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=setting.norm),
        pruning_ratio=ratio,
        global_pruning=setting.everywhere,
        ignored_layers=[network.output, *([] if setting.trunk else network.trunk)],
    )
    pruner.step()
    return module


def _rebuilt(task: Task) -> Network:
    """The network in torch, after a check that it computes what ONNX Runtime computes."""
    try:
        import torch_pruning  # noqa: F401, PLC0415  (optional)
        from networks import REBUILT, Reader  # noqa: PLC0415
    except ImportError as error:
        raise UnavailableError(f"Torch-Pruning cannot be imported: {error}") from error
    if task.name not in REBUILT:
        raise UnavailableError("not rebuilt in torch")
    file, build = REBUILT[task.name]
    path = task.path.with_name(f"{file}.onnx")
    network = build(Reader(onnx.load(path)))
    network.module.eval()
    values = _inputs(task, 16)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: values.numpy()})[0]
    found = network.module(values).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    return network


def _inputs(task: Task, samples: int) -> Any:
    import torch  # noqa: PLC0415  (optional)

    return torch.from_numpy(next(iter(task.feeds.values()))[:samples])


def _weights(module: nn.Module) -> int:
    """Elements of all parameters except those that only choose channels."""
    from networks import Shortcut  # noqa: PLC0415  (needs torch)

    layers = [layer for layer in module.modules() if not isinstance(layer, Shortcut)]
    return sum(p.numel() for layer in layers for p in layer.parameters(recurse=False))


def _reestimate(task: Task, module: nn.Module) -> None:
    """Means and variances of every BatchNorm from the calibration inputs, in one batch."""
    import torch  # noqa: PLC0415  (optional)

    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    if norms:
        with torch.no_grad():
            module(_inputs(task, task.samples))
    module.eval()


def _exported(task: Task, module: nn.Module) -> onnx.ModelProto:
    import torch  # noqa: PLC0415  (optional)

    example, axes = (_inputs(task, 1),), {"input": {0: "N"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "pruned.onnx"
        torch.onnx.export(module, example, path, dynamo=False, input_names=["input"], dynamic_axes=axes)
        return onnx.load(path)
