"""What the user asked for, validated once."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from graphprune.errors import RecipeError
from graphprune.values import demand, plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """How to prune a model.

    Attributes
    ----------
    target : float or None
        Fraction of all float weights of the original that must be gone, removed or zero, in [0, 1).
    channels : float or None
        Fraction of every group's units to remove, in [0, 1); alone it is a purely structural run.
    macs : float or None
        Fraction of the original's multiply-accumulates that removing units must save, in [0, 1); zeros save none, and
        come on top only as `target` asks for them.
    speedup : float or None
        Latency before over after that removing units must reach, above 1 and at most 1000; zeros come on top of it only
        as `target` asks for them.
    structural : float or "auto"
        Share of `target` to be met by removing units, in [0, 1]: 1 is removal only, 0 zeros only. ``"auto"`` removes
        the units that the criterion's rule names, as far as the outputs bear it.
    criterion : str
        One of `values.CRITERIA`: how units are ordered. ``"auto"`` takes for every group the order of least predicted
        error.
    sparsifier : str
        One of `values.SPARSIFIERS`: how the weights to zero are chosen where kept weights may change.
    align : int, "auto" or "off"
        What the number of channels that convolutions keep is a multiple of, from 1 to 1024: ``"auto"`` takes what ONNX
        Runtime's kernels on this machine are fast at, ``"off"`` any number.
    pattern : str or None
        Where zeros may be: ``"2:4"`` keeps two of every four input channels, ``"16x1"`` zeros blocks of 16 inputs by 1
        output. Anywhere by default.
    pack : str
        One of `values.PACKINGS`: ``"auto"`` lets groups of outputs share the inputs that they keep, in layers that a
        product without zeros makes faster, and stores those layers without zeros.
    recover : bool
        Whether kept weights may change to repair what a removal did; where not, they stay bit-identical.
    finetune : str or None
        Who trains what is left: ``module:function``, which takes a `graphprune.finetune.GraphModule` and trains it in
        place, or ``"distill"``, the original, from the calibration inputs.
    rounds : int
        How many times it is pruned and trained, from 1 to 1000; every round leaves the same share of the weights.
    epochs : int or None
        Of ``"distill"``, from 1 to 100,000; 30 where not given.
    encode : str
        One of `values.ENCODINGS`: how weights are stored in the file. ``"auto"`` stores sparse ones by their entries
        alone, to the last bit the same; ``"fp16"`` rounds what it stores to float16.
    max_latency_ratio, max_drop : float or None
        Gates on latency after over before (above 0), and on the drop of fidelity (in [0, 1]). `max_drop` without
        `target`, `channels`, `macs`, `speedup` and `pattern` asks for the largest sparsity that holds it.
    min_speedup : float or None
        Gate on latency before over after (above 0): 1.2 asks for a model that is 1.2 times as fast.
    metric : str or None
        ``module:function`` that takes an ``onnxruntime.InferenceSession`` and returns a number, the higher the better.
        The gate `max_drop` is then on the metric before minus after, and may be above 1.
    allow_resize : tuple of str
        Graph inputs and outputs that may lose positions; all others keep their shapes. ``IN=OUT`` frees a state, an
        input that the caller feeds back from an output: both lose the same positions.
    custom_ops : tuple of str
        Shared libraries of ONNX Runtime custom operators, by path; every session registers them.
    threads : int
        Threads of the latency runs, from 1 to 1024.
    batch : int or None
        Samples in one call of the latency runs, from 1 to 65,536; where not given one, or what the model fixes.
    provider : str
        Execution provider of ONNX Runtime that the latency runs and the metric use; operators that it lacks run on
        the CPU.
    runs : int
        Latency runs of each model, from 2 to 1,000,000; up to eight times as many where they leave open which model is
        faster.
    seed : int
        Of everything random, at least 0.

    Raises
    ------
    RecipeError
        When a value is out of range.
    """

    target: float | None = None
    channels: float | None = None
    macs: float | None = None
    speedup: float | None = None
    structural: float | Literal["auto"] = "auto"
    criterion: str = "auto"
    sparsifier: str = "admm"
    align: int | Literal["auto", "off"] = "auto"
    pattern: str | None = None
    pack: str = "off"
    recover: bool = True
    finetune: str | None = None
    rounds: int = 1
    epochs: int | None = None
    encode: str = "off"
    max_latency_ratio: float | None = None
    max_drop: float | None = None
    min_speedup: float | None = None
    metric: str | None = None
    allow_resize: tuple[str, ...] = ()
    custom_ops: tuple[str, ...] = ()
    threads: int = 1
    batch: int | None = None
    provider: str = "CPUExecutionProvider"
    runs: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_drop is None and not self._asks:
            raise RecipeError(
                "nothing is asked for", hint="give --target, --channels, --macs, --speedup, --pattern or --max-drop"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            demand(field.name, value)
            object.__setattr__(self, field.name, plain(value))
        self._demand_drop()
        if self.pattern is not None and "x" in self.pattern and self.target is None:
            raise RecipeError(
                "blocks leave open how many weights become zero", where="--pattern", hint="give --target as well"
            )
        if self.pack != "off":
            self._demand_packable()
        self._demand_trainable()
        if self.encode == "fp16" and not self.recover:
            raise RecipeError(
                "--no-recover keeps weights bit-identical, and --encode fp16 rounds them", hint="give --encode auto"
            )
        if self.structural != "auto" and self.target is None:
            raise RecipeError("--structural is a share of --target", hint="give --target as well")
        structural = None if self.structural == "auto" else self.structural
        given = [name for name, value in {**self._removals, "--structural": structural}.items() if value is not None]
        if len(given) > 1:
            raise RecipeError(f"{given[0]} and {given[1]} both say how much to remove", hint="give one of them")

    @property
    def searches(self) -> bool:
        """Whether `max_drop` alone is asked for: the largest sparsity that holds it."""
        return self.max_drop is not None and not self._asks

    @property
    def by_rule(self) -> bool:
        """Whether it leaves open how many units go."""
        return self.structural == "auto" and all(value is None for value in self._removals.values())

    @property
    def _removals(self) -> dict[str, float | None]:
        """What says how many units go, by option."""
        return {"--channels": self.channels, "--macs": self.macs, "--speedup": self.speedup}

    @property
    def _asks(self) -> bool:
        """Whether it says how much is to go."""
        return any(value is not None for value in (self.target, *self._removals.values(), self.pattern))

    def _demand_packable(self) -> None:
        """Demand that there are zeros to pack, and that nothing else says where they are."""
        if self.pattern is not None:
            raise RecipeError(
                "--pack and --pattern both say where zeros may be",
                where=f"--pack {self.pack}, --pattern {self.pattern}",
                hint="give one of them",
            )
        if self.target is None and not self.searches:
            raise RecipeError(
                "--pack packs zeros, and no zeros are asked for",
                where=f"--pack {self.pack}",
                hint="give --target as well, or --max-drop alone",
            )

    def _demand_trainable(self) -> None:
        """Demand that what is asked of a training can be done, and that there is one."""
        if self.epochs is not None and self.finetune != "distill":
            raise RecipeError("--epochs is how long the original teaches", hint="give --finetune distill as well")
        if self.finetune is not None and self.searches:
            raise RecipeError(
                "--max-drop alone looks for a sparsity that needs no training, and --finetune trains",
                where=f"--finetune {self.finetune}",
                hint="give --target, --channels, --macs or --speedup as well",
            )
        if self.rounds == 1:
            return
        others = {"--speedup": self.speedup is not None, "--pack": self.pack != "off"}
        others["--allow-resize"] = bool(self.allow_resize)
        for option, given in others.items():
            if given:
                raise RecipeError(f"{option} is done at once, not in rounds", hint="give --rounds 1")

    def _demand_drop(self) -> None:
        """Demand that the largest drop is in the units of what it is on."""
        if self.max_drop is None or self.max_drop <= 1:
            return
        if self.metric is None:
            raise RecipeError(
                f"--max-drop must be from 0 to 1, not {self.max_drop!r}",
                where="--max-drop",
                why="it is a share of answers",
                hint="give the --metric that it is a drop of, or a share",
            )


def demand_recipe(recipe: object) -> None:
    """Demand that what was given is a recipe.

    Raises
    ------
    RecipeError
        When it is something else.
    """
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"the recipe must be a graphprune.Recipe, not a {type(recipe).__name__}",
            where="recipe",
            hint="give Recipe(target=0.9), for example",
        )


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a recipe from a TOML file.

    Parameters
    ----------
    path : path-like
        Keys are the attributes of `Recipe`.

    Returns
    -------
    dict
        Arguments for `Recipe`.

    Raises
    ------
    RecipeError
        When the file is missing, is not TOML, or holds a key that no recipe has.
    """
    values = read_toml(path)
    known = {field.name for field in fields(Recipe)}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"a recipe has no {key!r}", where=str(path), hint=f"it has {', '.join(sorted(known))}")
        demand(key, value)
    return values


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    RecipeError
        When the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError("the TOML file cannot be read", where=str(path), why=str(error)) from error
