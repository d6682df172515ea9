"""The proof: the original is comparable, its canonical form equals it, the pruned model equals the masked one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from graphprune.errors import EquivalenceError, ModelError
from graphprune.ir.surgery import remove
from graphprune.passes.canonicalize import canonicalize
from graphprune.verify.equivalence import check_canonical, check_equivalence
from tests.measure import editable, replaced
from tests.nets import Net
from tests.oracles import coupled, feeds, random_removal


def network() -> onnx.ModelProto:
    net = Net()
    data = net.relu(net.conv(net.input(["N", 3, 4, 4]), 8))
    return net.build(net.conv(data, 3, 1))


def test_a_true_removal_is_proven_and_a_wrong_one_is_refused() -> None:
    model = network()
    coupling = coupled(model)
    removed = random_removal(coupling, 0.5, 0)
    pruned, _ = remove(coupling, removed)
    assert check_equivalence(coupling, removed, pruned, feeds(model)).relative_l2 < 1e-5
    arrays = editable(pruned)
    arrays["w_1"][:] *= 1.001
    with pytest.raises(EquivalenceError, match=r"masked original[\s\S]*defect of graphprune"):
        check_equivalence(coupling, removed, replaced(pruned, **arrays), feeds(model))


def test_a_canonical_form_that_is_another_function_is_refused() -> None:
    model = network()
    check_canonical(model, canonicalize(model), feeds(model))
    arrays = editable(model)
    arrays["b_1"][:] += 0.01
    with pytest.raises(EquivalenceError, match="canonical form"):
        check_canonical(model, canonicalize(replaced(model, **arrays)), feeds(model))


def test_a_model_that_draws_random_numbers_is_no_model_to_prove_anything_of() -> None:
    model = network()
    noise = helper.make_node("RandomNormalLike", [model.graph.output[0].name], ["noise"], name="noise")
    model.graph.node.append(noise)
    model.graph.output.append(helper.make_tensor_value_info("noise", onnx.TensorProto.FLOAT, None))
    with pytest.raises(ModelError, match=r"the second time[\s\S]*noise[\s\S]*random"):
        check_canonical(model, model, feeds(model))


def test_outputs_that_are_not_numbers_are_named() -> None:
    model = network()
    arrays = editable(model)
    arrays["b_1"][1] = np.nan
    broken = replaced(model, **arrays)
    with pytest.raises(ModelError, match=r"not numbers[\s\S]*of 96 values are NaN"):
        check_canonical(broken, broken, feeds(model))


def test_outputs_that_are_constant_prove_nothing_and_are_named() -> None:
    net = Net()
    hidden = net.conv(net.relu(net.conv(net.input(["N", 3, 4, 4]), 8)), 3)
    shift = net.initializer(np.array([-1e3]), "shift")
    model = net.build(hidden, net.relu(net.add(hidden, shift)), net.add(net.node("Tanh", [hidden]), shift))
    coupling = coupled(model)
    removed = random_removal(coupling, 0.5, 0)
    pruned, _ = remove(coupling, removed)
    proof = check_equivalence(coupling, removed, pruned, feeds(model))
    assert proof.constant == ("relu_1",)  # the third differs by a thousandth of its size, which is no rounding
    assert 0 < proof.max_rel < 1e-5


@pytest.mark.parametrize(("shift", "constant"), [(0.0, False), (-1e3, True)])
def test_a_single_number_shows_something_unless_it_is_zero(shift: float, *, constant: bool) -> None:
    net = Net()
    hidden = net.relu(net.gemm(net.input([1, 6]), 8))
    data = net.node("Sigmoid", [net.add(net.gemm(hidden, 1), net.initializer(np.array([shift]), "shift"))])
    model = net.build(data)
    coupling = coupled(model)
    removed = random_removal(coupling, 0.5, 0)
    pruned, _ = remove(coupling, removed)
    assert bool(check_equivalence(coupling, removed, pruned, feeds(model)).constant) == constant
