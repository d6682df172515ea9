"""Every operator in the table: outputs equal ONNX Runtime's, gradients finite differences, and nothing is on the CPU.

Reference of the finite differences: torch.autograd.gradcheck, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

torch = pytest.importorskip("torch")

from graphprune.errors import UnsupportedOperatorError  # noqa: E402
from graphprune.finetune import GraphModule, to_torch  # noqa: E402
from graphprune.finetune.operators import OPERATORS, REFUSED  # noqa: E402
from graphprune.ir.rules import RULES  # noqa: E402
from tests.finetune.cases import CASES, Case  # noqa: E402

CONTROL_FLOW = {"If", "Loop", "Scan"}
"""tests/finetune/test_control_flow.py is about them."""


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES} | CONTROL_FLOW == set(OPERATORS)


def test_what_has_a_rule_of_coupling_is_interpreted_or_refused_on_purpose() -> None:
    assert set(RULES) <= set(OPERATORS) | set(REFUSED)
    assert not set(OPERATORS) & set(REFUSED)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_equal_onnxruntime(
    case: Case,
    one_node: Callable[..., onnx.ModelProto],
    run_ort: Callable[..., Any],
    run_torch: Callable[..., Any],
    relative_error: Callable[..., float],
) -> None:
    model = one_node(case.op, case.inputs, **case.options)
    feeds = {entry.name: case.inputs[int(entry.name[1:])] for entry in model.graph.input}
    expected = run_ort(model, feeds) if case.runs else ReferenceEvaluator(model).run(None, feeds)
    assert relative_error(expected, run_torch(to_torch(model), feeds)) < 1e-5


def every(module: GraphModule, case: Case) -> dict[str, Any]:
    """Return graph inputs and weights by ONNX name, in float64."""
    given = {f"x{slot}": value for slot, value in enumerate(case.inputs) if value is not None}
    values = {name: torch.from_numpy(np.array(value)) for name, value in given.items()}
    return {name: value.double() if value.is_floating_point() else value for name, value in values.items()}


@pytest.mark.parametrize("case", [case for case in CASES if case.slopes], ids=str)
def test_gradients_equal_finite_differences(case: Case, one_node: Callable[..., onnx.ModelProto]) -> None:
    module = to_torch(one_node(case.op, case.inputs, **case.options)).double()
    values = every(module, case)
    names = [f"x{slot}" for slot in case.slopes]
    torch_names = {onnx_name: name for name, onnx_name in module.initializer_names.items()}

    def run(*moved: Any) -> Any:
        now = {**values, **dict(zip(names, moved, strict=True))}
        stored = {torch_names[name]: now[name] for name in names if name in torch_names}
        inputs = {name: now[name] for name in module.input_names}
        made = torch.func.functional_call(module, stored, kwargs=inputs)
        return tuple(y for y in (made if isinstance(made, tuple) else (made,)) if y.is_floating_point())

    assert torch.autograd.gradcheck(run, [values[name].requires_grad_() for name in names])


@pytest.mark.parametrize("case", [case for case in CASES if not case.host], ids=str)
def test_nothing_is_made_on_the_cpu(case: Case, one_node: Callable[..., onnx.ModelProto]) -> None:
    """The meta device takes no tensor of another one, as CUDA does not."""
    model = one_node(case.op, case.inputs, **case.options)
    module = to_torch(model).to("meta")
    made = module(**{name: torch.from_numpy(case.inputs[int(name[1:])]).to("meta") for name in module.input_names})
    assert {y.device.type for y in (made if isinstance(made, tuple) else (made,))} == {"meta"}


def test_a_cache_that_is_not_empty_is_refused_with_what_to_do(one_node: Callable[..., onnx.ModelProto]) -> None:
    (case, *_) = (case for case in CASES if case.op == "com.microsoft.GroupQueryAttention")
    past = np.zeros((2, 2, 3, 8), np.float32)
    given = [*case.inputs[:3], past, past, *case.inputs[5:]]
    module = to_torch(one_node(case.op, given, **{**case.options, "fixed": range(1, 7)}))
    with pytest.raises(UnsupportedOperatorError, match="empty cache"):
        module(torch.from_numpy(given[0]))


def test_a_mask_of_another_shape_is_refused(one_node: Callable[..., onnx.ModelProto]) -> None:
    (case, *_) = (case for case in CASES if case.op == "com.microsoft.Attention")
    given = [*case.inputs[:3], np.ones((2, 1, 5, 5), np.int32)]
    module = to_torch(one_node(case.op, given, **{**case.options, "fixed": range(1, 4)}))
    with pytest.raises(UnsupportedOperatorError, match="mask"):
        module(torch.from_numpy(given[0]))
