"""Encoded models compute the same to the last bit, are smaller, and come back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphprune.calib.sources import input_specs
from graphprune.calib.synthetic import random_source
from graphprune.errors import ModelError, RecipeError
from graphprune.ir.cost import count_nonzero, count_weights
from graphprune.ir.encoding.decode import decode, is_encoded
from graphprune.ir.model import from_proto, load, save
from graphprune.ir.tensors import float_tensors, replace_values
from graphprune.passes.encode import Encoding, encode
from tests.light import light
from tests.nets import IR_OF_OPSET
from tests.oracles import feeds

Array = npt.NDArray[Any]
LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
SPECIAL = np.array(
    [0x80000000, 0x7FC00001, 0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x00000001, 0x807FFFFF], dtype=np.uint32
).view(np.float32)
"""-0, quiet and signalling NaNs with payloads, both infinities, denormals."""


def sparse(shape: tuple[int, ...], density: float, seed: int = 0, dtype: Any = np.float32) -> Array:
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < density, random.normal(size=shape), 0).astype(dtype)


def text(proto: onnx.ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


def model(*weights: Array, opset: int = 13, ir_version: int | None = None, as_nodes: bool = False) -> onnx.ModelProto:
    """A model that gives back the bits of its weights: Gather passes values on as they are."""
    nodes, tensors, inputs, outputs = [], [], [], []
    for number, weight in enumerate(weights):
        name = f"w{number}"
        kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
        tensor = numpy_helper.from_array(weight, name)
        tensor.doc_string = "kept"
        if as_nodes:
            nodes.append(helper.make_node("Constant", [], [name], name=f"hold {number}", value=tensor))
        else:
            tensors.append(tensor)
        nodes.append(helper.make_node("Gather", [name, f"rows{number}"], [f"y{number}"]))
        outputs.append(helper.make_tensor_value_info(f"y{number}", kind, list(weight.shape)))
        inputs.append(helper.make_tensor_value_info(f"rows{number}", TensorProto.INT64, [len(weight)]))
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=ir_version or IR_OF_OPSET.get(opset, 10))
    made.metadata_props.add(key="author", value="somebody")
    onnx.checker.check_model(made, full_check=True)
    return made


def check(proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)


def run(proto: onnx.ModelProto, inputs: Mapping[str, Array], level: Any) -> tuple[list[Array], list[str]]:
    """Return the outputs, and the operators that run."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs)), [value.name for value in session.get_outputs()]


def assert_same_runs(
    before: onnx.ModelProto, after: onnx.ModelProto, inputs: dict[str, Array], levels: tuple[Any, ...] = LEVELS
) -> None:
    for level in levels:
        expected, _ = run(before, inputs, level)
        found, _ = run(after, inputs, level)
        for one, other in zip(expected, found, strict=True):
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()


def left_after_folding(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """Operators that ONNX Runtime leaves at its basic level."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "folded.onnx").graph.node]


def rows(proto: onnx.ModelProto) -> dict[str, Array]:
    """Ask for all rows of every weight."""
    return {v.name: np.arange(v.type.tensor_type.shape.dim[0].dim_value) for v in proto.graph.input}


def by_name(encodings: list[Encoding]) -> dict[str, Encoding]:
    return {encoding.tensor: encoding for encoding in encodings}


# -- the same, to the last bit -----------------------------------------------------------------------------------


@st.composite
def weights(draw: st.DrawFn) -> Array:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=4)))
    shape = (draw(st.integers(1, 400)), *shape) if draw(st.booleans()) else shape
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    values = np.frombuffer(random.bytes(int(np.prod(shape)) * bits.itemsize), dtype=bits).reshape(shape)
    kept = random.random(shape) < draw(st.sampled_from([0.0, 0.002, 0.02, 0.1, 0.5, 0.9, 1.0]))
    return np.where(kept, values, 0).astype(bits).view(dtype)


@settings(max_examples=60)
@given(weights(), st.sampled_from([9, 10, 11, 13, 17, 18, 21]), st.booleans())
def test_any_bits_come_back(weight: Array, opset: int, as_nodes: bool) -> None:
    before = model(weight, opset=opset, as_nodes=as_nodes) if weight.ndim else model(weight[None], opset=opset)
    given_text = text(before)
    after, encodings = encode(before)
    check(after)
    assert text(before) == given_text
    assert text(decode(after)) == given_text
    assert after.ByteSize() <= before.ByteSize()
    assert is_encoded(after) == any(encoding.form != "dense" for encoding in encodings)
    for level in LEVELS[:2]:
        (found,), _ = run(after, rows(before), level)
        assert found.tobytes() == weight.tobytes()


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 16, 18, 19, 21, 22, 23])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_every_operator_set_from_9_on(opset: int, dtype: Any, density: float, tmp_path: Path) -> None:
    weight = sparse((60, 50, 3, 3), density, dtype=dtype)
    if dtype == np.float32:
        weight.ravel()[::200][: len(SPECIAL)] = SPECIAL
    before = model(weight, opset=opset, ir_version=10 if opset >= 19 else 8)
    after, (encoding,) = encode(before)
    check(after)
    assert encoding.form == ("gaps" if density < 0.1 and opset >= 11 else "bitmap")
    assert encoding.after < encoding.before
    assert_same_runs(before, after, rows(before))
    assert text(decode(after)) == text(before)
    assert left_after_folding(after, tmp_path) == ["Gather"]


def test_special_values_survive_at_every_level() -> None:
    for places in (np.arange(8) * 700, np.arange(8), 5999 - np.arange(8)):
        weight = np.zeros(6000, dtype=np.float32)
        weight[places] = SPECIAL
        before = model(weight.reshape(60, 100))
        after, (encoding,) = encode(before)
        assert encoding.form == "gaps"
        assert_same_runs(before, after, rows(before))
        assert text(decode(after)) == text(before)


@pytest.mark.parametrize("values", ["zeros", "full", "last", "first", "minus zeros"])
def test_the_ends_of_sparsity(values: str) -> None:
    weight = np.zeros((50, 41), dtype=np.float32)
    if values == "full":
        weight[:] = np.arange(1, 2051).reshape(50, 41)
    elif values == "minus zeros":
        weight[:] = -0.0
    elif values != "zeros":
        weight.ravel()[-1 if values == "last" else 0] = 3.0
    before = model(weight)
    after, (encoding,) = encode(before)
    assert encoding.form == ("dense" if values in ("full", "minus zeros") else "gaps")
    assert_same_runs(before, after, rows(before))
    assert text(decode(after)) == text(before)


# -- which form ---------------------------------------------------------------------------------------------------


def test_each_weight_has_the_smallest_form_decoders_counted() -> None:
    before = model(
        sparse((200, 100), 0.02), sparse((200, 100), 0.5, 1), sparse((200, 100), 1.0, 2), sparse((6, 5), 0.1)
    )
    after, encodings = encode(before)
    assert [encoding.form for encoding in encodings] == ["gaps", "bitmap", "dense", "dense"]
    sizes = [encoding.before - encoding.after for encoding in encodings]
    assert sizes[2:] == [0, 0]
    shared = 3000  # at most: the table of a bitmap's bits, shapes, and the mark
    assert 0 <= sum(sizes) - (before.ByteSize() - after.ByteSize()) < shared


def test_bitmaps_whose_table_does_not_pay_are_not_used() -> None:
    weight = sparse((60, 30), 0.5)
    assert encode(model(weight))[1][0].form == "gaps"
    assert {encoding.form for encoding in encode(model(*[weight] * 8))[1]} == {"bitmap"}


@pytest.mark.parametrize(("density", "limit"), [(0.1, 0.14), (0.5, 0.55)])
def test_a_large_matrix_is_as_small_as_asked(density: float, limit: float) -> None:
    before = model(sparse((512, 512), density))
    after, _ = encode(before)
    assert after.ByteSize() / before.ByteSize() <= limit


def test_off_changes_nothing_and_other_words_are_refused() -> None:
    before = model(sparse((200, 100), 0.1))
    assert encode(before, "off") == (before, [])
    with pytest.raises(RecipeError, match="--encode must be one of off, auto, fp16"):
        encode(before, "zip")


def test_an_encoded_model_is_encoded_anew() -> None:
    before = model(sparse((200, 100), 0.1), sparse((200, 100), 0.5))
    once, _ = encode(before)
    again, _ = encode(once)
    assert text(again) == text(once)


# -- float16 ------------------------------------------------------------------------------------------------------


def test_fp16_stores_halves_and_says_so() -> None:
    weight, dense = sparse((200, 100), 0.1), sparse((64, 64), 1.0)
    before = model(weight, dense, sparse((200, 100), 0.1, 1, np.float64), sparse((90, 90), 0.1, 2, np.float16))
    after, encodings = encode(before, "fp16")
    check(after)
    assert [encoding.values for encoding in encodings] == ["float16"] * 4
    assert [encoding.form for encoding in encodings] == ["gaps", "dense", "gaps", "gaps"]
    expected = [
        array.astype(np.float16).astype(array.dtype) for array in map(numpy_helper.to_array, before.graph.initializer)
    ]
    restored = decode(after)
    for level in LEVELS:
        for found, wanted in zip(run(after, rows(before), level)[0], expected, strict=True):
            assert found.tobytes() == wanted.tobytes()
    assert [numpy_helper.to_array(t).tobytes() for t in restored.graph.initializer] == [e.tobytes() for e in expected]


def test_fp16_keeps_weights_that_overflow_and_infinities_that_do_not() -> None:
    large, infinite = sparse((200, 100), 0.1), sparse((200, 100), 0.1)
    large[3, 3], infinite[3, 3] = 70_000.0, np.inf
    before = model(large, infinite)
    after, encodings = encode(before, "fp16")
    assert [encoding.values for encoding in encodings] == ["float32", "float16"]
    (found, rounded), _ = run(after, rows(before), LEVELS[1])
    assert found.tobytes() == large.tobytes()
    assert np.isposinf(rounded[3, 3])


# -- where weights are ---------------------------------------------------------------------------------------------


def test_constant_nodes_stay_where_they_are() -> None:
    before = model(sparse((200, 100), 0.05), sparse((200, 100), 0.5), as_nodes=True)
    after, encodings = encode(before)
    check(after)
    assert [encoding.form for encoding in encodings] == ["gaps", "bitmap"]
    assert_same_runs(before, after, rows(before))
    assert text(decode(after)) == text(before)


def branching() -> onnx.ModelProto:
    """One weight that two nodes and both branches of an If read; another one inside a branch."""
    weight, inner = sparse((60, 60), 0.1), sparse((60, 60), 0.1, 1)
    value = helper.make_tensor_value_info
    kind, shape = TensorProto.FLOAT, [1, 60]
    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("MatMul", ["a", "w"], ["t"])], "then", [], [value("t", kind, shape)]
        ),
        "else_branch": helper.make_graph(
            [helper.make_node("Add", ["w", "v"], ["s"]), helper.make_node("MatMul", ["a", "s"], ["e"])],
            "else",
            [],
            [value("e", kind, shape)],
            [numpy_helper.from_array(inner, "v")],
        ),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["c"], ["b"], **branches),
        helper.make_node("Gemm", ["b", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", kind, shape), value("c", TensorProto.BOOL, [1])],
        [value("y", kind, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_shared_weights_and_those_that_bodies_read() -> None:
    before = branching()
    after, encodings = encode(before)
    check(after)
    found = by_name(encodings)
    assert (found["w"].form, found["w"].reason) == ("gaps", "")
    assert (found["v"].form, found["v"].reason) == ("dense", "it is stored inside a body of control flow")
    for taken in (True, False):
        inputs = {"x": feeds(before)["x"], "c": np.array([taken])}
        assert_same_runs(before, after, inputs, LEVELS[1:])
        # Unoptimised, a product with a weight that is no constant takes another kernel, which sums in another order.
        (one,), (other,) = (run(proto, inputs, LEVELS[0])[0] for proto in (before, after))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert text(decode(after)) == text(before)


@pytest.mark.parametrize("where", ["output", "input"])
def test_what_a_caller_sees_stays_dense(where: str) -> None:
    before = model(sparse((200, 100), 0.1))
    value = helper.make_tensor_value_info("w0", TensorProto.FLOAT, [200, 100])
    (before.graph.output if where == "output" else before.graph.input).append(value)
    after, (encoding,) = encode(before)
    assert after is before
    assert encoding.form == "dense"
    assert where in encoding.reason


def test_operator_sets_before_9_and_bfloat16_say_why() -> None:
    tensor = numpy_helper.from_array(sparse((60, 60), 0.1), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [value("x", TensorProto.FLOAT, [1, 60])],
        [value("y", TensorProto.FLOAT, [1, 60])],
        [tensor],
    )
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)
    assert encode(old)[1][0].reason == "operator set 8 has no operators that rebuild it; from 9 on there are"
    new = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    bits = (numpy_helper.to_array(tensor).view(np.uint32) >> 16).astype(np.uint16)
    new.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.BFLOAT16, [60, 60], bits.tobytes(), raw=True))
    assert encode(new)[1][0].reason == "ONNX Runtime has too few operators of its element type"


def test_names_of_the_model_are_never_taken() -> None:
    before = model(sparse((200, 100), 0.1))
    for node in before.graph.node:
        node.input[0] = "sparse.0.values"
    before.graph.initializer[0].name = "sparse.0.values"
    before.graph.output[0].name = before.graph.node[0].output[0] = "sparse1"
    after, _ = encode(before)
    check(after)
    assert_same_runs(before, after, rows(before))
    assert text(decode(after)) == text(before)


def test_tensors_without_a_name_get_none() -> None:
    before = model(sparse((200, 100), 0.1), sparse((200, 100), 0.5), as_nodes=True)
    for node in before.graph.node:
        if node.op_type == "Constant":
            node.attribute[0].t.ClearField("name")
    after, encodings = encode(before)
    assert [encoding.form for encoding in encodings] == ["gaps", "bitmap"]
    assert text(decode(after)) == text(before)


def test_signalling_nans_in_lists_that_cannot_be_given_back_stay_dense() -> None:
    before = model(sparse((200, 100), 0.1))
    tensor = before.graph.initializer[0]
    bits = numpy_helper.to_array(tensor).ravel().copy()
    bits[7] = SPECIAL[2]
    field = b"\x22" + _varint(bits.nbytes) + bits.tobytes()  # float_data, packed
    tensor.ClearField("raw_data")
    tensor.MergeFromString(field)
    given_text = text(before)
    after, (encoding,) = encode(before)
    assert text(decode(after)) == given_text
    assert encoding.form == "gaps" or encoding.reason == "its values cannot be given back to the last bit"


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def test_values_in_lists_stay_in_lists() -> None:
    before = model(
        sparse((200, 100), 0.1), sparse((200, 100), 0.1, 1, np.float16), sparse((99, 99), 0.5, 2, np.float64)
    )
    for tensor in before.graph.initializer:
        values = numpy_helper.to_array(tensor)
        again = helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.ravel())
        tensor.CopyFrom(again)
        assert not tensor.HasField("raw_data")
    after, encodings = encode(before)
    check(after)
    assert all(encoding.form != "dense" for encoding in encodings)
    assert_same_runs(before, after, rows(before))
    assert text(decode(after)) == text(before)


@pytest.mark.parametrize("mode", ["auto", "fp16"])
def test_external_data(mode: str, tmp_path: Path) -> None:
    before = model(sparse((200, 100), 0.1), sparse((100, 100), 0.5))
    save(before, tmp_path / "dense.onnx", external=True)
    dense = load(tmp_path / "dense.onnx")
    after, _ = encode(dense.proto, mode)
    save(after, tmp_path / "small.onnx", external=True)
    small = load(tmp_path / "small.onnx")
    assert small.encoded
    assert not dense.encoded
    assert small.file_bytes < 0.5 * dense.file_bytes
    if mode == "auto":
        assert text(small.proto) == text(dense.proto)
    session = ort.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    for found, tensor in zip(session.run(None, rows(before)), small.proto.graph.initializer, strict=True):
        assert found.tobytes() == numpy_helper.to_array(tensor).tobytes()


def test_unread_external_data_stays_as_it_is(tmp_path: Path) -> None:
    before = model(sparse((200, 100), 0.1))
    save(before, tmp_path / "dense.onnx", external=True)
    unread = onnx.load(tmp_path / "dense.onnx", load_external_data=False)
    after, (encoding,) = encode(unread)
    assert after is unread
    assert encoding.form == "dense"


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_real_topologies(name: str) -> None:
    before = light(name)
    before.ir_version = 8
    stored = {tensor.name for tensor in before.graph.initializer}
    inputs = [value for value in before.graph.input if value.name not in stored]
    del before.graph.input[:]
    before.graph.input.extend(inputs)
    for tensor in before.graph.initializer:
        if len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor).copy()
            values[np.abs(values) < np.quantile(np.abs(values), 0.8)] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    before.opset_import[0].version = max(before.opset_import[0].version, 9)
    after, encodings = encode(before)
    check(after)
    assert after.ByteSize() < 0.4 * before.ByteSize()
    assert any(encoding.form == "bitmap" for encoding in encodings)
    assert text(decode(after)) == text(before)
    inputs_made = feeds(before, batch=1)
    for level in LEVELS[1:3]:
        for one, other in zip(run(before, inputs_made, level)[0], run(after, inputs_made, level)[0], strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["dtln_1", "magika", "ppocr_det", "shufflenet_v2_imagenet", "silero_vad"])
def test_trained_networks(zoo: Path, name: str) -> None:
    before = load(zoo / "models" / f"{name}.onnx").proto
    for tensor in float_tensors(before).values():
        if len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor).copy()
            values[np.abs(values) < np.quantile(np.abs(values), 0.9)] = 0
            replace_values(tensor, values)
    after, _ = encode(before)
    onnx.checker.check_model(after, full_check=True)
    assert after.ByteSize() < 0.5 * before.ByteSize()
    assert text(decode(after)) == text(before)
    inputs = next(iter(random_source(input_specs(before), seed=0, samples=1, free_size=512).batches(1)))
    for level in LEVELS[1:]:
        for one, other in zip(run(before, inputs, level)[0], run(after, inputs, level)[0], strict=True):
            assert one.tobytes() == other.tobytes()


# -- the way back --------------------------------------------------------------------------------------------------


def test_loading_gives_the_dense_model() -> None:
    before = model(sparse((200, 100), 0.1), sparse((200, 100), 0.5))
    after, _ = encode(before)
    loaded = from_proto(after)
    assert loaded.encoded
    assert text(loaded.proto) == text(before)
    assert loaded.file_bytes == len(text(after))
    assert count_weights(loaded.proto) == 40_000
    assert count_nonzero(loaded.proto) == count_nonzero(before)


def test_a_model_that_is_not_encoded_is_given_back() -> None:
    before = model(sparse((200, 100), 0.1))
    assert decode(before) is before


def test_what_was_folded_since_is_left_as_it_is() -> None:
    before = model(sparse((200, 100), 0.1))
    folded = onnx.ModelProto()
    folded.CopyFrom(before)
    folded.metadata_props.add(key="graphprune.encoding", value="1 sparse")
    assert text(decode(folded)) == text(before)


def _initializer(proto: onnx.ModelProto, end: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(end))


def _shorten(proto: onnx.ModelProto, end: str) -> None:
    tensor = _initializer(proto, end)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., :-1], tensor.name))


def _drop(proto: onnx.ModelProto, op: str) -> None:
    proto.graph.node.remove(next(node for node in proto.graph.node if node.op_type == op))


def _rename(proto: onnx.ModelProto) -> None:
    next(node for node in proto.graph.node if node.op_type == "Reshape").input[0] = "else"


def _stretch(proto: onnx.ModelProto) -> None:
    next(node for node in proto.graph.node if node.op_type == "MaxUnpool").attribute[0].ints[0] += 1


def _other_constant(proto: onnx.ModelProto) -> None:
    tensor = _initializer(proto, "shape.200x100")
    tensor.CopyFrom(numpy_helper.from_array(np.array([100, 200]), tensor.name))


def _read_inside(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Neg", ["sparse.0.values"], ["z"]))


def _version(proto: onnx.ModelProto) -> None:
    next(entry for entry in proto.metadata_props if entry.key == "graphprune.encoding").value = "2 sparse"


DAMAGE: dict[str, tuple[Any, float, str]] = {
    "values": (lambda proto: _shorten(proto, ".values"), 0.1, "places"),
    "gaps": (lambda proto: _shorten(proto, ".gaps"), 0.1, "places"),
    "bitmap": (lambda proto: _shorten(proto, ".bitmap"), 0.5, "bitmap of 2499 bytes"),
    "truncated bitmap": (lambda p: setattr(_initializer(p, ".bitmap"), "raw_data", b"12"), 0.5, "w0"),
    "unpool": (lambda proto: _drop(proto, "MaxUnpool"), 0.1, "missing or another one"),
    "last": (lambda proto: _drop(proto, "Reshape"), 0.1, "not there"),
    "another input": (_rename, 0.1, "not there"),
    "another kernel": (_stretch, 0.1, "missing or another one"),
    "another shape": (_other_constant, 0.1, "missing or another one"),
    "a reader": (_read_inside, 0.1, "sparse.0.values"),
    "a later version": (_version, 0.1, "2 sparse"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case: str) -> None:
    harm, density, words = DAMAGE[case]
    after, _ = encode(model(sparse((200, 100), density)))
    harm(after)
    with pytest.raises(ModelError) as caught:
        decode(after)
    message = str(caught.value)
    assert words in message
    assert "where:" in message
    assert "what to do:" in message
