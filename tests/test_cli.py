"""The command line: what goes where, exit codes, files, interruption."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphprune
from graphprune import Recipe, prune
from graphprune.recipe import Recipe as RecipeFields
from tests import small
from tests.commands import BY_RULE, BY_RULE_OPTIONS, QUICK, Result, command

ROOT = Path(__file__).resolve().parents[1]
FIXED = {
    name: str(value)
    for name, value in {"PYTHONPATH": ROOT, "COLUMNS": 200, "PATH": os.environ["PATH"], "NO_COLOR": 1}.items()
}


@pytest.fixture(name="net")
def _net(tmp_path: Path) -> tuple[Path, Path]:
    return small.write(tmp_path)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def python_m(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m graphprune`` in a folder."""
    given = [sys.executable, "-m", "graphprune", *map(str, arguments)]
    return subprocess.run(given, cwd=folder, env=FIXED, capture_output=True, text=True, check=False, timeout=120)


# -- prune -------------------------------------------------------------------------------------------------------


def test_the_default_command_writes_model_and_ledger(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    before = path.read_bytes()
    found = command(capfd, path, "--target", "0.9", "--calib", data, *QUICK)
    assert (found.code, found.out) == (0, "")
    assert files(tmp_path) == {"net.onnx", "calib.npz", "net.pruned.onnx", "net.pruned.json"}
    assert path.read_bytes() == before
    for text in ("weights", "nonzero weights", "MACs", "bytes", "latency", "gate target", "held", "net.pruned.onnx"):
        assert text in found.err
    ledger = json.loads((tmp_path / "net.pruned.json").read_text())
    assert ledger["weights"]["sparsity"] >= 0.9
    expected, _ = prune(path, Recipe(target=0.9, runs=2), data)
    assert (tmp_path / "net.pruned.onnx").read_bytes() == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_prune_by_name_and_options_anywhere_are_the_same(
    order: int, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = map(str, net)
    given = [
        ["prune", path, "--target", "0.8", "--calib", data, "-q"],
        ["--target", "0.8", "--calib", data, "-q", path],
        ["-q", path, "--calib", data, "--target", "0.8"],
    ][order]
    assert command(capfd, *given, *BY_RULE_OPTIONS, *QUICK) == Result(0, "", "")
    expected, _ = prune(path, Recipe(target=0.8, runs=2, **BY_RULE), data)
    assert (tmp_path / "net.pruned.onnx").read_bytes() == expected.SerializeToString(deterministic=True)


def test_every_option_reaches_the_recipe(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    given: dict[str, Any] = {
        "target": 0.3,
        "structural": 0.25,
        "criterion": "activation",
        "sparsifier": "wanda",
        "align": 2,
        "encode": "auto",
        "pack": "auto",
        "max_latency_ratio": 50.0,
        "max_drop": 1.0,
        "min_speedup": 0.01,
        "batch": 3,
        "provider": "CPUExecutionProvider",
        "threads": 2,
        "runs": 4,
        "seed": 7,
    }
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    report = tmp_path / "why.json"
    out = tmp_path / "small.onnx"
    options += ["--allow-resize", "image"]
    found = command(capfd, path, "--calib", data, *options, "--no-recover", "--report", report, "-o", out)
    assert found.code == 0
    recipe = json.loads(report.read_text())["recipe"]
    assert recipe == {
        **given,
        "recover": False,
        "channels": None,
        "macs": None,
        "speedup": None,
        "pattern": None,
        "finetune": None,
        "rounds": 1,
        "epochs": None,
        "allow_resize": ["image"],
        "custom_ops": [],
        "metric": None,
    }
    assert set(recipe) == {*RecipeFields.__dataclass_fields__}
    assert files(tmp_path) == {"net.onnx", "calib.npz", "small.onnx", "why.json"}
    found = command(capfd, path, "--calib", data, "--channels", "0.25", "-q", "--report", report, *QUICK)
    assert json.loads(report.read_text())["recipe"]["channels"] == 0.25
    found = command(capfd, path, "--calib", data, "--pattern", "2:4", "-q", "--report", report, *QUICK)
    assert found.code == 0
    assert json.loads(report.read_text())["recipe"]["pattern"] == "2:4"


def test_json_is_all_that_stdout_holds(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    found = command(capfd, path, "--target", "0.9", "--calib", data, "--json", *QUICK)
    assert json.loads(found.out) == json.loads((tmp_path / "net.pruned.json").read_text())
    assert "latency" in found.err
    quiet = command(capfd, path, "--target", "0.9", "--calib", data, "--json", "-q", *QUICK)
    assert (json.loads(quiet.out)["schema"], quiet.err) == ("graphprune.ledger/1", "")


def test_a_missed_gate_is_exit_1_and_the_files_are_written(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    found = command(capfd, path, "--target", "0.95", "--calib", data, "--max-drop", "0", "--no-recover", *QUICK)
    assert found.code == 1
    assert "gate max-drop" in found.err
    assert "MISSED" in found.err
    assert "Traceback" not in found.err
    assert "net.pruned.onnx" in files(tmp_path)
    assert command(capfd, path, "--target", "0.5", "--calib", data, "--max-drop", "1", *QUICK).code == 0
    slow = command(capfd, path, "--channels", "0.25", "--calib", data, "--max-latency-ratio", "1e-6", *QUICK)
    assert slow.code == 1
    assert "gate max-latency-ratio" in slow.err


def test_a_drop_alone_asks_for_the_most_that_holds_it(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    sparsity = []
    for allowed in ("0", "1"):
        found = command(capfd, path, "--max-drop", allowed, "--calib", data, "--json", *QUICK)
        values = json.loads(found.out)
        assert found.code == 0, "what was found holds the gate"
        (gate,) = values["gates"]
        assert (gate["name"], gate["limit"], gate["ok"]) == ("max-drop", float(allowed), True)
        assert values["recovery"]["drop"] <= float(allowed)
        sparsity.append(values["weights"]["sparsity"])
    assert 0.1 < sparsity[0] <= sparsity[1]
    assert sparsity[1] > 0.9
    refused = command(capfd, path, "--max-drop", "0.1", "--calib", data, "--no-recover", *QUICK)
    assert refused.code == 2
    assert "--max-drop alone needs kept weights to change" in refused.err


def test_without_calibration_data_the_run_warns(net: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    path, _ = net
    found = command(capfd, path, "--target", "0.9", *QUICK)
    assert found.code == 0
    assert "warning:" in found.err
    assert "random inputs" in found.err
    assert "--calib" in found.err


def test_verbose_shows_groups_and_what_was_left_alone(
    net: tuple[Path, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path, data = net
    found = command(capfd, path, "--channels", "0.5", "--calib", data, "-v", *QUICK)
    assert found.code == 0
    for text in ("obs", "w_3", "left alone", "graph input 'image' keeps its shape"):
        assert text in found.err
    plain = command(capfd, path, "--channels", "0.5", "--calib", data, *QUICK)
    assert "left alone" not in plain.err


def test_removing_nothing_writes_the_identical_file(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    for options in (("--channels", "0"), ("--target", "0", "--structural", "0"), ("--channels", "0", "--no-recover")):
        assert command(capfd, path, *options, "--calib", data, "-q", *QUICK).code == 0
        assert (tmp_path / "net.pruned.onnx").read_bytes() == path.read_bytes()


def test_an_existing_output_is_replaced(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    out = tmp_path / "net.pruned.onnx"
    out.write_text("old")
    assert command(capfd, path, "--target", "0.5", "--calib", data, "-q", *QUICK).code == 0
    onnx.checker.check_model(str(out), full_check=True)


def test_external_data_is_replaced_when_run_again_in_its_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(small.network(), "net.onnx", save_as_external_data=True, location="net.weights", size_threshold=128)
    for _ in range(2):
        found = command(capfd, "net.onnx", "--channels", "0.5", "-q", "-o", "rerun.onnx", *QUICK)
        assert found.code == 0, found.err
        assert files(tmp_path) == {"net.onnx", "net.weights", "rerun.onnx", "rerun.onnx.data", "rerun.json"}
        onnx.checker.check_model("rerun.onnx", full_check=True)


# -- recipes -----------------------------------------------------------------------------------------------------


def test_a_recipe_gives_defaults_that_options_override(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('target = 0.6\nstructural = 0.5\nrecover = false\nruns = 2\nseed = 3\ncriterion = "activation"\n')
    report = tmp_path / "net.pruned.json"
    assert command(capfd, path, "--recipe", recipe, "--calib", data, "-q").code == 0
    asked = json.loads(report.read_text())["recipe"]
    assert (asked["target"], asked["structural"], asked["recover"], asked["seed"]) == (0.6, 0.5, False, 3)
    assert asked["criterion"] == "activation"
    found = command(capfd, path, "--target", "0.7", "--seed", "4", "--calib", data, "-q", "--recipe", recipe)
    assert found.code == 0
    asked = json.loads(report.read_text())["recipe"]
    assert (asked["target"], asked["structural"], asked["seed"]) == (0.7, 0.5, 4)
    recipe.write_text("target = 0.6\nrecover = true\nruns = 2\n")
    assert command(capfd, path, "--recipe", recipe, "--calib", data, "-q").code == 0
    assert json.loads(report.read_text())["recipe"]["recover"] is True


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("goal = 0.9", "'goal'"),
        ("target = 1.5", "--target"),
        ("target =", "Invalid value"),
        ('recover = "no"', "--recover"),
    ],
)
def test_a_bad_recipe_is_exit_2(
    text: str, named: str, net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    found = command(capfd, path, "--recipe", recipe, "--calib", data)
    assert found.code == 2
    assert named in found.err
    assert "net.pruned.onnx" not in files(tmp_path)


# -- inspect and compare -----------------------------------------------------------------------------------------


def test_inspect_shows_groups_and_changes_nothing(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path, data = net
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    found = command(capfd, "inspect", path, "--calib", data)
    assert (found.code, found.out) == (0, "")
    for text in ("w_0", "w_1", "w_3", "apoz", "left alone", "graph output 'gemm_1' keeps its shape", "3,461 weights"):
        assert text in found.err
    assert "--allow-resize NAME lets a graph input or output lose positions" in found.err
    as_json = command(capfd, "inspect", path, "--calib", data, "--json", "-q")
    values = json.loads(as_json.out)
    assert as_json.err == ""
    assert [group["size"] for group in values["groups"]] == [16, 8, 12]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_compare_shows_both_models(net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, data = net
    assert command(capfd, path, "--channels", "0.5", "--calib", data, "-q", *QUICK).code == 0
    after = tmp_path / "net.pruned.onnx"
    found = command(capfd, "compare", path, after, "--calib", data, *QUICK)
    assert (found.code, found.out) == (0, "")
    assert "latency" in found.err
    as_json = command(capfd, "compare", path, after, "--calib", data, "--json", "-q", *QUICK)
    values = json.loads(as_json.out)
    assert as_json.err == ""
    assert values["weights"]["before"] == 3461 > values["weights"]["after"]
    gated = command(capfd, "compare", path, after, "--calib", data, "--max-drop", "0", *QUICK)
    assert gated.code == 1
    assert "MISSED" in gated.err
    assert command(capfd, "compare", path, path, "--calib", data, "--max-drop", "0", *QUICK).code == 0


# -- errors ------------------------------------------------------------------------------------------------------


def test_a_traceback_is_shown_with_v_and_never_without(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = net
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:300])
    plain = command(capfd, broken, "--target", "0.5")
    assert (plain.code, plain.out) == (3, "")
    assert "Traceback" not in plain.err
    assert plain.err.startswith("error: ")
    verbose = command(capfd, broken, "--target", "0.5", "-v")
    assert verbose.code == 3
    assert "Traceback" in verbose.err
    assert verbose.err.endswith(plain.err)


def test_what_nobody_foresaw_is_a_message_too(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = net
    (tmp_path / "unforeseen.py").write_text(
        "def batches():\n    yield {'image': [[[[1.0] * 6] * 6] * 2]}\n    raise RecursionError('so deep')\n"
    )
    monkeypatch.chdir(tmp_path)
    found = command(capfd, path, "--target", "0.5", "--calib", "unforeseen:batches")
    assert found.code == 3
    assert "so deep" in found.err
    assert "Traceback" not in found.err


def test_an_unreachable_target_is_exit_1_and_writes_nothing(
    net: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, data = net
    found = command(capfd, path, "--target", "0.9999", "--calib", data, "--structural", "0")
    assert found.code == 1
    assert "0.9999 cannot be reached" in found.err
    assert "the most that can be reached is --target 0.9" in found.err
    assert "Traceback" not in found.err
    assert files(tmp_path) == {"net.onnx", "calib.npz"}


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    found = command(capfd, "--version")
    assert (found.code, found.err) == (0, "")
    assert graphprune.__version__ in found.out
    for arguments in (["--help"], ["-h"], ["prune", "--help"], ["inspect", "-h"], ["compare", "-h"]):
        found = command(capfd, *arguments)
        assert (found.code, found.err) == (0, "")
        assert "Usage: graphprune" in found.out
    assert "Exit codes" in command(capfd, "--help").out


# -- as a program ------------------------------------------------------------------------------------------------


def test_python_m_graphprune(net: tuple[Path, Path], tmp_path: Path) -> None:
    done = python_m(tmp_path, "net.onnx", "--target", "0.9", "--calib", "calib.npz", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"]["path"] == "net.pruned.onnx"
    assert "latency" in done.stderr
    failed = python_m(tmp_path, "none.onnx", "--target", "0.9")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "none.onnx" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_shipped_model_and_its_data(tmp_path: Path) -> None:
    models = ROOT / "models"
    out = tmp_path / "digits.onnx"
    done = python_m(
        tmp_path, models / "digits.onnx", "--target", "0.9", "--calib", models / "digits_calib.npz", "-o", out, *QUICK
    )
    assert done.returncode == 0, done.stderr
    proto = onnx.load(out)
    nonzero = sum(int(np.count_nonzero(onnx.numpy_helper.to_array(t))) for t in proto.graph.initializer)
    original = onnx.load(models / "digits.onnx")
    assert 1 - nonzero / sum(onnx.numpy_helper.to_array(t).size for t in original.graph.initializer) >= 0.9


INTERRUPTED = """
import os, signal, time
import numpy as np

def batches():
    for index in range({after}):
        yield {{"image": np.full((1, 2, 6, 6), index, np.float32)}}
    os.kill(os.getpid(), signal.SIGINT)  # what Ctrl-C does
    time.sleep(30)
    yield {{"image": np.zeros((1, 2, 6, 6), np.float32)}}
"""


@pytest.mark.parametrize("after", [0, 20])
def test_ctrl_c_leaves_nothing_behind(after: int, net: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(INTERRUPTED.format(after=after))
    out = tmp_path / "out"
    out.mkdir()
    (out / "net.onnx").write_text("what was there before")
    done = python_m(tmp_path, "net.onnx", "--target", "0.9", "--calib", "slow:batches", "-o", "out/net.onnx")
    assert done.returncode == 130
    assert done.stdout == ""
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(out) == {"net.onnx"}
    assert (out / "net.onnx").read_text() == "what was there before"
    assert files(tmp_path) - {"__pycache__"} == {"net.onnx", "calib.npz", "slow.py", "out"}


def test_ctrl_c_while_the_libraries_are_loaded(tmp_path: Path) -> None:
    # The name of a library that is imported early, in the folder that comes first.
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    done = python_m(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; nothing was written\n"


def test_ctrl_c_while_the_files_are_put_in_place(net: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import os, signal\nimport numpy as np\n\n"
        "def batches():\n    return [{'image': np.ones((4, 2, 6, 6), np.float32)}]\n\n"
        "def interrupt(*arguments, move=os.replace):\n"
        "    move(*arguments)\n    os.kill(os.getpid(), signal.SIGINT)\n\n"
        "os.replace = interrupt\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    done = python_m(tmp_path, "net.onnx", "--target", "0.5", "--calib", "late:batches", "-o", "out/a.onnx", *QUICK)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
    assert "nothing was written" not in done.stderr
    assert "Traceback" not in done.stderr
    assert files(out) == {"a.onnx", "a.json"}
    sha256 = hashlib.sha256((out / "a.onnx").read_bytes()).hexdigest()
    assert json.loads((out / "a.json").read_text())["output"]["sha256"] == sha256


def test_ctrl_c_after_the_end_changes_no_exit_code(net: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "last.py").write_text(
        "import os, signal\nimport numpy as np\n\n"
        "class Last:\n    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):\n"
        "        kill(pid, number)\n\n"
        "last = Last()\n\n"
        "def batches():\n    return [{'image': np.ones((4, 2, 6, 6), np.float32)}]\n"
    )
    done = python_m(tmp_path, "net.onnx", "--target", "0.5", "--calib", "last:batches", "-q", *QUICK)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_the_model_is_written_leaves_no_half_written_file(tmp_path: Path) -> None:
    model = small.network()
    # Weights that nobody prunes make the file large: the signal comes while it is written.
    big = onnx.numpy_helper.from_array(np.zeros((16, 2**20), np.float32), "big")
    model.graph.initializer.append(big)
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["big"], ["most"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("most", onnx.TensorProto.FLOAT, [1, 1]))
    onnx.save(model, tmp_path / "big.onnx")
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "import sys; from graphprune.ir.model import load, save; m = load('big.onnx').proto\n"
        "print('ready', flush=True)\n"
        "while True: save(m, 'out/big.onnx', external=len(sys.argv) > 1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=FIXED, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while not files(out):
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    left = files(out)
    assert left <= {"big.onnx"}, "a temporary folder was left"
    if left:
        assert (out / "big.onnx").read_bytes() == model.SerializeToString(deterministic=True)
