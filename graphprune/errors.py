"""Every error that graphprune raises on purpose, with the exit code that the command gives it."""

from __future__ import annotations

USER_FAILURES: tuple[type[BaseException], ...] = (Exception, SystemExit)
"""What counts as a failure of the user's own code: all but Ctrl-C. Leaving counts, too: exit codes are graphprune's."""


class GraphPruneError(Exception):
    """Base of all deliberate errors: says what is wrong, where, why, and what to do.

    Parameters
    ----------
    what : str
        What is wrong, one sentence.
    where : str, optional
        The file, tensor, node or option concerned.
    why : str, optional
        The cause, often the words of the library that refused.
    hint : str, optional
        What the user can do about it.
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        self.what, self.where, self.why, self.hint = what, where, why, hint
        parts = [what, where and f"where: {where}", why and f"why: {why}", hint and f"what to do: {hint}"]
        super().__init__("\n  ".join(part for part in parts if part))


class RecipeError(GraphPruneError):
    """The request itself is wrong: a value out of range, a missing path, an output over the input."""

    exit_code = 2


class PluginError(GraphPruneError):
    """What an installed package declares for graphprune cannot be used."""

    exit_code = 2


class ModelError(GraphPruneError):
    """The model cannot be used."""

    exit_code = 3


class CalibrationError(GraphPruneError):
    """The calibration data cannot be used."""

    exit_code = 3


class UnsupportedOperatorError(ModelError):
    """An operator that the torch interpreter does not know."""


class TargetError(GraphPruneError):
    """The target cannot be reached; the message names the best that can.

    Parameters
    ----------
    what : str
        What could not be reached.
    reachable : float
        The best that can be: a fraction of the weights that can be removed or zeroed, in [0, 1), or a speedup.
    """

    exit_code = 1

    def __init__(self, what: str, *, reachable: float, where: str = "", why: str = "", hint: str = "") -> None:
        self.reachable = reachable
        super().__init__(what, where=where, why=why, hint=hint)


class EquivalenceError(GraphPruneError):
    """The pruned model does not equal the masked original: nothing is written."""

    exit_code = 1
