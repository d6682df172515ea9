"""The wheel holds the package, all of it, and nothing beside it; imports point one way."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"graphprune": ROOT / "graphprune", "graphprune.passes": ROOT / "passes", "graphprune.calib": ROOT / "calib"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the tree, by its full name; links are not followed."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if not any((folder / Path(*parts[:depth])).is_symlink() for depth in range(1, len(parts))):
                names = parts[:-1] if parts[-1] == "__init__" else parts
                yield ".".join((package, *names)), path


MODULES = dict(modules())


# -- the wheel ---------------------------------------------------------------------------------------------------


@pytest.fixture(name="wheel", scope="module")
def _wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    version = importlib.metadata.version("setuptools") if importlib.util.find_spec("setuptools") else "0"
    if importlib.util.find_spec("build") is None or int(version.split(".")[0]) < 77:
        pytest.skip("needs build, and setuptools 77 or newer, to build the wheel")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    for name in ("graphprune", "passes", "calib", "models", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.npz")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tree / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (tree / "dist").glob("*.whl")
    return zipfile.Path(made)


def files(wheel: zipfile.Path) -> set[str]:
    with zipfile.ZipFile(str(wheel.root.filename)) as archive:
        return set(archive.namelist())


def test_the_top_level_is_graphprune_alone(wheel: zipfile.Path) -> None:
    top = {name.split("/")[0] for name in files(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == {"graphprune"}
    assert len(top) == 2


def test_every_module_is_in_it_and_no_other(wheel: zipfile.Path) -> None:
    expected = set()
    for name, path in MODULES.items():
        place = name.replace(".", "/")
        expected.add(f"{place}/__init__.py" if path.name == "__init__.py" else f"{place}.py")
    found = {name for name in files(wheel) if name.endswith(".py")}
    assert found == expected
    assert len(expected) > 70
    assert "graphprune/py.typed" in files(wheel)


def test_the_files_in_it_are_those_of_the_tree(wheel: zipfile.Path) -> None:
    for name, path in MODULES.items():
        place = name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        assert (wheel / place).read_bytes() == path.read_bytes()


def test_the_command_and_the_licence_are_in_it(wheel: zipfile.Path) -> None:
    (info,) = {name.split("/")[0] for name in files(wheel) if ".dist-info" in name}
    points = configparser.ConfigParser()
    points.read_string((wheel / info / "entry_points.txt").read_text())
    assert dict(points["console_scripts"]) == {"graphprune": "graphprune.__main__:main"}
    assert (wheel / info / "licenses" / "LICENSE").exists()
    metadata = (wheel / info / "METADATA").read_text()
    assert "Requires-Python: >=3.10" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    for extra in ("torch", "images", "dev"):
        assert f"Provides-Extra: {extra}" in metadata
    assert not any(line.startswith("Requires-Dist: torch") and "extra" not in line for line in metadata.splitlines())


def test_the_installed_files_work_without_the_tree(wheel: zipfile.Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(str(wheel.root.filename)) as archive:
        archive.extractall(tmp_path)
    code = "import graphprune, graphprune.cli, graphprune.passes.trim as t; print(t.__file__, graphprune.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place, version = done.stdout.split()
    assert Path(place) == tmp_path / "graphprune" / "passes" / "trim.py"
    (info,) = {name.split("/")[0] for name in files(wheel) if ".dist-info" in name}
    assert info == f"graphprune-{version}.dist-info"


# -- names and imports -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["passes", "calib"])
def test_folders_refuse_to_be_packages_of_their_own(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"graphprune.{name}" in done.stderr.splitlines()[-1]
    assert "ImportError" in done.stderr


def imported(name: str, path: Path) -> Iterator[str]:
    """Full names of what a module imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def layer(name: str) -> str:
    """The part of the house that a module is: a package, or a module of the top level."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "graphprune"


ORDER = [
    {"errors", "threads", "watch"},
    {"entries", "imports"},
    {"values"},
    {"ir", "recipe"},
    {"calib", "verify"},
    {"passes", "ledger"},
    {"finetune", "recovery"},
    {"analysis", "ranks"},
    {"planning", "speed", "training"},
    {"building"},
    {"search"},
    {"pipeline"},
    {"attempts", "kept"},
    {"rounds"},
    {"notes"},
    {"record"},
    {"api", "comparison", "output", "rules"},
    {"figures"},
    {"ci", "options", "progress", "report", "graphprune"},
    {"cli"},
    {"__main__"},
]
"""DESIGN section 1; what stands side by side knows nothing of each other. ``recipe`` asks nothing of ``ir``."""
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def test_the_order_names_every_part() -> None:
    assert {layer(name) for name in MODULES} == set(RANK)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    for target in imported(name, MODULES[name]):
        if target.split(".")[0] != "graphprune" or layer(target) == layer(name):
            continue
        assert RANK[layer(target)] < RANK[layer(name)], f"{name} imports {target}"


@pytest.mark.parametrize("name", [name for name in MODULES if layer(name) == "passes"])
def test_passes_never_import_calibration(name: str) -> None:
    assert not [target for target in imported(name, MODULES[name]) if layer(target) == "calib"]


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("torch", {"finetune"}),
        ("onnx_graphsurgeon", {"ir"}),
        ("click", {"cli", "options"}),
        ("rich", {"cli", "progress", "report"}),
    ],
)
def test_libraries_stay_in_their_rooms(library: str, homes: set[str]) -> None:
    users = {
        layer(name) for name, path in MODULES.items() if library in {t.split(".")[0] for t in imported(name, path)}
    }
    assert users == homes


def test_the_package_does_not_need_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import graphprune.cli; print('ok')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))
