"""How sparsity grows while a model is trained (Zhu & Gupta 2017, To prune, or not to prune)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, fields
from numbers import Integral, Real
from typing import Any

from graphprune.errors import RecipeError
from graphprune.values import plain


@dataclass(frozen=True)
class Schedule:
    """Sparsity by training step.

    From ``begin`` to ``end`` it grows by equation 1 of Zhu & Gupta 2017: fast at first, where much is redundant, and
    ever slower towards the end,

        s_t = s_f + (s_i - s_f) (1 - (t - begin) / (end - begin)) ** 3

    at the steps t = begin, begin + frequency, ... and at ``end`` itself; between them it stays. Before ``begin`` it is
    0, after ``end`` it is ``final``. Step 0 is before training, step t after the t-th update of the weights.

    Attributes
    ----------
    final : float
        Sparsity at ``end``, in [0, 1).
    initial : float, default 0
        Sparsity at ``begin``, in [0, final].
    begin, end : int, default 0
        First and last step at which it changes, 0 <= begin <= end. With both the same it is one-shot.
    frequency : int, default 1
        Steps from one change to the next, at least 1.

    Raises
    ------
    RecipeError
        When a value is out of range.
    """

    final: float
    _: KW_ONLY
    initial: float = 0.0
    begin: int = 0
    end: int = 0
    frequency: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            _demand(field.name, value)
            object.__setattr__(self, field.name, plain(value))
        if self.initial > self.final:
            raise RecipeError(
                f"initial must be at most final: what is zero stays zero, and {self.initial} is above {self.final}",
                where="Schedule(initial=...)",
                hint="give a smaller initial, or a larger final",
            )
        if self.end < self.begin:
            raise RecipeError(
                f"end must be at least begin, and {self.end} is below {self.begin}",
                where="Schedule(end=...)",
                hint="give the step at which the final sparsity is to be reached",
            )

    @classmethod
    def one_shot(cls, final: float, at: int = 0) -> Schedule:
        """Reach the final sparsity at one step.

        Parameters
        ----------
        final : float
            In [0, 1).
        at : int, default 0
            The step; 0 is before training.
        """
        return cls(final, begin=at, end=at)

    @classmethod
    def constant(cls, final: float, *, begin: int = 0, end: int, frequency: int = 1) -> Schedule:
        """Reach the final sparsity at ``begin``, and see to it again every ``frequency`` steps until ``end``.

        That is one-shot pruning, but for rounds of structural trimming in between: a layer that has lost units has lost
        zeros, too, and gets as many again as make the sparsity.

        Parameters
        ----------
        final : float
            In [0, 1).
        begin, end, frequency : int
            As for `Schedule`.
        """
        return cls(final, initial=final, begin=begin, end=end, frequency=frequency)

    def at(self, step: int) -> float:
        """Return the sparsity that holds after a step.

        Parameters
        ----------
        step : int
            At least 0.

        Returns
        -------
        float
            In [0, final].
        """
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return self.final
        changed = step - (step - self.begin) % self.frequency
        left = 1 - (changed - self.begin) / (self.end - self.begin)
        return self.final + (self.initial - self.final) * left**3

    def due(self, step: int) -> bool:
        """Return whether the sparsity may change at a step."""
        return self.begin <= step <= self.end and ((step - self.begin) % self.frequency == 0 or step == self.end)


def _demand(name: str, value: Any) -> None:
    """Demand that a field may have a value."""
    whole = name in ("begin", "end", "frequency")
    kind: Any = Integral if whole else Real
    least = 1 if name == "frequency" else 0
    words = f"a whole number, at least {least}" if whole else "at least 0 and below 1"
    if isinstance(value, bool) or not isinstance(value, kind) or not (value >= least and (whole or value < 1)):
        raise RecipeError(f"{name} must be {words}, not {value!r}", where=f"Schedule({name}=...)")
