from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphprune.calib.sources import (
    ImagePreprocessing,
    InputSpec,
    Source,
    input_specs,
    open_source,
    random_source,
)
from graphprune.errors import CalibrationError, ModelError, RecipeError
from graphprune.ir.session import open_session, run_session

X = InputSpec("x", ("N", 3), np.dtype(np.float32))


def spec(name: str, shape: Sequence[int | str | None], dtype: Any = np.float32) -> InputSpec:
    return InputSpec(name, tuple(shape), np.dtype(dtype))


def rows(count: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.arange(count * int(np.prod(shape)), dtype=dtype).reshape(count, *shape)


def gather(source: Source, name: str = "x", batch_size: int = 1) -> np.ndarray:
    return np.concatenate([feeds[name] for feeds in source.batches(batch_size)])


def sizes(source: Source, name: str = "x", batch_size: int = 1) -> list[int]:
    return [len(feeds[name]) for feeds in source.batches(batch_size)]


def graph(inputs: dict[str, tuple[int, list[Any]]], initializers: Sequence[onnx.TensorProto] = ()) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    values += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in initializers]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", *kind) for name, kind in inputs.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", values, outputs, list(initializers)),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


# --- what the model asks for


def test_specs_leave_out_initializers_and_read_free_sizes() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    model = graph({"x": (TensorProto.FLOAT, ["N", 3, -1, None]), "k": (TensorProto.INT64, [])}, [weight])
    assert input_specs(model) == [spec("x", ("N", 3, None, None)), spec("k", (), np.int64)]


def test_an_input_that_is_no_tensor_is_named() -> None:
    model = graph({"x": (TensorProto.FLOAT, ["N"])})
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["N"]))
    with pytest.raises(ModelError, match="'x'"):
        input_specs(model)


def test_the_package_refuses_its_bare_name() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", "import calib"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "graphprune.calib" in done.stderr


# --- sources that work


@given(st.integers(1, 40), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 50)))
def test_batches_hold_every_sample_once_and_in_order(count: int, batch: int, limit: int | None) -> None:
    source = open_source({"x": rows(count, 3)}, [X])
    source = source if limit is None else source.subset(limit)
    expected = rows(count, 3)[:limit]
    assert source.samples == len(expected)
    for _ in range(2):
        np.testing.assert_array_equal(gather(source, batch_size=batch), expected)
    assert all(size == batch for size in sizes(source, batch_size=batch)[:-1])


@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 12))
def test_a_fixed_batch_is_fed_whole(count: int, fixed: int, limit: int) -> None:
    specs = [spec("x", (fixed, 3))]
    if count < fixed:
        with pytest.raises(CalibrationError, match=f"takes {fixed} samples"):
            open_source(rows(count, 3), specs)
        return
    source = open_source(rows(count, 3), specs)
    assert source.samples == count - count % fixed
    assert sizes(source, batch_size=5) == [fixed] * (count // fixed)
    part = source.subset(limit)
    assert part.samples == sum(sizes(part)) == min(-(-limit // fixed), count // fixed) * fixed


def test_one_rank_more_makes_each_row_a_whole_feed() -> None:
    source = open_source({"x": rows(4, 2, 3)}, [X])
    assert source.samples == 4
    assert sizes(source, batch_size=8) == [2] * 4
    np.testing.assert_array_equal(gather(source), rows(4, 2, 3).reshape(8, 3))
    assert source.subset(3).samples == 3


def test_states_and_scalars_beside_samples() -> None:
    specs = [spec("x", ("B", 5)), spec("state", (2, "B", 4)), spec("rate", (), np.int64)]
    arrays = {"x": rows(6, 1, 5), "state": rows(6, 2, 1, 4), "rate": np.array(16000)}
    for given_x in (arrays["x"], rows(6, 5)):
        feeds = list(open_source(arrays | {"x": given_x}, specs).batches(4))
        assert len(feeds) == 6
        assert feeds[5]["x"].shape == (1, 5)
        assert feeds[5]["state"].shape == (2, 1, 4)
        assert feeds[5]["rate"].shape == ()
    whole = {"x": rows(3, 5), "state": rows(2, 3, 4), "rate": np.array(1)}
    assert [f["x"].shape for f in open_source([whole, whole], specs).batches(8)] == [(3, 5)] * 2


def test_feeds_run_in_onnxruntime() -> None:
    model = graph(
        {
            "x": (TensorProto.FLOAT, ["N", 3]),
            "mask": (TensorProto.BOOL, ["N"]),
            "ids": (TensorProto.INT32, ["N", 2]),
            "text": (TensorProto.STRING, ["N"]),
        }
    )
    arrays = {
        "x": np.asfortranarray(rows(5, 3, dtype=np.float64)),
        "mask": np.ones(5, bool),
        "ids": rows(5, 2, dtype=np.int64),
        "text": np.array(["a", "bc", "d", "e", "f"]),
    }
    source = open_source(arrays, input_specs(model))
    session = open_session(model, threads=1)
    results = [run_session(session, feeds) for feeds in source.batches(2)]
    np.testing.assert_array_equal(np.concatenate([result[0] for result in results]), rows(5, 3))
    assert results[0][2].dtype == np.int32
    assert list(results[0][3]) == ["a", "bc"]


@pytest.mark.parametrize("name", ["x", "arr_0"])
def test_npz(tmp_path: Path, name: str) -> None:
    (tmp_path / "calib.npz").write_bytes(npz({name: rows(7, 3)}))
    source = open_source(str(tmp_path / "calib.npz"), [X])
    assert source.real
    assert sizes(source, batch_size=4) == [4, 3]


def test_a_single_array_of_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calib.npz").write_bytes(npz({"whatever": rows(7, 3)}))
    with pytest.raises(CalibrationError, match="whatever"):
        open_source(str(tmp_path / "calib.npz"), [X])


def test_npy_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "calib.npy", rows(7, 3, dtype=np.float64))
    source = open_source(tmp_path / "calib.npy", [X])
    feeds = next(source.batches(2))["x"]
    assert feeds.dtype == np.float32
    np.testing.assert_array_equal(feeds, rows(2, 3))
    (chunk,) = source.chunks()
    assert isinstance(chunk.arrays["x"], np.memmap)


def test_a_folder_of_files_in_name_order_shares_batches(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", rows(7, 3)[3:])
    np.savez(tmp_path / "a.npz", x=rows(7, 3)[:3])
    (tmp_path / "README.txt").write_text("about the data")
    (tmp_path / ".hidden.npy").write_bytes(b"")
    source = open_source(tmp_path, [X])
    assert source.samples == 7
    assert sizes(source, batch_size=4) == [4, 3]
    np.testing.assert_array_equal(gather(source, batch_size=4), rows(7, 3))
    assert sizes(source.subset(4), batch_size=8) == [4]
    assert open_source(tmp_path, [spec("x", (2, 3))]).samples == 6


def test_files_of_other_sizes_do_not_share_a_batch(tmp_path: Path) -> None:
    for name, width in (("a", 4), ("b", 4), ("c", 5)):
        np.save(tmp_path / f"{name}.npy", rows(1, width))
    source = open_source(tmp_path, [spec("x", ("N", None))])
    assert [feeds["x"].shape for feeds in source.batches(8)] == [(2, 4), (1, 5)]


def test_module_function_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_calibration.py").write_text(
        "import numpy as np\n"
        "passes = 0\n"
        "def samples():\n"
        "    global passes\n"
        "    passes += 1\n"
        "    for i in range(5):\n"
        "        yield {'x': np.full((2, 3), i, np.float32)}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = open_source("my_calibration:samples", [X])
    assert sizes(source, batch_size=4) == [4, 4, 2]
    assert source.samples == 10
    np.testing.assert_array_equal(gather(source), np.repeat(np.arange(5, dtype=np.float32), 2)[:, None] * np.ones(3))
    assert sys.modules["my_calibration"].passes == 4


def test_a_function_is_walked_lazily() -> None:
    def endless() -> Any:
        while True:
            yield {"x": np.ones((1, 3), np.float32)}

    source = open_source(endless, [X]).subset(5)
    assert source.samples == 5
    assert sizes(source, batch_size=3) == [3, 2]


def test_python_objects() -> None:
    assert open_source(rows(4, 3), [X]).samples == 4
    assert open_source([{"x": rows(1, 3)}] * 3, [X]).samples == 3
    source = open_source({"x": rows(4, 3)}, [X])
    assert open_source(source, [X]) is source
    with pytest.raises(ValueError, match="batch_size"):
        next(source.batches(0))
    with pytest.raises(ValueError, match="at least 1"):
        source.subset(0)


def test_random_inputs_are_seeded_and_not_real() -> None:
    specs = [spec("x", ("N", 3, None)), spec("ids", ("N",), np.int64), spec("mask", ("N", 2), bool)]
    source = open_source(None, specs, seed=3)
    assert (source.real, source.samples) == (False, 16)
    first = next(source.batches(16))
    assert first["x"].shape == (16, 3, 64)
    assert set(np.unique(first["ids"])) <= {0, 1}
    assert first["mask"].dtype == bool
    again, other = (next(random_source(specs, seed).batches(16)) for seed in (3, 4))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["x"], other["x"])
    assert source.description == "16 seeded random inputs (seed 3, free sizes 64)"
    larger = random_source(specs, 3, free_size=256)
    assert next(larger.batches(16))["x"].shape == (16, 3, 256)
    assert larger.description.endswith("free sizes 256)")


def test_random_inputs_of_fixed_and_mixed_batches() -> None:
    assert random_source([spec("x", (3, 2))], 0, 7).samples == 9
    specs = [spec("x", ("B", 5)), spec("state", (2, "B", 4)), spec("rate", (), np.int64)]
    source = random_source(specs, 0, 4)
    shapes = [{name: value.shape for name, value in feeds.items()} for feeds in source.batches(4)]
    assert shapes == [{"x": (1, 5), "state": (2, 1, 4), "rate": ()}] * 4


# --- images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    for index, name in enumerate(("a.png", "b.jpg", "c.JPEG")):
        image.new("RGB", (8, 6), (255, 128, 10 * index)).save(tmp_path / name)
    return tmp_path


def test_images_are_preprocessed_as_declared(images: Path) -> None:
    declared = ImagePreprocessing(mean=(0.5, 0.25, 0.0), std=(2.0,), channel_order="BGR")
    source = open_source(images, [spec("x", ("N", 3, 4, 5))], preprocessing=declared)
    (batch,) = source.batches(8)
    assert (source.samples, batch["x"].shape) == (3, (3, 3, 4, 5))
    assert batch["x"].dtype == np.float32
    expected = (np.array([0, 128, 255]) / 255 - [0.5, 0.25, 0.0]) / 2
    np.testing.assert_allclose(batch["x"][0, :, 2, 2], expected, atol=1e-6)


def test_images_for_other_layouts_types_and_sizes(images: Path) -> None:
    plain = ImagePreprocessing(scale=1.0, layout="NHWC")
    (first, *_) = open_source(images, [spec("x", (1, 4, 5, 3), np.uint8)], preprocessing=plain).batches()
    assert first["x"][0, 0, 0].tolist() == [255, 128, 0]
    grey = ImagePreprocessing(size=(7, 9))
    source = open_source(images, [spec("x", ("N", 1, None, "W"))], preprocessing=grey).subset(2)
    assert [feeds["x"].shape for feeds in source.batches(4)] == [(2, 1, 7, 9)]


def test_images_need_a_declaration(images: Path) -> None:
    with pytest.raises(RecipeError, match=images.name):
        open_source(images, [spec("x", ("N", 3, 4, 5))])


@pytest.mark.parametrize(
    ("specs", "declared", "named"),
    [
        ([spec("x", ("N", 3, None, 5))], ImagePreprocessing(), "height None"),
        ([spec("x", ("N", 4, 5, 3))], ImagePreprocessing(), "4 channels"),
        ([spec("x", ("N", 3))], ImagePreprocessing(), "'x'"),
        ([spec("x", ("N", 3, 4, 5)), spec("y", ("N",))], ImagePreprocessing(), "'y'"),
        ([spec("x", ("N", 3, 4, 5))], ImagePreprocessing(mean=(0.0, 0.0)), "mean has 2 values"),
        ([spec("x", ("N", 3, 4, 5), np.uint8)], ImagePreprocessing(mean=(200.0,)), "uint8"),
    ],
)
def test_images_that_do_not_fit(images: Path, specs: list[InputSpec], declared: ImagePreprocessing, named: str) -> None:
    with pytest.raises(CalibrationError, match=named):
        open_source(images, specs, preprocessing=declared)


def test_a_folder_of_images_declares_its_preprocessing(images: Path) -> None:
    specs = [spec("x", ("N", 3, 4, 5))]
    (images / "preprocessing.toml").write_text('mean = [0.5]\nstd = [0.25]\nchannel_order = "BGR"\n')
    declared = ImagePreprocessing(mean=(0.5,), std=(0.25,), channel_order="BGR")
    own = open_source(images, specs).batches(2)
    explicit = open_source(images, specs, preprocessing=declared).batches(2)
    for left, right in zip(own, explicit, strict=True):
        np.testing.assert_array_equal(left["x"], right["x"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mean = [0.5]\nmedian = 1\n", "'median'"),
        ('mean = ["a"]\n', "wrong kind"),
        ("std = [0.0]\n", "out of range"),
        ("mean = \n", "cannot be read"),
    ],
)
def test_a_wrong_declaration_is_named(images: Path, text: str, named: str) -> None:
    (images / "preprocessing.toml").write_text(text)
    with pytest.raises(RecipeError, match=named):
        open_source(images, [spec("x", ("N", 3, 4, 5))])


def test_a_broken_image_is_named(images: Path) -> None:
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:200])
    source = open_source(images, [spec("x", ("N", 3, 4, 5))], preprocessing=ImagePreprocessing())
    with pytest.raises(CalibrationError, match=r"b\.jpg"):
        list(source.batches())


def test_missing_pillow_names_the_extra(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(CalibrationError, match=r"graphprune\[images\]"):
        open_source(images, [spec("x", ("N", 3, 4, 5))], preprocessing=ImagePreprocessing())


@pytest.mark.parametrize(
    "wrong", [{"std": (0.0,)}, {"mean": ()}, {"scale": float("inf")}, {"channel_order": "GBR"}, {"size": (0, 4)}]
)
def test_preprocessing_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        ImagePreprocessing(**wrong)


# --- bad input: the class of the error, and that it names what is wrong


def refuse(data: Any, specs: Sequence[InputSpec], *named: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        list(open_source(data, specs).batches())
    for text in named:
        assert text in str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.hint


TWO = [X, spec("mask", ("N",), bool)]


@pytest.mark.parametrize(
    ("data", "specs", "named"),
    [
        ({"y": rows(2, 3)}, [X], ["missing: x", "not an input: y", "'x' float32 [N, 3]"]),
        ({"x": rows(2, 3)}, TWO, ["missing: mask"]),
        ({"x": rows(2, 3), "y": rows(2, 3)}, [X], ["not an input: y"]),
        (rows(2, 3), TWO, ["'x'", "'mask'"]),
        ({"x": rows(2, 4)}, [X], ["'x'", "[N, 3]", "[2, 4]"]),
        ({"x": rows(2, 5, 4)}, [X], ["'x'", "[N, 3]", "[2, 5, 4]"]),
        ({"x": rows(3)}, [X], ["'x'", "[N, 3]", "[3]"]),
        ({"x": rows(2, 2, 3)}, [spec("x", (1, 3))], ["[1, 3]", "[2, 2, 3]"]),
        ({"x": np.float32(1)}, [X], ["'x'", "[]"]),
        ({"x": rows(2, 3, dtype=np.int64)}, [X], ["'x'", "float32", "int64"]),
        ({"x": rows(2, 3, dtype=np.uint8)}, [X], ["'x'", "float32", "uint8"]),
        ({"x": rows(2, 3)}, [spec("x", ("N", 3), np.int64)], ["'x'", "int64", "float32"]),
        ({"x": rows(2, 3) == 1}, [X], ["'x'", "bool"]),
        ({"x": np.array([["a"] * 3])}, [X], ["'x'", "<U1"]),
        ({"x": rows(2, 3) + 1j}, [X], ["'x'", "complex"]),
        ({"x": np.array([[1, 2, 300]])}, [spec("x", ("N", 3), np.uint8)], ["'x'", "uint8", "row 0"]),
        ({"x": np.array([[1, 2, -1]])}, [spec("x", ("N", 3), np.uint64)], ["'x'", "uint64", "row 0"]),
        ({"x": np.array([[1, 2, 3], [0, 0, 1e300]])}, [X], ["'x'", "float32", "row 1"]),
        ({"x": np.array([[1, 2, 3], [0, np.nan, 1]])}, [X], ["'x'", "NaN", "row 1"]),
        ({"x": np.array([[np.inf, 2, 3]], np.float32)}, [X], ["'x'", "infinity", "row 0"]),
        ({"s": np.float32("nan")}, [spec("s", ())], ["'s'", "NaN"]),
        ({"x": rows(0, 3)}, [X], ["'x'", "no sample", "[0, 3]"]),
        ({"x": np.array([[1, None, 2]])}, [X], ["'x'", "object"]),
        ({"x": [[1.0, 2.0], [3.0]]}, [X], ["'x'", "not an array"]),
        ({"x": rows(2, 3), "mask": np.ones(3, bool)}, TWO, ["'x' [2, 3]", "'mask' [3]"]),
        ({"x": rows(2, 1, 3), "mask": np.ones((3, 1), bool)}, TWO, ["'x' [2, 1, 3]", "'mask' [3, 1]"]),
        ({"a": rows(4, 3), "b": rows(3, 3)}, [spec("a", (1, 3)), spec("b", (1, 3))], ["'a' [4, 3]", "'b' [3, 3]"]),
        ({"a": rows(5, 3), "b": rows(5, 3)}, [spec("a", (2, 3)), spec("b", (3, 3))], ["'a' [5, 3] for [2, 3]"]),
        (iter([{"x": rows(1, 3)}]), [X], ["only once", "list_iterator"]),
        ([], [X], ["yields nothing"]),
        ([rows(1, 3)], [X], ["item 0", "ndarray"]),
        ([{"x": rows(1, 3)}, {"y": rows(1, 3)}], [X], ["item 1", "not an input: y"]),
        (lambda: None, [X], ["NoneType"]),
        (lambda: {"x": rows(1, 3)}, [X], ["dict"]),
        (lambda: 1 / 0, [X], ["ZeroDivisionError"]),
        (7, [X], ["int"]),
        (None, [spec("t", ("N",), np.str_)], ["'t'", "text"]),
    ],
)
def test_bad_arrays(data: Any, specs: list[InputSpec], named: list[str]) -> None:
    refuse(data, specs, *named)


def test_nan_deep_in_a_large_array_is_found() -> None:
    array = np.zeros((3000, 4000), np.float32)
    array[2999, 3999] = np.nan
    refuse({"x": array}, [spec("x", ("N", 4000))], "row 2999")


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "hello")
    return buffer.getvalue()


OBJECTS = np.array([{"a": 1}], dtype=object)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("truncated.npz", npz({"x": rows(99, 3)})[:300], ["truncated"]),
        ("damaged.npz", npz({"x": rows(99, 3)}).replace(rows(99, 3).tobytes()[:99], b"\0" * 99), ["x"]),
        ("truncated.npy", npy(rows(99, 3))[:300], ["truncated"]),
        ("header.npy", npy(rows(99, 3))[:20], ["truncated"]),
        ("text.npz", b"not a zip", ["neither", "not a"]),
        ("empty.npz", b"", ["empty"]),
        ("pickle.npz", pickle.dumps({"x": [1, 2]}), ["pickles are refused"]),
        ("objects.npz", npz({"x": OBJECTS}), ["pickle"]),
        ("objects.npy", npy(OBJECTS), ["objects"]),
        ("archive.npz", zipped("hello.txt"), ["hello.txt"]),
        ("names.npz", npz({"y": rows(2, 3), "z": rows(2, 3)}), ["missing: x", "not an input: y, z"]),
        ("none.npz", npz({}), ["missing: x"]),
        ("shape.npy", npy(rows(2, 4)), ["'x'", "[2, 4]"]),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_bad_files(tmp_path: Path, name: str, content: bytes, named: list[str], in_folder: bool) -> None:
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path if in_folder else tmp_path / name, [X], name, *named)


def test_one_npy_for_several_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "calib.npy", rows(2, 3))
    refuse(tmp_path / "calib.npy", TWO, "calib.npy", "'mask'")


@pytest.mark.parametrize("files", [[], ["notes.txt"], ["a.npy", "b.png"]])
def test_folders_with_nothing_usable(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    refuse(tmp_path, [X], tmp_path.name, f"{len(files)} files")


@pytest.mark.parametrize("path", ["nowhere.npz", "no/such/folder", "C:\\calib.npz"])
def test_a_missing_path_is_a_recipe_error(path: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_source(path, [X])
    assert path in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("no_such_module_here:f", "ModuleNotFoundError"),
        ("json:no_such_function", "no_such_function"),
        ("sys:path", "list"),
        ("time:time", "float"),
        ("math:sqrt", "TypeError"),
        ("sys:exit", "SystemExit"),
        ("leaving_module:f", "SystemExit: 0"),
        ("broken_module:f", "SyntaxError"),
    ],
)
def test_bad_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, named: str) -> None:
    (tmp_path / "broken_module.py").write_text("def f(:\n")
    (tmp_path / "leaving_module.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    refuse(reference, [X], reference, named)


def test_a_function_that_yields_too_little_for_a_fixed_batch() -> None:
    refuse(lambda: [{"x": rows(2, 3)}], [spec("x", (4, 3))], "4 samples")
