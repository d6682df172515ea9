"""How close a model's outputs are to the original's, streaming over batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from graphprune.errors import ModelError
from graphprune.ir.coupling.resizing import SAME, Resized
from graphprune.ir.session import Feeds, ModelLike, open_session, run_session


class RelativeError(NamedTuple):
    """The difference of two arrays, each figure infinite when one holds NaN or infinity and the other not the same.

    Attributes
    ----------
    max_abs : float
        Largest absolute difference.
    max_rel : float
        `max_abs` over the largest magnitude in the reference; the ratio of single elements says little near zero.
    relative_l2 : float
        Euclidean norm of the difference over the norm of the reference.
    """

    max_abs: float
    max_rel: float
    relative_l2: float


@dataclass(frozen=True)
class OutputFidelity:
    """One output of two models.

    Attributes
    ----------
    name : str
    relative_l2 : float
        Norm of the difference over the norm of the original, over all batches; infinite when the original is all
        zero and the other is not.
    max_abs : float
        Largest absolute difference.
    cosine : float
        Cosine similarity, in [-1, 1].
    top1_agreement : float or None
        Share of samples with the same largest class, in [0, 1]; None where the output holds no classes, that is,
        is not [N, K] with K > 1 (axes of size 1 may follow), or has the shape of an input, as a reconstruction has.
    nonfinite : int
        Values that are NaN or infinite in the pruned output alone. The other figures leave out what is not finite
        in either.
    """

    name: str
    relative_l2: float
    max_abs: float
    cosine: float
    top1_agreement: float | None
    nonfinite: int


@dataclass(frozen=True)
class Fidelity:
    """All outputs of two models on the same inputs.

    Attributes
    ----------
    outputs : tuple of OutputFidelity
    batches : int
        Batches compared.
    relative_l2 : float
        As for one output, all outputs taken as one vector.
    top1_agreement : float or None
        Over all outputs that hold classes.
    nonfinite : int
        Over all outputs.
    """

    outputs: tuple[OutputFidelity, ...]
    batches: int
    relative_l2: float
    top1_agreement: float | None
    nonfinite: int


def relative_error(reference: npt.ArrayLike, other: npt.ArrayLike) -> RelativeError:
    """Compare an array with a reference of the same shape, in double precision.

    Parameters
    ----------
    reference, other : array-like

    Returns
    -------
    RelativeError

    Raises
    ------
    ModelError
        When the shapes differ.
    """
    a, b = np.asarray(reference), np.asarray(other)
    if a.shape != b.shape:
        raise _different("shape", "the arrays compared", list(a.shape), list(b.shape))
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return RelativeError(math.inf, math.inf, math.inf)
    a, b = a[finite], b[finite]
    difference = np.abs(a - b)
    max_abs = float(difference.max(initial=0.0))
    max_rel = _ratio(max_abs, float(np.abs(a).max(initial=0.0)))
    return RelativeError(max_abs, max_rel, _ratio(float(np.linalg.norm(difference)), float(np.linalg.norm(a))))


def compare_outputs(
    before: ModelLike,
    after: ModelLike,
    batches: Iterable[Feeds],
    *,
    change: Resized = SAME,
    threads: int = 0,
    custom_ops: Sequence[str] = (),
) -> Fidelity:
    """Run two models on the same batches and compare their outputs.

    Parameters
    ----------
    before, after : path-like, bytes or onnx.ModelProto
    batches : iterable of feeds
        Inputs of ``before``; walked once, and no outputs are kept.
    change : Resized, optional
        What ``after`` takes and gives of the inputs and outputs of ``before``; all by default.
    threads : int, default 0
        Threads inside one operator; 0 leaves the number to ONNX Runtime.
    custom_ops : sequence of str, default ()
        Shared libraries of custom operators, by path.

    Returns
    -------
    Fidelity

    Raises
    ------
    ModelError
        When ONNX Runtime cannot load or run one of them, or their outputs differ in names, types or shapes.
    """
    sessions = [open_session(model, threads=threads, custom_ops=custom_ops) for model in (before, after)]
    names = _common_outputs(*sessions)
    sums = [_Sums(name) for name in names]
    count = 0
    for feeds in batches:
        cut = change.cut_feeds(feeds)
        inputs = {value.shape for value in cut.values()}
        results = [
            change.cut_outputs(names, run_session(sessions[0], feeds, names)),
            run_session(sessions[1], cut, names),
        ]
        for total, a, b in zip(sums, *results, strict=True):
            total.add(np.asarray(a), np.asarray(b), inputs)
        count += 1
    samples = sum(total.samples for total in sums)
    return Fidelity(
        outputs=tuple(total.result() for total in sums),
        batches=count,
        relative_l2=_ratio(
            math.sqrt(sum(total.difference for total in sums)), math.sqrt(sum(total.reference for total in sums))
        ),
        top1_agreement=sum(total.agreed for total in sums) / samples if samples else None,
        nonfinite=sum(total.nonfinite for total in sums),
    )


@dataclass
class _Sums:
    """What one output's figures are made of; squares are summed in double precision."""

    name: str
    difference: float = 0.0
    reference: float = 0.0
    other: float = 0.0
    product: float = 0.0
    max_abs: float = 0.0
    agreed: int = 0
    samples: int = 0
    nonfinite: int = 0

    def add(self, a: npt.NDArray[Any], b: npt.NDArray[Any], inputs: set[tuple[int, ...]]) -> None:
        where = f"output {self.name!r}"
        if a.shape != b.shape:
            raise _different("shape", where, list(a.shape), list(b.shape))
        if a.dtype.kind not in "fiub":
            raise ModelError(
                "an output cannot be compared",
                where=where,
                why=f"it holds {a.dtype}, no numbers",
                hint="export the model without this output",
            )
        if a.dtype.kind == "f" and a.shape not in inputs:
            self._count_top1(a, b)
        a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            self.nonfinite += int((np.isfinite(a) & ~np.isfinite(b)).sum())
            a, b = a[finite], b[finite]
        difference = a - b
        self.difference += float(difference @ difference)
        self.reference += float(a @ a)
        self.other += float(b @ b)
        self.product += float(a @ b)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))

    def result(self) -> OutputFidelity:
        norms = math.sqrt(self.reference * self.other)
        cosine = self.product / norms if norms else float(self.reference == self.other)
        return OutputFidelity(
            name=self.name,
            relative_l2=_ratio(math.sqrt(self.difference), math.sqrt(self.reference)),
            max_abs=self.max_abs,
            cosine=max(-1.0, min(1.0, cosine)),
            top1_agreement=self.agreed / self.samples if self.samples else None,
            nonfinite=self.nonfinite,
        )

    def _count_top1(self, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
        if a.ndim < 2 or a.shape[1] < 2 or any(size != 1 for size in a.shape[2:]):
            return
        a, b = a.reshape(a.shape[:2]), b.reshape(b.shape[:2])
        # NaN would win numpy's argmax: a sample without finite values never agrees.
        same = (a.argmax(axis=1) == b.argmax(axis=1)) & ~np.isnan(b).any(axis=1)
        self.agreed += int(same.sum())
        self.samples += len(same)


def _common_outputs(before: ort.InferenceSession, after: ort.InferenceSession) -> Sequence[str]:
    signatures = [{out.name: out.type for out in session.get_outputs()} for session in (before, after)]
    if signatures[0] != signatures[1]:
        raise _different("names and types", "the outputs", *signatures)
    return list(signatures[0])


def _different(what: str, where: str, before: object, after: object) -> ModelError:
    return ModelError(
        f"the two models' outputs differ in {what}",
        where=where,
        why=f"before: {before}, after: {after}",
        hint="compare a model with one pruned from it",
    )


def _ratio(error: float, scale: float) -> float:
    if not error:
        return 0.0
    return error / scale if scale else math.inf
