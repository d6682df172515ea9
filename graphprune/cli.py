"""The command line: a thin click layer, no logic."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from rich.console import Console

import graphprune
from graphprune import options, ranks, report
from graphprune.api import as_model, inspect, prune
from graphprune.ci import STEP_SUMMARY, Files
from graphprune.comparison import check, compare
from graphprune.errors import GraphPruneError
from graphprune.figures import gate_text
from graphprune.ir.model import save
from graphprune.output import check_decoded, check_output, write
from graphprune.progress import progress_bar
from graphprune.recipe import Recipe, read_recipe
from graphprune.values import CRITERIA
from graphprune.verify.gate import Gate

INTERRUPTED = 130
DEFECT = 3


class DefaultGroup(click.Group):
    """A group whose default command is ``prune``: ``graphprune MODEL`` means ``graphprune prune MODEL``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``prune`` in front of anything that is no command and no option of the group."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["prune", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(graphprune.__version__, prog_name="graphprune")
def cli() -> None:
    """Prune trained ONNX models, with proof of what was done.

    graphprune MODEL.onnx --target 0.9 is short for graphprune prune MODEL.onnx --target 0.9.

    Exit codes: 0 done and every gate held; 1 a gate failed or the target cannot be reached; 2 usage; 3 the model or
    the calibration data cannot be used.
    """


def _load_recipe(ctx: click.Context, _: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        given = read_recipe(value)
        if "recover" in given:
            given["no_recover"] = not given.pop("recover")
        ctx.default_map = {**(ctx.default_map or {}), **given}
    return value


@cli.command("prune")
@click.argument("model", type=options.existing_file)
@options.pruning
@options.training
@options.resize
@options.calibration
@options.custom_ops
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Default MODEL.pruned.onnx.")
@click.option("--report", "report_path", type=click.Path(dir_okay=False), help="Ledger; default MODEL.pruned.json.")
@click.option(
    "--recipe",
    "recipe_path",
    type=options.existing_file,
    is_eager=True,
    callback=_load_recipe,
    help="TOML file with defaults for these options.",
)
@options.gates
@options.ci
@options.latency
@options.seed
@options.json
@options.verbosity
def prune_command(
    model: str,
    calib: str | None,
    output: str | None,
    report_path: str | None,
    recipe_path: str | None,
    junit: str | None,
    summary: str | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Prune MODEL and write the smaller model and its ledger."""
    verbose = given.pop("verbose")
    recipe = Recipe(
        recover=not given.pop("no_recover"),
        structural=_share(given.pop("structural")),
        align=_whole(given.pop("align")),
        **given,
    )
    loaded = as_model(model)
    inputs = [path for path in (calib, recipe_path) if path]
    paths = check_output(loaded, output, report_path, inputs)
    files = Files(f"graphprune {model}", junit, summary, [model, *loaded.data_files, *inputs, *paths])
    with files.errors(), progress_bar(quiet) as progress:
        pruned, ledger = prune(loaded, recipe, calib, progress=progress)
        if ranks.rank() > 0:  # the first process writes
            _exit_by(ledger.gates, quiet=True)
        ledger = write(pruned, ledger, loaded, *paths)
    files.write(ledger)
    if as_json:
        click.echo(ledger.to_json(), nl=False)
    if not quiet:
        report.print_ledger(ledger, Console(stderr=True), verbose=verbose)
    _exit_by(ledger.gates)


@cli.command("inspect")
@click.argument("model", type=options.existing_file)
@options.calibration
@options.custom_ops
@click.option(
    "--criterion",
    default="auto",
    show_default=True,
    metavar="C",
    help=f"What orders the units that go: {', '.join(CRITERIA)}.",
)
@options.resize
@options.seed
@options.json
@options.verbosity
def inspect_command(model: str, calib: str | None, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Show MODEL's groups and their scores, and what is frozen and why; change nothing."""
    recipe = Recipe(target=0.0, recover=False, **given)
    with progress_bar(quiet) as progress:
        inspection = inspect(as_model(model), recipe, calib, progress=progress)
    if as_json:
        click.echo(report.to_json(inspection), nl=False)
    if not quiet:
        report.print_inspection(inspection, Console(stderr=True), verbose=verbose)


@cli.command("compare")
@click.argument("before", type=options.existing_file)
@click.argument("after", type=options.existing_file)
@options.calibration
@options.custom_ops
@options.gates
@options.latency
@options.seed
@options.json
@options.verbosity
def compare_command(
    before: str, after: str, calib: str | None, as_json: bool, quiet: bool, verbose: bool, **given: Any
) -> None:
    """Compare two models: paired latency, outputs, weights."""
    recipe = Recipe(target=0.0, **given)
    comparison = compare(as_model(before), as_model(after), recipe, calib)
    if as_json:
        click.echo(report.to_json(comparison), nl=False)
    if not quiet:
        report.print_comparison(comparison, Console(stderr=True), verbose=verbose)
    _exit_by(comparison.gates)


@cli.command("decode")
@click.argument("model", type=options.existing_file)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Default MODEL.decoded.onnx.")
@options.verbosity
def decode_command(model: str, output: str | None, quiet: bool, verbose: bool) -> None:
    """Write MODEL, whose weights --encode stored, with all its weights dense again."""
    loaded = as_model(model)
    path = check_decoded(loaded, output)
    size = save(loaded.proto, path, external=loaded.external)
    if not quiet:
        if not loaded.encoded:
            click.echo(f"{model} is not encoded: it is written as it is", err=True)
        click.echo(f"wrote {path}: {loaded.file_bytes:,} bytes -> {size:,}", err=True)


@cli.command("check")
@click.argument("before", type=options.existing_file)
@click.argument("after", type=options.existing_file)
@options.calibration
@options.custom_ops
@options.gates
@options.ci
@options.latency
@options.seed
@options.json
@options.verbosity
def check_command(
    before: str,
    after: str,
    calib: str | None,
    junit: str | None,
    summary: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """Gate AFTER against BEFORE: exit 1 when a limit is missed, or, where none is given, when AFTER is slower.

    In a GitHub workflow the summary goes to the step's own ($GITHUB_STEP_SUMMARY) where --summary names no other file.
    """
    summary = summary or os.environ.get(STEP_SUMMARY) or None
    files = Files(
        f"graphprune check {before} {after}", junit, summary, [path for path in (before, after, calib) if path]
    )
    with files.errors():
        found = check(as_model(before), as_model(after), Recipe(target=0.0, **given), calib)
    files.write(found)
    if as_json:
        click.echo(report.to_json(found), nl=False)
    if not quiet:
        report.print_comparison(found, Console(stderr=True), verbose=verbose)
    _exit_by(found.gates)


def _exit_by(gates: Sequence[Gate], *, quiet: bool = False) -> NoReturn:
    """Exit with 1 when a gate was missed, and say so even where nothing else is printed."""
    missed = [gate for gate in gates if not gate.ok]
    for gate in missed if not quiet else ():
        click.echo(f"error: gate {gate.name} was missed: {gate_text(gate)} does not hold", err=True)
    sys.exit(1 if missed else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and turn every error into a message and an exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in given or "--verbose" in given
    try:
        code = cli.main(given, prog_name="graphprune", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; no file was left half-written", err=True)
        code = INTERRUPTED
    except GraphPruneError as error:
        _show(error, f"error: {error}", verbose)
        code = error.exit_code
    except Exception as error:  # whatever is left is a defect, and the user still gets a message, not a traceback
        _show(
            error, f"error: graphprune failed: {type(error).__name__}: {error}\n  what to do: run it with -v", verbose
        )
        code = DEFECT
    sys.exit(code)


def _show(error: Exception, message: str, verbose: bool) -> None:
    if verbose:
        click.echo("".join(traceback.format_exception(error)), err=True)
    click.echo(message, err=True)


def _share(value: Any) -> Any:
    """Return ``--structural`` as a number where it is one."""
    try:
        return float(value)
    except ValueError:
        return value


def _whole(value: Any) -> Any:
    """Return ``--align`` as a number where it is one."""
    return int(value) if str(value).isdecimal() else value
