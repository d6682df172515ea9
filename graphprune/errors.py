"""Every error that graphprune raises on purpose, with the exit code that the command gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def user_code(error: type[GraphPruneError], what: str, *, where: str, hint: str) -> Iterator[None]:
    """Make an error of ours of whatever the user's own code, called in the block, may fail with.

    Leaving the process is a failure, too: exit codes are graphprune's to give. Ctrl-C is none.

    Parameters
    ----------
    error : type
        The error to raise; errors of ours stay as they are.
    what, where, hint : str
        As for `GraphPruneError`.

    Raises
    ------
    GraphPruneError
        Of the type given.
    """
    try:
        yield
    except GraphPruneError:
        raise
    except (Exception, SystemExit) as problem:
        raise error(what, where=where, why=f"{type(problem).__name__}: {problem}", hint=hint) from problem
