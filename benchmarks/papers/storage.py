"""Hoefler et al. 2021, Sparsity in deep learning: what sparse matrices take to store, and what a weight is worth."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import onnx
import tables
from data import DATA, require
from pruning import Bench, Run

from graphprune.ir.encoding.forms import occupied, to_bitmap, to_gaps
from graphprune.ir.tensors import float_tensors, replace_values
from graphprune.passes.encode import encode

MODEL, WEIGHT, LAYER = "lenet5_mnist", (500, 800), "fc1 of the zoo's LeNet-5"
SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
VALUE_BITS = 32


def bits(number: int) -> int:
    """Bits that tell so many things apart."""
    return max(int(number) - 1, 1).bit_length()


def formulas(shape: tuple[int, int], entries: int) -> dict[str, float]:
    """Bits of the places of the entries, by the survey's schemes: what information takes, not what bytes can hold.

    A gap of more than g bits hold takes a zero that is stored; the number is for entries spread evenly at random, with
    the g that is best.
    """
    rows, columns = shape
    places = rows * columns
    return {
        "bitmap": places,
        "gaps": _gap_bits(places, entries),
        "CSR": rows * bits(entries + 1) + entries * bits(columns),
        "coordinates": entries * bits(places),
    }


def _gap_bits(places: int, entries: int) -> float:
    """Bits that gaps take beside the entries' values: those of the gaps, and of stored zeros with their values."""
    left_out = 1 - entries / places
    found = []
    for width in range(1, VALUE_BITS):
        reach = 2.0**width
        # The gap to the next entry is geometric: beyond every `reach` zeros in a row a zero is stored.
        extra = 0.0 if left_out == 0 else left_out**reach / (1 - left_out**reach)
        found.append(entries * ((1 + extra) * width + extra * VALUE_BITS))
    return min(found)


def _stored_bitmap(matrix: np.ndarray) -> int:
    return to_bitmap(occupied(matrix.ravel()), matrix.size).nbytes + _values(matrix)


def _stored_gaps(matrix: np.ndarray) -> int:
    gaps = to_gaps(occupied(matrix.ravel()))
    return gaps.nbytes + len(gaps) * matrix.itemsize


def _stored_rows(matrix: np.ndarray) -> int:
    columns = np.nonzero(matrix)[1].astype(np.min_scalar_type(matrix.shape[1] - 1))
    starts = np.append(0, np.cumsum(np.count_nonzero(matrix, axis=1)))
    return columns.nbytes + starts.astype(np.min_scalar_type(starts[-1])).nbytes + _values(matrix)


def _stored_coordinates(matrix: np.ndarray) -> int:
    places = np.flatnonzero(matrix).astype(np.min_scalar_type(matrix.size - 1))
    return places.nbytes + _values(matrix)


def _values(matrix: np.ndarray) -> int:
    return int(np.count_nonzero(matrix)) * matrix.itemsize


STORED: dict[str, Callable[[np.ndarray], int]] = {
    "bitmap": _stored_bitmap,
    "gaps": _stored_gaps,
    "CSR": _stored_rows,
    "coordinates": _stored_coordinates,
}
"""Bytes in whole numpy types, values included; bitmap and gaps are those of graphprune's own files."""


def storage(bench: Bench) -> None:
    """Print the bytes of one matrix against its sparsity, and those of the file that graphprune writes."""
    proto = onnx.load(require(DATA.parent / "models" / f"{MODEL}.onnx"))
    name = next(name for name, tensor in float_tensors(proto).items() if tuple(tensor.dims) == WEIGHT)
    weight = onnx.numpy_helper.to_array(float_tensors(proto)[name])
    columns = ["zeros", *(f"{form}: survey / ours" for form in STORED), "smallest", "in graphprune's file", "form"]
    tables.heading(f"Storage of {LAYER}, {weight.size:,} float32 by magnitude: bytes over the dense ones", columns)
    for sparsity in SPARSITIES[:: 4 if bench.quick else 1]:
        matrix = weight.copy()
        smallest = np.argsort(np.abs(weight), axis=None, kind="stable")[: round(sparsity * weight.size)]
        matrix.ravel()[smallest] = 0
        entries = int(np.count_nonzero(matrix))
        wanted = {
            form: (found + entries * VALUE_BITS) / (matrix.size * VALUE_BITS)
            for form, found in formulas(WEIGHT, entries).items()
        }
        ours = {form: count(matrix) / matrix.nbytes for form, count in STORED.items()}
        cells = [f"{wanted[form]:.4f} / {ours[form]:.4f}" for form in STORED]
        best = min({**ours, "dense": 1.0}.items(), key=lambda item: item[1])[0]
        tables.row((tables.share(sparsity), *cells, best, *_in_file(proto, name, matrix)))


def _in_file(proto: onnx.ModelProto, name: str, matrix: np.ndarray) -> tuple[str, str]:
    """Bytes of the weight as `--encode auto` writes it, decoder included, over the dense ones; and the form."""
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    replace_values(float_tensors(changed)[name], matrix)
    _, encodings = encode(changed, "auto")
    found = next(found for found in encodings if found.tensor == name)
    return f"{found.after / found.before:.4f}", found.form


def efficiency(bench: Bench) -> None:
    """Print, for every run that was kept, the correct answers of a hundred test images per thousand weights left."""
    if bench.folder is None or not (bench.folder / "runs.jsonl").is_file():
        raise SystemExit("papers: efficiency is of the runs of other tables: run them with --keep FOLDER first")
    columns = (
        "paper",
        "network",
        "compression",
        "seed",
        "error",
        "weights left",
        "% correct per 1,000 weights",
        "dense",
    )
    tables.heading("Parameter efficiency of the runs", columns)
    runs = [Run(**json.loads(line)) for line in (bench.folder / "runs.jsonl").read_text().splitlines()]
    # A run that was repeated counts as it was the last time.
    for run in {(run.table, run.network, run.seed, round(run.compression, 1)): run for run in runs}.values():
        found = [f"{(100 - wrong) / count * 1000:.3g}" for wrong, count in _before_and_after(run)[::-1]]
        cells = (tables.times(run.compression), run.seed, tables.percent(run.error), f"{run.nonzero:,}", *found)
        tables.row((run.table, run.network, *cells))


def _before_and_after(run: Run) -> tuple[tuple[float, int], tuple[float, int]]:
    return (run.dense_error, run.weights), (run.error, run.nonzero)


TABLES = {"storage": storage, "efficiency": efficiency}
