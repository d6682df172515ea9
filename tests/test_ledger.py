"""The ledger: the schema of DESIGN section 7, as it is in the file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphprune import Recipe, RecipeError, prune
from graphprune.ir.model import load
from graphprune.ledger import SCHEMA, Ledger, finite
from graphprune.output import write
from tests import small
from tests.measure import editable
from tests.oracles import sliced

KEYS = {
    "schema": str,
    "model": {"path": str, "sha256": str},
    "output": {"path": str, "sha256": str},
    "target": float,
    "seed": int,
    "recipe": dict,
    "versions": {"graphprune": str, "onnx": str, "onnxruntime": str, "numpy": str, "python": str},
    "calibration": {"source": str, "samples": int, "real": bool},
    "weights": {"before": int, "after": int, "removed": int, "zeroed": int, "nonzero": int, "sparsity": float},
    "macs": {"before": int, "after": int},
    "bytes": {"before": int, "after": int},
    "kept": dict,
    "resized": {"image": {"before": list, "after": list, "kept": {"1": list}}},
    "zeroed": dict,
    "groups": [
        {"name": str, "axes": list, "size": int, "removed": list, "score": list, "criterion": str, "exact": bool}
    ],
    "declined": [{"tensor": str, "axis": int, "positions": int, "share": float, "node": str, "op": str, "reason": str}],
    "reasons": [{"op": str, "reason": str, "nodes": list, "axes": int, "share": float}],
    "latency": {
        "threads": int,
        "runs": int,
        "before_ms": float,
        "after_ms": float,
        "ratio": float,
        "ratio_ci": list,
        "batch": type(None),
        "provider": str,
        "before": {"load_ms": float},
        "after": {"load_ms": float},
    },
    "equivalence": {"max_abs": float, "max_rel": float, "constant": list},
    "fidelity": {"relative_l2": float, "outputs": list},
    "gates": [{"name": str, "limit": float, "value": float, "ok": bool, "relation": str}],
    "metric": type(None),
    "recovery": type(None),
    "speed": type(None),
    "rounds": list,
    "repairs": list,
    "packed": list,
    "packed_latency": type(None),
    "encodings": list,
    "notes": list,
    "seconds": dict,
}


def demand(value: Any, schema: Any, where: str = "ledger") -> None:
    """Demand the keys and types of a schema, whatever else there is."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for key, inner in schema.items():
            assert key in value, f"{where}.{key}"
            demand(value[key], inner, f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        assert value, f"{where} is empty: nothing was tested"
        for place, item in enumerate(value):
            demand(item, schema[0], f"{where}[{place}]")
    else:
        assert type(value) is schema, f"{where} is {value!r}"


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ledger]:
    folder = tmp_path_factory.mktemp("run")
    path, data = small.write(folder)
    loaded = load(path)
    freed = {"allow_resize": ("image",), "align": "off"}
    recipe = Recipe(target=0.8, channels=0.5, recover=False, runs=2, max_drop=1.0, max_latency_ratio=1e3, **freed)
    model, ledger = prune(loaded, recipe, data)
    return folder, write(model, ledger, loaded, folder / "out.onnx", folder / "out.json")


def test_the_file_holds_every_key_with_its_type(run: tuple[Path, Ledger]) -> None:
    values = json.loads((run[0] / "out.json").read_text())
    demand(values, KEYS)
    assert values["schema"] == SCHEMA == "graphprune.ledger/1"
    assert next(iter(values)) == "schema"
    assert set(values) == set(KEYS)


def test_a_repair_is_recorded_predicted_and_measured_side_by_side(tmp_path: Path) -> None:
    path, data = small.write(tmp_path)
    model, ledger = prune(path, Recipe(target=0.7, runs=2, max_drop=1.0), data)
    values = json.loads(write(model, ledger, load(path), tmp_path / "out.onnx", tmp_path / "out.json").to_json())
    demand(
        values["recovery"],
        {
            "fitted": int,
            "held_out": int,
            "predicted_l2": float,
            "measured_l2": float,
            "agreement": float,
            "drop": float,
        },
    )
    demand(values["repairs"], [{"layer": str, "before": float, "after": float}])
    # Batches: three of every four are fitted, the fourth is held out.
    assert values["recovery"]["held_out"] * 3 == values["recovery"]["fitted"] > 0
    assert values["recovery"]["predicted_l2"] > 0
    assert values["recovery"]["measured_l2"] > 0
    assert {repair["layer"] for repair in values["repairs"]} == {"w_0", "w_1", "w_2", "w_3", "w_4"}
    gates = {gate["name"]: gate for gate in values["gates"]}
    assert gates["max-drop"]["value"] == values["recovery"]["drop"]


def test_the_file_is_the_ledger(run: tuple[Path, Ledger]) -> None:
    folder, ledger = run
    text = (folder / "out.json").read_text()
    assert text == ledger.to_json()
    assert json.loads(text) == finite(ledger.as_dict())
    assert json.dumps(json.loads(text), indent=1) + "\n" == text


def test_a_run_can_be_checked_from_the_files_and_the_ledger_alone(run: tuple[Path, Ledger]) -> None:
    folder, _ = run
    values = json.loads((folder / "out.json").read_text())
    before, after = (editable(onnx.load(values[key]["path"])) for key in ("model", "output"))
    changed = 0
    for name, original in before.items():
        axes = {int(axis): kept for axis, kept in values["kept"].get(name, {}).items()}
        expected = sliced(original, axes)
        assert after[name].shape == expected.shape
        differs = after[name] != expected
        assert not after[name][differs].any()
        assert int(differs.sum()) == values["zeroed"].get(name, 0)
        changed += int(differs.sum())
    floats = [value for value in after.values() if value.dtype.kind == "f"]
    assert changed == values["weights"]["zeroed"]
    assert values["weights"]["after"] == sum(value.size for value in floats)
    assert values["weights"]["nonzero"] == sum(int(np.count_nonzero(value)) for value in floats)
    assert values["bytes"]["after"] == (folder / "out.onnx").stat().st_size
    for axes in values["kept"].values():
        for kept in axes.values():
            assert kept == sorted(set(kept))


def test_only_axes_that_lost_something_are_kept(run: tuple[Path, Ledger]) -> None:
    folder, ledger = run
    before = editable(onnx.load(folder / "net.onnx"))
    found = {(name, int(axis)): kept for name, axes in ledger.kept.items() for axis, kept in axes.items()}
    assert all(0 < len(kept) < before[name].shape[axis] for (name, axis), kept in found.items())
    assert set(found) == {
        *((name, 0) for name in ("w_0", "scale_0", "shift_0", "mean_0", "var_0", "w_1", "b_0", "w_2", "b_1", "w_3")),
        ("b_2", 0),
        ("w_0", 1),
        ("w_1", 1),
        ("w_2", 1),
        ("w_3", 1),
        ("w_4", 1),
    }


def test_figures_without_a_form_in_json_become_null(run: tuple[Path, Ledger]) -> None:
    _, ledger = run
    odd = replace(ledger, equivalence=ledger.equivalence._replace(max_rel=math.inf, max_abs=math.nan))
    values = json.loads(odd.to_json())
    assert (values["equivalence"]["max_rel"], values["equivalence"]["max_abs"]) == (None, None)
    assert finite({1: (1.5, -math.inf), "a": [{"b": math.nan}]}) == {"1": [1.5, None], "a": [{"b": None}]}


def test_ok_is_that_every_gate_held(run: tuple[Path, Ledger]) -> None:
    _, ledger = run
    assert ledger.ok
    assert not replace(ledger, gates=[*ledger.gates, replace(ledger.gates[0], ok=False)]).ok
    assert replace(ledger, gates=[]).ok


def test_saving_is_atomic_and_names_a_missing_folder(run: tuple[Path, Ledger], tmp_path: Path) -> None:
    _, ledger = run
    (tmp_path / "a.json").write_text("old")
    ledger.save(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == ledger.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(RecipeError, match="folder does not exist") as caught:
        ledger.save(tmp_path / "none" / "a.json")
    assert str(tmp_path / "none") in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be written"):
        ledger.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
