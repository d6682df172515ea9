"""Gemm, MatMul, Einsum and Det."""

from __future__ import annotations

import torch
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: ``alpha * a' @ b' + beta * c``, each of a, b transposed where its attribute says so.

    Parameters
    ----------
    call : Call
        Attributes ``alpha``, ``beta``, ``transA``, ``transB``.
    a, b : torch.Tensor
        Matrices [M, K] and [K, N] after transposition.
    c : torch.Tensor, optional
        Broadcast to [M, N].

    Returns
    -------
    torch.Tensor
        [M, N].
    """
    left = a.t() if call.get("transA", 0) else a
    right = b.t() if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if c is not None:
        return torch.addmm(c, left, right, beta=beta, alpha=alpha)
    product = left @ right
    return product if alpha == 1.0 else alpha * product


def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Einsum: the equation is numpy's, and torch's."""
    return torch.einsum(call.get("equation"), *inputs)


OPERATORS: dict[str, Operator] = {
    "Det": lambda call, x: torch.linalg.det(x),
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": lambda call, a, b: torch.matmul(a, b),
}
