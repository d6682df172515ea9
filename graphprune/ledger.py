"""The record of what was done (DESIGN section 7); report writers read only this."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from graphprune.ir.publication import write_text
from graphprune.verify.equivalence import Proof
from graphprune.verify.fidelity import Fidelity
from graphprune.verify.gate import Gate
from graphprune.verify.latency import Latency
from graphprune.verify.metric import Metric

SCHEMA = "graphprune.ledger/1"


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


@dataclass(frozen=True)
class Ledger:
    """The record of one run.

    Attributes
    ----------
    kept : dict
        ``{initializer name in the original: {axis: [indices kept]}}``, only axes that lost something. The input
        channels of a grouped convolution differ from group to group: there, one list for every kept output channel.
    zeroed : dict of str to int
        By initializer, how many of its weights were set to 0.
    resized : dict of str to ResizedRecord
        Graph inputs and outputs that lost positions.
    declined : list of DeclinedRecord
        Every axis left alone, and why; the largest share first.
    reasons : list of ReasonRecord
        The same, grouped.
    metric : Metric or None
        What the user's own metric gave for both models, where one was named.
    recovery : RecoveryRecord or None
        What was predicted, and what a trial showed; None where no kept weight was changed by calibration data.
    speed : SpeedRecord or None
        What the removal was predicted and measured to gain, where a speedup was asked for.
    repairs : list of LayerRecord
        Layers whose weights were solved anew.
    packed : list of PackedRecord
        Weights that are packed. What they leave out is no longer in the file: it counts as removed, not as zeroed.
    packed_latency : Latency or None
        Of the result, before it is encoded, beside the same with dense weights; None where nothing is packed.
    encodings : list of EncodingRecord
        How the weights are stored; none where nothing was to be encoded.
    seconds : dict of str to float
        Time that each pass took.
    """

    model: FileRecord
    output: FileRecord
    target: float | None
    seed: int
    recipe: dict[str, Any]
    versions: dict[str, str]
    calibration: CalibrationRecord
    weights: WeightRecord
    macs: Change
    bytes: Change
    kept: dict[str, dict[str, Any]]
    zeroed: dict[str, int]
    groups: list[GroupRecord]
    declined: list[DeclinedRecord]
    reasons: list[ReasonRecord]
    latency: Latency
    equivalence: Proof
    fidelity: Fidelity
    gates: list[Gate]
    metric: Metric | None = None
    recovery: RecoveryRecord | None = None
    speed: SpeedRecord | None = None
    repairs: list[LayerRecord] = field(default_factory=list)
    resized: dict[str, ResizedRecord] = field(default_factory=dict)
    packed: list[PackedRecord] = field(default_factory=list)
    packed_latency: Latency | None = None
    encodings: list[EncodingRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    schema: str = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether every gate held."""
        return all(gate.ok for gate in self.gates)

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON holds it, ``schema`` first."""
        values = asdict(self)
        values["equivalence"] = self.equivalence._asdict()
        return {"schema": values.pop("schema"), **values}

    def to_json(self) -> str:
        """Return the ledger as JSON text; numbers that JSON has no form for become null."""
        return json.dumps(finite(self.as_dict()), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ledger as JSON, atomically.

        Raises
        ------
        RecipeError
            When the folder does not exist or cannot be written.
        """
        write_text(self.to_json(), path)


def finite(value: Any) -> Any:
    """Return a value as JSON can hold it: string keys, and None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
