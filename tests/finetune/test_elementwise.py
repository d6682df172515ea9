"""Elementwise operators equal ONNX Runtime's."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

pytest.importorskip("torch")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 4, 3)).astype(np.float32) * 3
Y = RNG.standard_normal((5, 1, 3)).astype(np.float32)
INSIDE = RNG.uniform(-0.95, 0.95, (4, 6)).astype(np.float32)
ABOVE_ONE = RNG.uniform(1.1, 4, (4, 6)).astype(np.float32)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0, -1.5, 2], np.float32)

ANY = """Abs Atan Ceil Cos Erf Exp Floor Identity LeakyRelu Neg Relu Sigmoid Sign Sin Softplus Softsign Tanh Elu Selu
HardSigmoid HardSwish Celu ThresholdedRelu Round""".split()


@pytest.mark.parametrize("op_type", ANY)
def test_unary(check, op_type):
    check(op_type, [X])


@pytest.mark.parametrize("op_type", ["Acos", "Asin", "Atanh", "Cosh", "Sinh", "Asinh", "Tan"])
def test_unary_in_the_unit_interval(check, op_type):
    check(op_type, [INSIDE])


@pytest.mark.parametrize("op_type", ["Acosh", "Log", "Reciprocal", "Sqrt"])
def test_unary_of_positive_values(check, op_type):
    check(op_type, [ABOVE_ONE])


def test_round_takes_halves_to_the_even_neighbour(check):
    check("Round", [np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)])


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 2.0}),
        ("Selu", {"alpha": 1.5, "gamma": 1.2}),
        ("HardSigmoid", {"alpha": 0.5, "beta": 0.1}),
        ("Celu", {"alpha": 0.5}),
        ("ThresholdedRelu", {"alpha": 0.7}),
    ],
)
def test_activation_attributes(check, op_type, attributes):
    check(op_type, [X], **attributes)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(check, approximate):
    check("Gelu", [X], opset=20, approximate=approximate)


def test_mish(check):
    check("Mish", [X], opset=18)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("fixed", [(), (1,), (0,)])
def test_arithmetic_broadcasts(check, op_type, fixed):
    check(op_type, [X, Y], fixed=fixed)


@pytest.mark.parametrize("op_type", ["Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"])
def test_comparison(check, op_type):
    check(op_type, [np.round(X), np.round(Y)], fixed=())


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(check, op_type):
    check(op_type, [X > 0, Y > 0], fixed=())


def test_not(check):
    check("Not", [X > 0])


@pytest.mark.parametrize("op_type", ["Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_variadic(check, op_type, count):
    check(op_type, [X, Y, X[:1]][:count], fixed=())


@pytest.mark.parametrize("exponent", [np.float32(2), np.array([2.5], np.float32), np.int64(3), np.array(-1, np.int32)])
def test_pow_keeps_the_type_of_its_base(check, exponent):
    check("Pow", [ABOVE_ONE, np.asarray(exponent)])


def test_integer_division_truncates(check):
    check("Div", [np.array([-7, 7, -6, 5], np.int64), np.array([2, -2, 4, 3], np.int64)])


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(check, fmod):
    check("Mod", [np.array([-7, 7, -6, 5], np.int64), np.array([2, -2, 4, 3], np.int64)], fmod=fmod)
    check("Mod", [X, Y], fmod=1)


def test_where(check):
    check("Where", [X > 0, X, Y], fixed=())


@pytest.mark.parametrize("op_type", ["IsNaN", "IsInf"])
def test_special_values(check, op_type):
    check(op_type, [SPECIAL])
    if op_type == "IsInf":
        check(op_type, [SPECIAL], detect_negative=0)
        check(op_type, [SPECIAL], detect_positive=0)


@pytest.mark.parametrize("attributes", [{}, {"min": 0.0}, {"max": 6.0}, {"min": -1.0, "max": 1.0}])
def test_clip_by_attributes(check, attributes):
    check("Clip", [X], opset=7, **attributes)


@pytest.mark.parametrize("low", [None, np.float32(-1)])
@pytest.mark.parametrize("high", [None, np.float32(0.5)])
def test_clip_by_inputs(check, low, high):
    check("Clip", [X] + [None if bound is None else np.asarray(bound) for bound in (low, high)], opset=13)


@pytest.mark.parametrize("shape", [(5, 1, 1), (1,), (3,), (5, 4, 3)])
def test_prelu(check, shape):
    check("PRelu", [X, RNG.standard_normal(shape).astype(np.float32)])


@pytest.mark.parametrize("target", [TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.DOUBLE])
def test_cast(check, target):
    check("Cast", [X], to=target)


def test_cast_from_bool_and_like(check):
    check("Cast", [X > 0], to=TensorProto.FLOAT)
    check("CastLike", [X, np.zeros(1, np.float16)])
