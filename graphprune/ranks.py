"""Several processes that train one model: the first prunes, and the others only train with it.

``torchrun -m graphprune MODEL --finetune module:function`` starts the command in every process. The training function
is the user's, unchanged: it sets up its process group, and DistributedDataParallel makes the weights the same in every
process. What to train is handed on through torchrun's own store, since the process group is the function's.

Reference: https://docs.pytorch.org/docs/stable/elastic/run.html (environment variables)
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import onnx

from graphprune.errors import RecipeError
from graphprune.ledger import Ledger

PATIENCE = timedelta(days=7)
"""How long a process waits for the first one to prune."""


def world() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, 0 for the first."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class ToTrain:
    """A model that all processes train: its bytes, and the initializers whose zeros stay."""

    model: bytes
    zeroed: frozenset[str]


@dataclass(frozen=True)
class Done:
    """What came of it: the bytes of the result, and the ledger."""

    model: bytes
    ledger: Ledger

    def result(self) -> tuple[onnx.ModelProto, Ledger]:
        """Return model and ledger."""
        return onnx.load_model_from_string(self.model), self.ledger


Message: TypeAlias = ToTrain | Done


class Channel:
    """What the first process says to the others, in order. Where it fails, torchrun ends the others.

    Raises
    ------
    RecipeError
        When the processes were not started by torchrun.
    """

    def __init__(self) -> None:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise RecipeError(
                f"there are {world()} processes, and no store to hand models from one to the other",
                where="WORLD_SIZE",
                hint="start them with torchrun, or unset WORLD_SIZE",
            )
        from graphprune.finetune.distributed import store  # noqa: PLC0415 - torch only where something is trained

        self._store = store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), PATIENCE)
        self._prefix = f"graphprune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._count = 0

    def tell(self, message: Message) -> None:
        """Send a message to all others."""
        self._store.set(self._next(), pickle.dumps(message))

    def hear(self) -> Message:
        """Wait for the next message."""
        message: Message = pickle.loads(self._store.get(self._next()))  # from this very program
        return message

    def _next(self) -> str:
        self._count += 1
        return f"{self._prefix}/{self._count}"
