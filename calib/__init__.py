"""Calibration: where the inputs come from, and what is measured on them."""

if __name__ != "graphprune.calib":
    raise ImportError(f"this package is graphprune.calib; import it by that name, not as {__name__!r}")
