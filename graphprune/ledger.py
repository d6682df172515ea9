"""The record of what was done (DESIGN section 7); report writers read only this."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from graphprune.entries import (
    CalibrationRecord,
    Change,
    DeclinedRecord,
    EncodingRecord,
    FileRecord,
    GroupRecord,
    LayerRecord,
    PackedRecord,
    ReasonRecord,
    RecoveryRecord,
    ResizedRecord,
    RoundRecord,
    SpeedRecord,
    WeightRecord,
)
from graphprune.ir.publication import write_text
from graphprune.verify.equivalence import Proof
from graphprune.verify.fidelity import Fidelity
from graphprune.verify.gate import Gate
from graphprune.verify.latency import Latency
from graphprune.verify.metric import Metric

SCHEMA = "graphprune.ledger/1"


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
    rounds : list of RoundRecord
        What became of the model when it was trained; none where it was not.
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
    rounds: list[RoundRecord] = field(default_factory=list)
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
