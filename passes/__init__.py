"""The passes, a file each: every one analyses first, freezes a plan, and applies it mechanically."""

if __name__ != "graphprune.passes":
    raise ImportError("import graphprune.passes: 'passes' is a folder of the package graphprune")
