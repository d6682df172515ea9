"""Rules of other packages: entry points of the group ``graphprune.rules``, loaded when a graph needs them.

Reference: https://packaging.python.org/en/latest/specifications/entry-points/
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points

from graphprune.errors import PluginError, user_code
from graphprune.ir.rules.rule import Rule

GROUP = "graphprune.rules"


def find_plugins(built_in: Collection[str]) -> dict[str, EntryPoint]:
    """Return the entry points that declare rules, by operator; nothing of them is imported yet.

    Parameters
    ----------
    built_in : collection of str
        Operators that have a rule already.

    Returns
    -------
    dict of str to EntryPoint

    Raises
    ------
    PluginError
        When an operator has a built-in rule, or two packages declare one.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in built_in:
            raise PluginError(
                f"a plugin declares a rule for {point.name}, which has a built-in one",
                where=describe(point),
                hint="uninstall the package, or take the entry point out of it: built-in rules are not replaced",
            )
        if point.name in found:
            raise PluginError(
                f"two plugins declare a rule for {point.name}",
                where=f"{describe(found[point.name])}, and {describe(point)}",
                hint="uninstall one of the packages",
            )
        found[point.name] = point
    return found


def load_rule(point: EntryPoint) -> Rule:
    """Import what an entry point names.

    Raises
    ------
    PluginError
        When it cannot be imported, or is no `Rule`.
    """
    what, hint = f"the rule for {point.name} cannot be imported", "mend or uninstall the package"
    with user_code(PluginError, what, where=describe(point), hint=hint):
        rule = point.load()
    if not isinstance(rule, Rule) or not callable(rule.couple) or not (rule.patch is None or callable(rule.patch)):
        raise PluginError(
            f"what a plugin declares as the rule for {point.name} is none",
            where=describe(point),
            why=f"it is {rule!r}",
            hint="declare a graphprune.rules.Rule of one or two functions, see docs/rules.md",
        )
    return rule


def describe(point: EntryPoint) -> str:
    """Return the package and the line that declares an entry point."""
    package = f"package {point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
    return f"{package}, entry point {GROUP}: {point.name} = {point.value}"
