"""What can be asked for, and what is refused before any work is done."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphprune.errors import RecipeError
from graphprune.recipe import Recipe, read_recipe
from graphprune.values import CRITERIA, ENCODINGS, SPARSIFIERS

GOOD: list[dict[str, Any]] = [
    {"target": 0},
    {"target": 0.0},
    {"target": 0.999999},
    {"channels": 0.0},
    {"channels": 0.5, "target": 0.9},
    {"target": 0.5, "structural": "auto"},
    {"target": 0.5, "structural": 0},
    {"target": 0.5, "structural": 1},
    {"target": 0.5, "structural": 0.25},
    *({"target": 0.5, "align": align} for align in ("auto", "off", 1, 4, 1024)),
    *({"target": 0.5, "criterion": criterion} for criterion in CRITERIA),
    *({"target": 0.5, "sparsifier": sparsifier} for sparsifier in SPARSIFIERS),
    *({"target": 0.5, "pattern": pattern} for pattern in ("2:4", "4:8", "1:9999", "16x1", "1x1", "8x16")),
    *({"target": 0.5, "encode": encoding} for encoding in ENCODINGS),
    {"target": 0.5, "encode": "auto", "recover": False},
    {"target": 0.5, "pack": "auto", "channels": 0.5, "recover": False, "encode": "auto"},
    {"max_drop": 0.02, "pack": "auto"},
    {"target": 0.5, "pattern": "16x1", "pack": "off"},
    {"pattern": "2:4"},
    {"macs": 0},
    {"macs": 0.5, "target": 0.9, "rounds": 2, "finetune": "a:b"},
    {"speedup": 1.5},
    {"speedup": 2, "target": 0.9, "max_drop": 0.1, "pattern": "2:4"},
    {"max_drop": 0.02},
    {"target": 0.5, "max_latency_ratio": 0.01},
    {"target": 0.5, "max_drop": 0},
    {"target": 0.5, "max_drop": 1.0},
    {"target": 0.5, "threads": 1, "runs": 2, "seed": 0, "recover": False},
    {"target": 0.5, "allow_resize": ()},
    {"target": 0.5, "custom_ops": ("operators.so", "more/operators.so")},
    {"target": 0.5, "allow_resize": ("h_in", "h_out", "c_in=c_out")},
]

BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "nothing is asked for"),
    ({"recover": False}, "nothing is asked for"),
    ({"encode": "auto"}, "nothing is asked for"),
    *(({"target": 0.5, "pack": pack}, "--pack must be one of off, auto, not") for pack in ("on", True, None, 64)),
    ({"target": 0.5, "pack": "auto", "pattern": "16x1"}, "--pack and --pattern both say where zeros may be"),
    ({"channels": 0.5, "pack": "auto"}, "--pack packs zeros, and no zeros are asked for"),
    ({"target": 0.5, "encode": "zip"}, "--encode must be one of off, auto, fp16"),
    ({"target": 0.5, "encode": None}, "--encode"),
    ({"target": 0.5, "encode": True}, "--encode"),
    ({"target": 0.5, "encode": "fp16", "recover": False}, "--no-recover"),
    ({"target": 1}, "--target"),
    ({"target": 1.0}, "--target"),
    ({"target": -0.1}, "--target"),
    ({"target": math.nan}, "--target"),
    ({"target": math.inf}, "--target"),
    ({"target": "0.5"}, "--target"),
    ({"target": True}, "--target"),
    ({"channels": 1}, "--channels"),
    ({"channels": -1e-9}, "--channels"),
    ({"target": 0.5, "structural": 1.1}, "--structural"),
    ({"target": 0.5, "structural": -0.1}, "--structural"),
    ({"target": 0.5, "structural": "some"}, "--structural"),
    *(({"target": 0.5, "align": align}, "--align") for align in (0, -4, 1025, 2.5, "4", "even", True, None)),
    ({"channels": 0.5, "structural": 0.5}, "--structural"),
    ({"channels": 0.5, "target": 0.5, "structural": 0.5}, "--channels"),
    ({"target": 0.5, "criterion": "taste"}, "'taste'"),
    ({"target": 0.5, "criterion": None}, "--criterion"),
    ({"target": 0.5, "sparsifier": "taste"}, "'taste'"),
    ({"target": 0.5, "sparsifier": None}, "--sparsifier"),
    *(
        ({"target": 0.5, "pattern": pattern}, "--pattern")
        for pattern in (
            "4:2",
            "4:4",
            "0:4",
            "2:",
            "2-4",
            "0x4",
            "4x0",
            "16x",
            " 2:4",
            "2:4\n",
            "",
            "2:10000",
            "\u0662:4",
            2,
        )
    ),
    ({"pattern": "16x1"}, "--target"),
    *(({"speedup": speedup}, "--speedup") for speedup in (1, 0.5, -2, 1001, math.inf, math.nan, True, "2")),
    *(({"macs": macs}, "--macs must be at least 0 and below 1") for macs in (1, -0.1, 1.5, math.nan, True, "0.5")),
    ({"macs": 0.5, "channels": 0.5}, "--channels and --macs both say how much to remove"),
    ({"macs": 0.5, "speedup": 2.0}, "--macs and --speedup both say how much to remove"),
    ({"macs": 0.5, "target": 0.5, "structural": 0}, "--macs and --structural both say how much to remove"),
    ({"speedup": 2.0, "channels": 0.5}, "--speedup"),
    ({"speedup": 2.0, "target": 0.5, "structural": 0.5}, "--speedup"),
    ({"target": 0.5, "runs": None}, "--runs"),
    ({"target": 0.5, "max_latency_ratio": 0}, "--max-latency-ratio"),
    ({"target": 0.5, "max_latency_ratio": math.inf}, "--max-latency-ratio"),
    ({"target": 0.5, "max_drop": 1.1}, "--max-drop"),
    ({"target": 0.5, "max_drop": -0.1}, "--max-drop"),
    ({"target": 0.5, "threads": 0}, "--threads"),
    ({"target": 0.5, "threads": 1.5}, "--threads"),
    ({"target": 0.5, "threads": 1025}, "--threads"),
    ({"target": 0.5, "runs": 1_000_001}, "--runs"),
    ({"target": 10**400}, "--target"),
    ({"target": np.array([0.5, 0.6])}, "--target"),
    ({"target": np.float32("nan")}, "--target"),
    ({"target": 0.5, "max_latency_ratio": 10**400}, "--max-latency-ratio"),
    ({"target": 0.5, "structural": np.array([0.5, 0.6])}, "--structural"),
    ({"target": 0.5, "structural": np.array(["auto"])}, "--structural"),
    ({"target": 0.5, "criterion": np.array(["apoz", "apoz"])}, "--criterion"),
    ({"target": 0.5, "seed": np.bool_(True)}, "--seed"),
    ({"target": 0.5, "allow_resize": "h_in"}, "--allow-resize"),
    ({"target": 0.5, "allow_resize": ["h_in", 1]}, "--allow-resize"),
    ({"target": 0.5, "allow_resize": [""]}, "--allow-resize"),
    ({"target": 0.5, "allow_resize": None}, "--allow-resize"),
    ({"target": 0.5, "custom_ops": "operators.so"}, "--custom-ops"),
    ({"target": 0.5, "custom_ops": [b"operators.so"]}, "--custom-ops"),
    ({"target": 0.5, "runs": 1}, "--runs"),
    ({"target": 0.5, "runs": 2.5}, "--runs"),
    ({"target": 0.5, "seed": -1}, "--seed"),
    ({"target": 0.5, "seed": 0.5}, "--seed"),
]


@pytest.mark.parametrize("given", GOOD, ids=str)
def test_good_values_are_taken_as_they_are(given: dict[str, Any]) -> None:
    recipe = Recipe(**given)
    assert {name: getattr(recipe, name) for name in given} == given


@pytest.mark.parametrize(("given", "named"), BAD, ids=str)
def test_bad_values_are_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe(**given)
    assert named in str(caught.value)
    assert caught.value.exit_code == 2


def test_numbers_of_any_kind_become_plain_ones() -> None:
    recipe = Recipe(
        target=np.float32(0.5),  # type: ignore[arg-type]
        structural=Fraction(1, 4),  # type: ignore[arg-type]
        max_drop=np.float16(0.25),  # type: ignore[arg-type]
        runs=np.int64(5),  # type: ignore[arg-type]
        seed=np.uint8(7),  # type: ignore[arg-type]
    )
    assert recipe == Recipe(target=0.5, structural=0.25, max_drop=0.25, runs=5, seed=7)
    assert {type(getattr(recipe, name)) for name in ("target", "structural", "max_drop")} == {float}
    assert {type(getattr(recipe, name)) for name in ("threads", "runs", "seed")} == {int}


def test_the_message_names_value_and_range() -> None:
    with pytest.raises(RecipeError, match=r"--target must be at least 0 and below 1, not 1\.5"):
        Recipe(target=1.5)
    with pytest.raises(RecipeError, match=r"apoz.*activation"):
        Recipe(target=0.5, criterion="taste")


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Recipe(target=0.5).target = 0.9  # type: ignore[misc]


def test_a_file_gives_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('target = 0.9\nstructural = 0.5\ncriterion = "activation"\nrecover = false\nseed = 3\n')
    given = read_recipe(path)
    assert given == {"target": 0.9, "structural": 0.5, "criterion": "activation", "recover": False, "seed": 3}
    assert Recipe(**given) == Recipe(target=0.9, structural=0.5, criterion="activation", recover=False, seed=3)


@pytest.mark.parametrize("field", [field.name for field in fields(Recipe)])
def test_every_field_can_be_given_in_a_file(field: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    given = {
        "target": 0.5,
        "channels": 0.25,
        "macs": 0.5,
        "speedup": 2.0,
        "structural": "auto",
        "criterion": "apoz",
        "sparsifier": "wanda",
        "align": 8,
        "pattern": "2:4",
        "recover": True,
        "finetune": "distill",
        "rounds": 3,
        "epochs": 20,
        "encode": "auto",
        "pack": "auto",
        "max_latency_ratio": 1.5,
        "max_drop": 0.1,
        "min_speedup": 1.2,
        "metric": "metrics:accuracy",
        "batch": 8,
        "provider": "CUDAExecutionProvider",
        "allow_resize": ["h_in", "h_out"],
        "custom_ops": ["operators.so"],
        "threads": 2,
        "runs": 4,
        "seed": 9,
    }[field]
    path.write_text(f"{field} = {json.dumps(given)}\n")
    assert read_recipe(path) == {field: given}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"goal = 0.9\n", "'goal'"),
        (b"[prune]\ntarget = 0.9\n", "'prune'"),
        (b"target 0.9\n", "line 1"),
        (b"\xff\xfe", "decode"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RecipeError, match="cannot be read") as caught:
            read_recipe(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ['recover = "yes"', "runs = 2.5", "target = 1.5", 'channels = "half"', "seed = true"])
def test_a_file_with_a_value_out_of_range_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=f"--{text.split(maxsplit=1)[0]} must be"):
        read_recipe(path)
