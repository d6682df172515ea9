"""Operators that move data and compute shapes equal ONNX Runtime's."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

pytest.importorskip("torch")

RNG = np.random.default_rng(2)
X = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("axis", [0, 1, 2, 4, -1, -3])
def test_flatten(check, axis):
    check("Flatten", [X], axis=axis)


@pytest.mark.parametrize("shape", [(2, -1), (0, 0, 20), (0, -1, 2), (-1,), (6, 20)])
def test_reshape(check, shape):
    check("Reshape", [X, ints(*shape)])


def test_reshape_with_a_true_zero(check):
    check("Reshape", [X[:0], ints(3, 0)], opset=14, allowzero=1)


@pytest.mark.parametrize("perm", [None, [0, 2, 3, 1], [3, 2, 0, 1]])
def test_transpose(check, perm):
    check("Transpose", [X], **({} if perm is None else {"perm": perm}))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(check, axis):
    check("Concat", [X, X + 1, X * 2], axis=axis, fixed=())


def test_split(check):
    check("Split", [X], opset=11, outputs=2, axis=2)
    check("Split", [X], opset=11, outputs=2, axis=1, split=[1, 2])
    check("Split", [X, ints(1, 4)], opset=13, outputs=2, axis=-1)
    check("Split", [X], opset=13, outputs=2, axis=2)
    check("Split", [X], opset=18, outputs=2, axis=3, num_outputs=2)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [3], [2], [1]),
        ([0, 1], [HIGH, -1], [3, 2], [2, 1]),
        ([-1], [LOW], [3], [-1]),
        ([HIGH], [0], [3], [-2]),
        ([3, -1], [0, -4], [2, -1], [-1, -1]),
        ([2], [2], [1], [1]),
        ([3], [1], [2], [1]),
    ],
)
def test_slice_by_inputs(check, starts, ends, axes, steps):
    check("Slice", [X, ints(*starts), ints(*ends), ints(*axes), ints(*steps)])


def test_slice_by_attributes_and_without_axes(check):
    check("Slice", [X], opset=9, starts=[0, 1], ends=[1, -1], axes=[1, 3])
    check("Slice", [X], opset=9, starts=[0, 1], ends=[1, 2])
    check("Slice", [X, ints(0, 1), ints(1, 2)])
    check("Slice", [X, ints(0, 1), ints(4, 3), None, ints(2, 1)])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("pads", [[0, 0, 1, 2, 0, 0, 3, 0], [0, 1, 0, 1, 0, 2, 0, 1]])
def test_pad(check, mode, pads):
    check("Pad", [X, ints(*pads)], mode=mode)
    check("Pad", [X], opset=9, pads=pads, mode=mode)


def test_pad_by_a_value_along_axes_wrapped_and_cropped(check):
    check("Pad", [X, ints(1, 0, 0, 0, 0, 0, 0, 2), np.array(3, np.float32)])
    check("Pad", [X], opset=9, pads=[0, 0, 0, 1, 0, 0, 0, 0], value=-2.0)
    check("Pad", [X, ints(1, 2), None, ints(-1)], opset=18)
    check("Pad", [X, ints(1, 2), None, ints(2)], opset=19, mode="wrap")
    check("Pad", [X, ints(0, 0, -1, 1, 0, 0, 0, -2)])
    check("Pad", [X, ints(0, 0, -1, 0, 0, 0, 1, 0)], mode="edge")
    check("Pad", [np.arange(6), ints(1, 1), np.array(7, np.int64)])


def test_squeeze_and_unsqueeze(check):
    thin = X[:, :1, :, :1]
    check("Squeeze", [thin])
    check("Squeeze", [thin], opset=11, axes=[1])
    check("Squeeze", [thin, ints(-1)])
    check("Unsqueeze", [X], opset=11, axes=[0, 3])
    check("Unsqueeze", [X, ints(-1, 1)])


@pytest.mark.parametrize("indices", [np.int64(1), [0, 2], [[2, -1], [0, 1]]])
@pytest.mark.parametrize("axis", [1, -2])
def test_gather(check, indices, axis):
    check("Gather", [X, np.asarray(indices, np.int64)], axis=axis)


def test_gather_elements(check):
    check("GatherElements", [X[0, 0], ints(1, -1, 0, 2, 3).reshape(1, 5)], axis=0)


@pytest.mark.parametrize("options", [{}, {"start": 1}, {"start": -2, "end": 4}, {"end": -1}])
def test_shape(check, options):
    check("Shape", [X], **options)
    check("Size", [X])


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 1, 2, 1, 1, 1), (1,)])
def test_expand(check, shape):
    check("Expand", [X[:, :, :1, :1], ints(*shape)])


def test_constant_of_shape(check):
    check("ConstantOfShape", [ints(2, 3)])
    check("ConstantOfShape", [ints(2)], value=numpy_helper.from_array(ints(7)))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_and_back(check, mode):
    deep = RNG.standard_normal((2, 12, 2, 3)).astype(np.float32)
    check("DepthToSpace", [deep], blocksize=2, mode=mode)
    check("SpaceToDepth", [deep[:, :, :, :2]], blocksize=2)


def test_tile(check):
    check("Tile", [X, ints(1, 2, 1, 3)])


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transform", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 0.5, 1.6)])
def test_resize_by_scales(check, mode, transform, scales):
    options = {"mode": mode, "coordinate_transformation_mode": transform}
    check("Resize", [X, None, np.array(scales, np.float32)], opset=13, **options)


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_resize_to_sizes(check, rounding):
    check("Resize", [X, None, None, ints(2, 3, 7, 9)], opset=13, mode="nearest", nearest_mode=rounding)
    check("Resize", [X, None, None, ints(8, 10)], opset=18, mode="linear", axes=[2, 3])


def test_resize_cubic_without_the_outside(check):
    options = {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}
    check("Resize", [X, None, np.array([1, 1, 2, 2], np.float32)], opset=13, **options)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_older_forms_of_resize(check, mode):
    scales = np.array([1, 1, 2, 3], np.float32)
    check("Resize", [X, scales], opset=10, mode=mode)
    check("Upsample", [X, scales], opset=9, mode=mode)
    check("Upsample", [X], opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
