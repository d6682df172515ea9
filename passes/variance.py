"""Give a layer's outputs the variance back that they had in the original.

What least squares cannot explain it leaves out, so that outputs vary less than the layers behind are used to; from
layer to layer this adds up. BatchNorm that is estimated again puts it right where there is any (REPAIR, Jordan et al.
2023); here the weight is scaled, one factor for every output, and the bias holds the mean.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphprune.passes.ridge import Centred

FloatArray = npt.NDArray[np.float64]

MOST = 2.0
"""An output of which so little is left that it would take more is mostly noise."""


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is left as it is
def matched(rows: Centred, before: FloatArray, after: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scale a layer's matrix so that its outputs vary as the original's.

    Parameters
    ----------
    rows : Centred
        Moments of what the layer reads, and of what its outputs lacked with the first matrix.
    before, after : ndarray, shape (groups, width, outputs)
        The matrix that the moments were measured with, and the one to scale.

    Returns
    -------
    scaled : ndarray, shape (groups, width, outputs)
        Never smaller than the matrix given.
    shift : ndarray, shape (groups, outputs)
        What the bias needs for the mean to stay.
    """
    spread = rows.covariance @ before
    wanted = (before * (spread + 2 * rows.cross)).sum(axis=1) + rows.variance
    found = (after * (rows.covariance @ after)).sum(axis=1)
    there = (found > 0) & np.isfinite(found) & np.isfinite(wanted)
    ratio = np.divide(np.maximum(wanted, 0.0), found, out=np.ones_like(found), where=there)
    scaled = after * np.sqrt(np.clip(ratio, 1.0, MOST**2))[:, None]
    return scaled, (rows.mean[:, None] @ (after - scaled))[:, 0]
