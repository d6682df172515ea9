"""Reading and writing files: what is refused and how, and that nothing is lost or left half-written."""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphprune.errors import GraphPruneError, ModelError, RecipeError
from graphprune.ir.model import fingerprint, from_proto, load, save
from graphprune.ir.publication import publication, write_text
from graphprune.ir.surgery import remove
from graphprune.ir.tensors import array, float_tensors, list_initializers, replace_values
from tests.nets import Net
from tests.oracles import assert_close, coupled, feeds, random_removal, run, values


def small(channels: int = 8, opset: int = 17) -> onnx.ModelProto:
    net = Net(opset)
    data = net.input(["N", 3, 6, 6])
    return net.build(net.conv(net.relu(net.conv(data, channels, 3)), channels, 3))


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, kind: type[GraphPruneError], what: str) -> GraphPruneError:
    """Demand that a file is refused with that error; the message names the path and what to do."""
    with pytest.raises(kind) as caught:
        load(path)
    error = caught.value
    assert type(error) is kind
    assert what in error.what
    assert str(path) in str(error)
    assert error.hint
    return error


# -- what is refused -----------------------------------------------------------------------------------------


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.onnx", RecipeError, "does not exist").exit_code == 2


def test_a_folder_is_a_usage_error(tmp_path: Path) -> None:
    assert refused(tmp_path, RecipeError, "is a folder").exit_code == 2


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    assert refused(path, ModelError, "is empty").exit_code == 3


@pytest.mark.parametrize(
    "content",
    [b"just some words\n", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04\0\0", b"\0" * 64],
    ids=["text", "html", "png", "zip", "zeros"],
)
def test_files_that_are_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    refused(path, ModelError, "not an ONNX model")


def test_a_truncated_file_wherever_it_ends(tmp_path: Path) -> None:
    whole = small().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(1, len(whole), len(whole) // 50):
        path.write_bytes(whole[:length])
        refused(path, ModelError, "truncated")


def test_a_message_without_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString())
    refused(path, ModelError, "holds no ONNX graph")


def _unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Convolve"


def _data_too_short(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = b"abcd"


def _undefined_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _future(model: onnx.ModelProto) -> None:
    model.ir_version = 99


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_unknown_operator, "Convolve"),
        (_data_too_short, "w_0"),
        (_undefined_input, "nowhere"),
        (_future, "ir_version 99"),
    ],
)
def test_what_the_checker_refuses(tmp_path: Path, spoil: Callable[[onnx.ModelProto], None], why: str) -> None:
    model = small()
    spoil(model)
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    error = refused(path, ModelError, "onnx.checker refuses")
    assert why in error.why
    with pytest.raises(ModelError, match=r"onnx\.checker refuses"):
        from_proto(model)


def test_more_data_than_the_shape_says(tmp_path: Path) -> None:
    model = small()
    model.graph.initializer[0].dims[0] = 7
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    assert "w_0" in str(refused(path, ModelError, "more or less data"))


# -- external data -------------------------------------------------------------------------------------------


def test_external_data_is_read_and_written_back(tmp_path: Path) -> None:
    model = small(32)
    (tmp_path / "in").mkdir()
    onnx.save_model(
        onnx.ModelProto.FromString(model.SerializeToString()),
        str(tmp_path / "in" / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    read = load(tmp_path / "in" / "model.onnx")
    assert read.external
    assert read.file_bytes == sum(len(content) for content in files(tmp_path / "in").values())
    assert all(np.array_equal(values(read.proto)[name], held) for name, held in values(model).items())

    coupling = coupled(read.proto)
    pruned, _ = remove(coupling, random_removal(coupling, 0.5, 0))
    (tmp_path / "out").mkdir()
    written = save(pruned, tmp_path / "out" / "pruned.onnx", external=read.external)
    assert set(files(tmp_path / "out")) == {"pruned.onnx", "pruned.onnx.data"}
    assert written == sum(len(content) for content in files(tmp_path / "out").values())
    again = load(tmp_path / "out" / "pruned.onnx")
    assert again.external
    inputs = feeds(model)
    assert_close(run(pruned, inputs), run(again.proto, inputs), 0.0)
    assert not any(t.external_data for t in pruned.graph.initializer), "save changed the model given to it"


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    save(small(32), tmp_path / "model.onnx", external=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"external data file is missing[\s\S]*model\.onnx\.data"):
        load(tmp_path / "model.onnx")


def test_external_data_that_is_truncated(tmp_path: Path) -> None:
    save(small(32), tmp_path / "model.onnx", external=True)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    refused(tmp_path / "model.onnx", ModelError, "external data cannot be read")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("offset", "999999999", "cannot be read"),
        ("offset", "abc", "cannot be read"),
        ("location", "../outside", "missing"),
        ("location", "", "missing"),
    ],
)
def test_external_data_that_is_somewhere_else(tmp_path: Path, key: str, value: str, what: str) -> None:
    save(small(32), tmp_path / "model.onnx", external=True)
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=what):
        load(tmp_path / "model.onnx")


# -- saving --------------------------------------------------------------------------------------------------


def test_a_saved_file_is_what_was_given(tmp_path: Path) -> None:
    model = small()
    path = tmp_path / "model.onnx"
    assert save(model, path) == path.stat().st_size
    read = load(path)
    assert read.proto == model
    assert (read.sha256, read.file_bytes) == fingerprint(model)
    assert from_proto(model).sha256 == read.sha256
    assert not read.external
    assert set(files(tmp_path)) == {"model.onnx"}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file grow beyond ``limit`` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("external", [False, True])
def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path: Path, external: bool) -> None:
    path = tmp_path / "model.onnx"
    save(small(16), path, external=external)
    before = files(tmp_path)
    with full_disk(4096), pytest.raises(RecipeError, match="cannot be written"):
        save(small(64), path, external=external)
    assert files(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == len(before), "a temporary folder is left"


def test_a_target_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(RecipeError, match="cannot be written"):
        save(small(), tmp_path / "model.onnx")
    assert files(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    for write in (lambda path: save(small(), path), lambda path: write_text("text", path)):
        with pytest.raises(RecipeError, match="folder does not exist") as caught:
            write(tmp_path / "nowhere" / "file")
        assert str(tmp_path / "nowhere") in str(caught.value)
    assert files(tmp_path) == {}


def test_external_data_can_be_written_over_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for channels in (64, 32):
        model = small(channels)
        written = save(model, "model.onnx", external=True)
        assert {name: len(held) for name, held in files(tmp_path).items()} == {
            "model.onnx": written - Path("model.onnx.data").stat().st_size,
            "model.onnx.data": Path("model.onnx.data").stat().st_size,
        }
        assert load("model.onnx").external
        assert all(np.array_equal(values(onnx.load("model.onnx"))[n], held) for n, held in values(model).items())


def test_small_tensors_stay_inside_and_those_of_subgraphs_go_out(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["y"])],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [400])],
        [numpy_helper.from_array(np.arange(400, dtype=np.float32), "inner")],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [400])],
        [numpy_helper.from_array(np.ones(4, np.float32), "few")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, tmp_path / "model.onnx", external=True)
    assert (tmp_path / "model.onnx.data").stat().st_size == 2 * 1600
    assert load(tmp_path / "model.onnx").proto.graph.node[0].attribute[0].g.initializer[0].raw_data
    save(small(2), tmp_path / "tiny.onnx", external=True)
    assert not (tmp_path / "tiny.onnx.data").exists()


@pytest.mark.parametrize("external", [False, True])
def test_of_a_link_the_target_is_written(tmp_path: Path, external: bool) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.onnx"
    link.symlink_to(Path("real") / "model.onnx")
    for channels in (8, 32):  # the target is not there the first time
        save(small(channels), link, external=external)
        assert link.is_symlink()
        assert run(load(tmp_path / "real" / "model.onnx").proto, feeds(small(channels)))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "real"] == ["link.onnx"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (lambda: save(small(), pipe), lambda: write_text("text", pipe)):
        with pytest.raises(RecipeError, match="not a regular file"):
            write()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_files_are_published_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()

    def write(*paths: Path) -> None:
        with publication(*paths) as drafts:
            for draft in drafts:
                draft.write_text("new")

    for second in (tmp_path / "b", Path("/proc/b")):  # a folder in the way; a place where nothing can be made
        with pytest.raises(RecipeError, match="cannot be written"):
            write(tmp_path / "a", second)
        assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_an_interruption_waits_until_all_is_in_its_place(tmp_path: Path) -> None:
    def write() -> None:
        with publication(tmp_path / "a", tmp_path / "b") as drafts:
            drafts[0].write_text("1")
            os.kill(os.getpid(), signal.SIGINT)
            drafts[1].write_text("2")

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert files(tmp_path) == {"a": b"1", "b": b"2"}
    assert len(list(tmp_path.iterdir())) == 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_text_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text("öld", path)
    with full_disk(10), pytest.raises(RecipeError, match="cannot be written"):
        write_text("new" * 10_000, path)
    assert files(tmp_path) == {"report.json": "öld".encode()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


# -- what is kept --------------------------------------------------------------------------------------------


def with_everything(opset: int = 21) -> onnx.ModelProto:
    """A model with notes wherever there is room for one, a custom domain, a local function and symbolic extents."""
    net = Net(opset)
    net.imports["my.own"] = 3
    data = net.input(["batch", 3, "height", "width"], "image")
    inner = net.node("Twice", [net.relu(net.conv(data, 8, 3))], domain="my.own")
    made = net.relu(net.conv(net.relu(net.conv(inner, 8, 3)), 6))
    model = _without_check(net, net.conv(made, 2))
    twice = helper.make_function(
        "my.own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", opset)]
    )
    model.functions.append(twice)
    model.producer_name, model.producer_version, model.model_version = "exporter", "1.2.3", 7
    model.domain, model.doc_string = "org.example", "the model's own words"
    helper.set_model_props(model, {"classes": "cat,dog", "licence": "MIT"})
    model.graph.doc_string = "the graph's own words"
    model.graph.name = "the name"
    model.graph.metadata_props.add(key="graph", value="note")
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = f"about {value.name}"
    for node in model.graph.node:
        node.doc_string = f"made by {node.op_type}"
        node.metadata_props.add(key="scope", value=node.name)
    for tensor in model.graph.initializer:
        tensor.doc_string = f"weights {tensor.name}"
        tensor.metadata_props.add(key="origin", value=tensor.name)
    onnx.checker.check_model(model, full_check=True)
    return model


def _without_check(net: Net, output: str) -> onnx.ModelProto:
    """A net whose functions come later cannot be checked yet."""
    values_of = [helper.make_tensor_value_info(n, TensorProto.FLOAT, net.shapes[n]) for n in (*net.inputs, output)]
    graph = helper.make_graph(net.nodes, "net", values_of[:-1], values_of[-1:], net.initializers)
    imports = [helper.make_opsetid(domain, version) for domain, version in net.imports.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=net.ir_version)


def test_everything_around_the_weights_is_kept(tmp_path: Path) -> None:
    model = with_everything()
    save(model, tmp_path / "in.onnx")
    coupling = coupled(load(tmp_path / "in.onnx").proto)
    removed = random_removal(coupling, 0.5, 1)
    assert removed.any()
    pruned, kept = remove(coupling, removed)
    save(pruned, tmp_path / "out.onnx")
    result = load(tmp_path / "out.onnx").proto

    for message in (model, result):
        for field in ("ir_version", "producer_name", "producer_version", "model_version", "domain", "doc_string"):
            assert getattr(message, field) == getattr(model, field), field
    assert list(result.opset_import) == list(model.opset_import)
    assert list(result.metadata_props) == list(model.metadata_props)
    assert not result.functions  # what they do stands where they were called
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert (result.graph.name, result.graph.doc_string) == (model.graph.name, model.graph.doc_string)
    assert list(result.graph.metadata_props) == list(model.graph.metadata_props)
    called = [node for node in model.graph.node if node.op_type == "Twice"]
    assert [node for node in result.graph.node if node.op_type != "Add"] == [
        node for node in model.graph.node if node not in called
    ]
    before = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in result.graph.initializer:
        assert tensor.doc_string == before[tensor.name].doc_string
        assert list(tensor.metadata_props) == list(before[tensor.name].metadata_props)
    assert kept
    inputs = feeds(model, batch=5)
    for name, value in run(model, inputs).items():
        assert run(result, inputs)[name].shape == value.shape


# -- tensors -------------------------------------------------------------------------------------------------


def test_float_tensors_are_initializers_and_constant_nodes() -> None:
    net = Net(constants=True)
    data = net.input(["N", 4])
    scale = net.constant(np.ones(4, np.float32), "scale")
    made = net.reshape(net.add(net.linear(data, 4), scale, op="Mul"), [0, 2, 2], ["N", 2, 2])
    assert set(float_tensors(net.build(made))) == {"w_0", "b_0", scale}


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT64", "INT4", "UINT4", "BOOL", "INT8"])
def test_replaced_values_read_back_bit_for_bit(kind: str) -> None:
    number = TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    before = numpy_helper.from_array(np.arange(6).reshape(2, 3).astype(dtype), "t")
    before.doc_string = "note"
    wanted = np.array([[1, 0, 3]]).astype(dtype)
    replace_values(before, wanted)
    assert before.data_type == number
    assert (before.name, before.doc_string) == ("t", "note")
    assert array(before).shape == (1, 3)
    assert array(before).astype(np.float64).tolist() == wanted.astype(np.float64).tolist()


def test_values_of_another_type_are_refused() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    with pytest.raises(TypeError, match="t does not hold values of type float64"):
        replace_values(tensor, np.zeros(3))


def test_old_ir_versions_list_their_initializers() -> None:
    model = small(opset=8)
    assert model.ir_version == 3
    del model.graph.input[1:]
    assert list_initializers(model) == 4
    assert [value.name for value in model.graph.input] == ["x_0", *(t.name for t in model.graph.initializer)]
    onnx.checker.check_model(model, full_check=True)
    assert list_initializers(model) == 0
    assert list_initializers(small(opset=17)) == 0
