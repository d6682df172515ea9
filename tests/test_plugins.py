"""Rules of other packages: the example of docs/rules.md, installed as users do it, and what can go wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import onnx
import pytest
from onnx import helper

import graphprune.rules
from graphprune import PluginError
from graphprune.ir.rules import RULES, rule_for
from graphprune.ir.rules.plugins import GROUP, find_plugins, load_rule
from tests.nets import Net

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
CONTRIB = "ai.onnx.contrib"


def block(language: str) -> str:
    """The one fenced block of a language on the page."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture(name="plugin", scope="module")
def _plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the page, built and installed into a folder of its own, without a network."""
    version = importlib.metadata.version("setuptools") if importlib.util.find_spec("setuptools") else "0"
    if int(version.split(".")[0]) < 64:
        pytest.skip("needs setuptools 64 or newer to build the package")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    (source / "pyproject.toml").write_text(block("toml"), encoding="utf-8")
    (source / "example_rules.py").write_text(block("python"), encoding="utf-8")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def run(arguments: Sequence[str | Path], *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with more folders to import from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths)))}
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def inspected(model: Path, library: str, *paths: Path) -> tuple[dict[tuple[str, int], int], list[str]]:
    """Sizes of the groups by their first axis, and all reasons, as ``graphprune inspect`` tells them."""
    done = run(["-m", "graphprune", "inspect", model, "--custom-ops", library, "--json", "-q"], *paths)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    groups = {(group["axes"][0][0], group["axes"][0][1]): group["size"] for group in found["groups"]}
    return groups, [record["reason"] for record in found["reasons"]]


# -- the example of the page -------------------------------------------------------------------------------------


def through_neg_pos(folder: Path) -> tuple[Path, str]:
    """A saved network with NegPos between two convolutions, its shapes noted, and the library that holds it."""
    extensions = pytest.importorskip("onnxruntime_extensions", reason="needs onnxruntime-extensions' custom operators")
    net = Net()
    net.imports[CONTRIB] = 1
    hidden = net.conv(net.input([1, 3, 6, 6]), 8, 3)
    halves = net.nodes_of("NegPos", [hidden], [net.shapes[hidden]] * 2, domain=CONTRIB)
    model = net.build(net.conv(net.add(*halves, op="Sub"), 4, 3))
    model.graph.value_info.extend(helper.make_tensor_value_info(n, net.kinds[n], net.shapes[n]) for n in halves)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx", extensions.get_library_path()


def test_an_installed_rule_lets_inspect_and_prune_through_its_operator(plugin: Path, tmp_path: Path) -> None:
    path, library = through_neg_pos(tmp_path)
    groups, reasons = inspected(path, library)
    assert groups == {}
    assert f"no rule for operator {CONTRIB}.NegPos" in reasons
    groups, reasons = inspected(path, library, plugin)
    assert groups == {("w_0", 0): 8}
    assert f"no rule for operator {CONTRIB}.NegPos" not in reasons

    given = ["--custom-ops", library, "--channels", "0.5", "--no-recover", "--runs", "2"]
    done = run(["-m", "graphprune", path, *given], plugin)
    assert done.returncode == 0, done.stderr
    ledger = json.loads((tmp_path / "net.pruned.json").read_text())
    assert len(ledger["kept"]["w_0"]["0"]) == 4
    assert ledger["kept"]["w_0"]["0"] == ledger["kept"]["w_1"]["1"]
    assert ledger["equivalence"]["max_rel"] < 1e-4


REFERENCE = """
import sys
import numpy as np, onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from graphprune.ir.surgery import remove
from graphprune.verify.masking import masked
from tests.oracles import assert_close, coupled, random_removal, units_on

class Dense(OpRun):
    op_domain = "com.example"
    def _run(self, x, w, b, units=None):
        assert w.shape[0] == units, (w.shape, units)
        return (x @ w.T + b,)

def run(model):
    given = {"x_0": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)}
    return dict(zip(["y"], ReferenceEvaluator(model, new_ops=[Dense]).run(None, given)))

coupling = coupled(onnx.load(sys.argv[1]))
assert {len(group.units) for group in coupling.groups} == {6, 8}, coupling.groups
assert units_on(coupling, "w_0", 0) == units_on(coupling, "w_1", 1)
assert units_on(coupling, "w_1", 0) == units_on(coupling, "b_1", 0) == units_on(coupling, "w_2", 1)
for seed in range(3):
    removed = random_removal(coupling, 0.5, seed)
    pruned, kept = remove(coupling, removed)
    assert removed.any() and kept
    assert_close(run(masked(coupling, removed)), run(pruned))
    print(next(a.i for n in pruned.graph.node for a in n.attribute if a.name == "units"))
"""


def test_a_contraction_and_an_attribute_that_a_plugin_mends(plugin: Path, tmp_path: Path) -> None:
    net = Net()
    net.imports["com.example"] = 1
    hidden = net.relu(net.gemm(net.input(["N", 3]), 6))
    weights = [net.weight([8, 6]), net.vector(8)]
    made = net.node("Dense", [hidden, *weights], ["N", 8], domain="com.example", units=8)
    path = tmp_path / "net.onnx"
    model = net.build(net.gemm(net.relu(made), 2))
    model.graph.value_info.append(helper.make_tensor_value_info(made, net.kinds[made], net.shapes[made]))
    onnx.save(model, path)
    done = run(["-c", REFERENCE, path], plugin)
    assert done.returncode == 0, done.stderr
    assert all(0 < int(line) < 8 for line in done.stdout.split())


def test_the_page_names_what_there_is() -> None:
    assert all(hasattr(graphprune.rules, name) for name in graphprune.rules.__all__)
    named = set(re.findall(r"`coupler\.(\w+)", PAGE))
    assert len(named) > 10
    assert all(hasattr(graphprune.rules.Coupler, name) for name in named)
    assert all(hasattr(graphprune.rules.Edit, name) for name in re.findall(r"`edit\.(\w+)", PAGE))
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "(docs/rules.md)" in (ROOT / page).read_text(encoding="utf-8")


# -- what can go wrong -------------------------------------------------------------------------------------------


def declare(folder: Path, package: str, lines: str, code: str = "") -> None:
    """Install a package of one module by hand."""
    info = folder / f"{package}-2.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
    (folder / f"{package}.py").write_text(code)


@pytest.mark.parametrize(("package", "operator"), [("replaces_a_rule", "Conv"), ("says_it_again", "com.example.Twice")])
def test_a_rule_that_there_is_already_is_refused(
    package: str, operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(tmp_path, package, f"{operator} = {package}:RULE")
    if operator not in RULES:
        declare(tmp_path, "says_it_first", f"{operator} = says_it_first:RULE")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=operator) as caught:
        find_plugins(RULES)
    assert f"package {package} 2.1, entry point {GROUP}: {operator} = {package}:RULE" in str(caught.value)
    assert ("says_it_first" in str(caught.value)) == (operator not in RULES)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (None, "ModuleNotFoundError: No module named"),
        ("", "AttributeError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("RULE = {}", "it is {}"),
        ("from graphprune.rules import Rule\nRULE = Rule('Relu')", "it is Rule(couple='Relu'"),
        ("from graphprune.rules import Rule\nRULE = Rule(print, 1)", "it is Rule(couple=<built-in function print>"),
    ],
)
def test_what_is_no_rule_is_refused(
    code: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    module = f"no_rule_{request.node.callspec.indices['code']}"
    if code is not None:
        (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("com.example.Odd", f"{module}:RULE", GROUP)
    with pytest.raises(PluginError, match=r"com\.example\.Odd") as caught:
        load_rule(point)
    assert why in str(caught.value)
    assert f"{GROUP}: com.example.Odd = {module}:RULE" in str(caught.value)


def test_a_rule_is_imported_where_it_is_needed_and_not_before(tmp_path: Path) -> None:
    declare(tmp_path, "broken", "com.example.Odd = broken:RULE", "raise RuntimeError('half installed')")
    paths = []
    for op, domain in (("Odd", "com.example"), ("Relu", "")):
        net = Net()
        net.imports[domain] = 17
        made = net.node(op, [net.gemm(net.input(["N", 3]), 6)], domain=domain)
        paths.append(tmp_path / f"{op}.onnx")
        onnx.save(net.build(made), paths[-1])
    code = "import sys, onnx; from tests.oracles import coupled; print(coupled(onnx.load(sys.argv[1])).units)"
    assert run(["-c", code, paths[1]], tmp_path).returncode == 0
    done = run(["-c", code, paths[0]], tmp_path)
    assert "PluginError: the rule for com.example.Odd cannot be imported" in done.stderr
    assert "where: package broken 2.1, entry point graphprune.rules: com.example.Odd = broken:RULE" in done.stderr
    assert "why: RuntimeError: half installed" in done.stderr


def test_the_command_names_the_package_of_an_unusable_rule(tmp_path: Path) -> None:
    path, library = through_neg_pos(tmp_path)
    declare(tmp_path, "broken", f"{CONTRIB}.NegPos = broken:RULE", "RULE = None")
    done = run(["-m", "graphprune", "inspect", path, "--custom-ops", library], tmp_path)
    assert done.returncode == 2
    assert f"error: what a plugin declares as the rule for {CONTRIB}.NegPos is none" in done.stderr
    assert "package broken 2.1" in done.stderr


def test_built_in_rules_are_found_by_their_operators() -> None:
    assert rule_for("Conv") is RULES["Conv"]
    assert rule_for("com.example.Nobody") is None
    assert all(rule_for(op) is rule for op, rule in RULES.items())
