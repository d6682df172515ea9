"""Functions that the user names as ``module:function``."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphprune.errors import GraphPruneError, user_code

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_reference(text: str) -> bool:
    """Whether a text has the form ``module:function``."""
    return _REFERENCE.fullmatch(text) is not None


def import_function(reference: str, what: str, error: type[GraphPruneError], use: str) -> Callable[..., Any]:
    """Import ``module:function``; the module may lie in the working folder.

    Parameters
    ----------
    reference : str
    what : str
        What messages call the function, such as "calibration function".
    error : type
        The error to raise.
    use : str
        What messages say to give instead of something that is no function.

    Returns
    -------
    callable

    Raises
    ------
    GraphPruneError
        Of the type given, when the module cannot be imported or holds no such function.
    """
    module_name, _, name = reference.partition(":")
    # A console script does not look into the working folder, where users keep such a module.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    hint = "give module:function; the module must be installed or lie in the working folder"
    with user_code(error, f"the {what} cannot be imported", where=reference, hint=hint):
        function = getattr(importlib.import_module(module_name), name)
    if not callable(function):
        raise error(
            f"the {what} is not a function", where=reference, why=f"it is a {type(function).__name__}", hint=use
        )
    return function  # type: ignore[no-any-return]
