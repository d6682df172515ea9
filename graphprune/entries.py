"""What a ledger is made of: one record for each thing that a run found or did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class FileRecord:
    """A model file: where it is, and the hash of its bytes.

    No path for a model that only was in memory, and no hash either where it is too large for one message.
    """

    path: str | None
    sha256: str | None


@dataclass(frozen=True)
class CalibrationRecord:
    """What the statistics were taken on; ``real`` is False for random inputs."""

    source: str
    samples: int
    real: bool


@dataclass(frozen=True)
class WeightRecord:
    """Weights of the original and of the result (DESIGN section 6).

    Attributes
    ----------
    before, after : int
        Weights stored in the model, as float numbers or quantised.
    removed : int
        No longer in the file.
    zeroed : int
        In the file as 0, and not 0 in the original.
    nonzero : int
        Weights of the result that are not 0.
    sparsity : float
        1 - nonzero / before.
    nonzero_before : int
        Weights of the original that are not 0.
    """

    before: int
    after: int
    removed: int
    zeroed: int
    nonzero: int
    sparsity: float
    nonzero_before: int


@dataclass(frozen=True)
class Change:
    """A figure before and after."""

    before: int
    after: int


@dataclass(frozen=True)
class RecoveryRecord:
    """What a repair was predicted to come to, and what it came to on data that it was not computed from.

    Attributes
    ----------
    fitted, held_out : int
        Batches of calibration samples that a trial was computed from, and on which it was measured; 0 where there was
        too little data to hold any out, and it was measured on what it was computed from. What is handed over is
        computed from all.
    predicted_l2, measured_l2 : float
        Error of the outputs (of the logits, before a softmax) over their standard deviation.
    agreement : float or None
        Share of held-out samples whose largest class stayed; None where no output holds classes.
    drop : float
        As the gate on it counts, see `graphprune.verify.gate.drop`: the larger of that on the held-out samples and that
        on all.
    """

    fitted: int
    held_out: int
    predicted_l2: float
    measured_l2: float
    agreement: float | None
    drop: float


@dataclass(frozen=True)
class RoundRecord:
    """One round of pruning and training.

    Attributes
    ----------
    weights, nonzero : int
        Weights of the model that was trained, and those of them that were not 0.
    before, after : float or None
        How much it lost of the original, before and after it was trained, as `RecoveryRecord.drop` counts; None where
        that was not measured.
    changed : int
        How many of the weights the training changed.
    seconds : float
        That the training took.
    distillation : dict or None
        Learning rate, epochs and losses where the original was the teacher.
    """

    weights: int
    nonzero: int
    before: float | None
    after: float | None
    changed: int
    seconds: float
    distillation: dict[str, Any] | None = None


@dataclass(frozen=True)
class LayerRecord:
    """What became of one layer that was solved anew.

    Attributes
    ----------
    layer : str
        Its weight.
    ridge : float
        What the change was shrunk by, in parts of the mean variance of what the layer reads; infinite where the weight
        was left as it was.
    before, after : float
        Mean squared error of its output without and with the change, on samples that the change was not computed from;
        ``after`` is not a number where there were too few to keep any back.
    """

    layer: str
    ridge: float
    before: float
    after: float


@dataclass(frozen=True)
class GroupRecord:
    """One group of units.

    Attributes
    ----------
    name : str
        The first initializer that carries its units.
    axes : list of [str, int]
        Initializers and axes that the units live on.
    size : int
        Number of units.
    removed : list of int
        Which of them went, as places in `score`.
    score : list of float
        One a unit; the higher, the sooner it goes.
    criterion : str
        What the scores are.
    exact : bool
        Whether the removal equals masking the units where they are consumed.
    """

    name: str
    axes: list[tuple[str, int]]
    size: int
    removed: list[int]
    score: list[float]
    criterion: str
    exact: bool


@dataclass(frozen=True)
class DeclinedRecord:
    """An axis of a weight, or part of it, that was left alone, and why.

    Attributes
    ----------
    tensor : str
        Initializer name.
    axis : int
    positions : int
        How many of the axis's positions.
    share : float
        Weights in those positions over all weights, in [0, 1]. Another axis may still let them go, and a weight
        counts for every axis that holds it.
    node, op : str
        Who asks for it; empty for a graph input or output.
    reason : str
    """

    tensor: str
    axis: int
    positions: int
    share: float
    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class EncodingRecord:
    """How one weight is stored in the file.

    Attributes
    ----------
    tensor : str
    form : str
        ``"dense"``, ``"gaps"`` or ``"bitmap"``.
    values : str
        Type of the stored values: ``"float16"`` where they were rounded.
    before, after : int
        Bytes in the file, dense and as it is stored, its decoder included; constants that decoders share aside.
    reason : str
        Why it is dense, where another form would be smaller; else empty.
    """

    tensor: str
    form: str
    values: str
    before: int
    after: int
    reason: str


@dataclass(frozen=True)
class SpeedRecord:
    """A removal that was chosen for its speedup: latency before over after.

    Attributes
    ----------
    asked : float
    predicted : float
        From measured times of the kernels.
    measured : float
        With weights as they were.
    branches : list of str
        Sums whose residual branch was cut off whole.
    """

    asked: float
    predicted: float
    measured: float
    branches: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PackedRecord:
    """One weight that is stored, and multiplied by, without the zeros that groups of its outputs share.

    Attributes
    ----------
    weight, node, op : str
        The initializer, as `Ledger.kept` and the original name it, and the node that multiplied by it.
    groups : int
        Groups that the outputs fall into.
    columns : int
        Outputs of a group (V); the last may have fewer.
    inputs : int
        Inputs that each group reads (k).
    blocks, indices : str
        Initializers of the result: the groups' weights, shape (groups, columns, inputs), of a convolution
        (groups * columns, inputs, 1, ...); and which inputs they read, shape (groups, inputs) or flat.
    dense_ms, packed_ms : float
        What the product alone takes in one call: this decided that it is packed.
    """

    weight: str
    node: str
    op: str
    groups: int
    columns: int
    inputs: int
    blocks: str
    indices: str
    dense_ms: float
    packed_ms: float


@dataclass(frozen=True)
class ResizedRecord:
    """A graph input or output that lost positions.

    Attributes
    ----------
    before, after : list of int, str or None
        Its shapes; a dynamic axis has a name or nothing.
    kept : dict
        ``{axis: [indices kept]}``, only axes that lost something.
    """

    before: list[int | str | None]
    after: list[int | str | None]
    kept: dict[str, Any]


@dataclass(frozen=True)
class ReasonRecord:
    """All that is left alone for one reason.

    Attributes
    ----------
    op, reason : str
        As in `DeclinedRecord`.
    nodes : list of str
        The nodes that ask for it.
    axes : int
        Number of entries of `Ledger.declined` with this reason.
    share : float
        Weights in the positions that they hold over all weights, in [0, 1]; a weight counts once for a reason,
        and for every reason that holds it.
    """

    op: str
    reason: str
    nodes: list[str]
    axes: int
    share: float
