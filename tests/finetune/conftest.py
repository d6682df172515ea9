"""One-node models run in torch and in ONNX Runtime, and the real networks with their data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from graphprune.finetune import to_torch  # noqa: E402

ZOO = Path(__file__).resolve().parents[2] / ".." / "shared" / "zoo"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


def one_node(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    *,
    opset: int = 17,
    outputs: int = 1,
    fixed: Sequence[int] | None = None,
    ranks: Sequence[int] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """Make a model of one node: input 0 is a graph input, the others are initializers unless ``fixed`` tells.

    The type may have its domain in front, as in the table of operators. The ranks of the outputs, by default that of
    input 0, count where ONNX infers none.
    """
    domain, _, op_type = op_type.rpartition(".") if "." in op_type else ("", "", op_type)
    names = ["" if value is None else f"x{k}" for k, value in enumerate(inputs)]
    fixed = range(1, len(inputs)) if fixed is None else fixed
    made = [f"y{k}" for k in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, made, name="the_node", domain=domain, **attributes)],
        "one_node",
        [
            helper.make_tensor_value_info(names[k], helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for k, value in enumerate(inputs)
            if value is not None and k not in fixed
        ],
        [],
        [numpy_helper.from_array(inputs[k], names[k]) for k in fixed if inputs[k] is not None],
    )
    ir_version = 8 if opset <= 17 else 10
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
    found = {info.name: info for info in onnx.shape_inference.infer_shapes(model).graph.value_info}
    found = {name: info for name, info in found.items() if info.type.tensor_type.HasField("shape")}
    # Of ONNX Runtime's own operators nothing is inferred.
    for name, rank in zip(made, ranks or [inputs[0].ndim] * outputs, strict=True):
        kind = TensorProto.INT32 if rank == 1 else TensorProto.FLOAT
        told = found.get(name) or helper.make_tensor_value_info(name, kind, [None] * rank)
        model.graph.output.append(told)
    return model


def session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_ort(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return session(model).run(None, feeds)


def run_torch(module: torch.nn.Module, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        got = module(**{name: torch.from_numpy(value.copy()) for name, value in feeds.items()})
    return [value.numpy() for value in (got if isinstance(got, tuple) else (got,))]


def relative_error(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """Return the largest relative L2 error of any output."""
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        assert want.shape == have.shape
        assert want.dtype == have.dtype
        exact = want.astype(np.float64)
        worst = max(worst, float(np.linalg.norm(exact - have) / max(np.linalg.norm(exact), 1e-12)))
    return worst


@pytest.fixture
def check() -> Callable[..., None]:
    """Return a function that asserts that torch and ONNX Runtime agree on a one-node model to 1e-5."""

    def run(op_type: str, inputs: Sequence[np.ndarray | None], **options: Any) -> None:
        model = one_node(op_type, inputs, **options)
        feeds = {entry.name: inputs[int(entry.name[1:])] for entry in model.graph.input}
        assert relative_error(run_ort(model, feeds), run_torch(to_torch(model), feeds)) < 1e-5

    return run


@pytest.fixture(name="one_node")
def _one_node() -> Callable[..., onnx.ModelProto]:
    return one_node


@pytest.fixture(name="run_ort")
def _run_ort() -> Callable[..., list[np.ndarray]]:
    return run_ort


@pytest.fixture(name="run_torch")
def _run_torch() -> Callable[..., list[np.ndarray]]:
    return run_torch


@pytest.fixture(name="relative_error")
def _relative_error() -> Callable[..., float]:
    return relative_error


@pytest.fixture(scope="session")
def zoo_models() -> Path:
    if not (ZOO / "models").is_dir():
        pytest.skip("the real models in ../shared/zoo are not here")
    return ZOO / "models"


@pytest.fixture(scope="session")
def zoo_data() -> Path:
    if not (ZOO / "data" / "mnist.npz").is_file():
        pytest.skip("the real data in ../shared/zoo is not here")
    return ZOO / "data"


@pytest.fixture(scope="session")
def zoo(zoo_models: Path) -> ModuleType:
    """Return the zoo's own module of data and preprocessing."""
    spec = importlib.util.spec_from_file_location("zoo", ZOO / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
