"""Attention in one node: ONNX's operator, and what it shares with those of ONNX Runtime (`runtime_attention`).

y = softmax(scale * q k' + bias) v for every head; with fewer heads of keys and values than of queries, each serves
several. Masks become one bias, or none: then torch's kernels need not make the scores at all.

Reference: https://onnx.ai/onnx/operators/onnx__Attention.html
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphprune.finetune.operators.call import Call, Operator, Restriction


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return [N, S, heads * D] as [N, heads, S, D]; what has four axes already as it is."""
    return x if x.dim() == 4 else x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Return [N, heads, S, D] as [N, S, heads * D]."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None, softcap: float = 0.0) -> Tensor:
    """Return attention of all heads.

    Parameters
    ----------
    q : torch.Tensor
        [N, H, S, D].
    k, v : torch.Tensor
        [N, G, T, D] and [N, G, T, E], of which H is a multiple.
    bias : torch.Tensor or None
        Added to the scores; or bool, true where a key counts. Broadcast to [N, H, S, T].
    scale : float or None
        1 over the root of D where it is None or 0.
    softcap : float, default 0.0
        The bound that the hyperbolic tangent keeps the scores in; 0 = none.

    Returns
    -------
    torch.Tensor
        [N, H, S, E].
    """
    served = q.shape[1] // max(k.shape[1], 1)
    if served > 1:
        k, v = k.repeat_interleave(served, 1), v.repeat_interleave(served, 1)
    scale = scale or 1 / math.sqrt(q.shape[-1])
    if not softcap:
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    scores = softcap * torch.tanh(scale * (q @ k.transpose(2, 3)) / softcap)
    if bias is not None:
        scores = torch.where(bias, scores, -torch.inf) if bias.dtype is torch.bool else scores + bias
    return torch.softmax(scores, -1) @ v


def seen(
    q: Tensor,
    k: Tensor,
    first: int | Tensor,
    *,
    causal: bool,
    left: int = -1,
    right: int = -1,
    count: Tensor | None = None,
) -> Tensor | None:
    """Return which keys a query may look at; None where it may look at all.

    Parameters
    ----------
    q, k : torch.Tensor
        [N, H, S, D] and [N, G, T, D].
    first : int or torch.Tensor
        The key at which the first query stands, for each sample where it is [N].
    causal : bool
        Whether keys behind a query's own are hidden.
    left, right : int, default -1
        How many keys on either side may be looked at; -1 = all.
    count : torch.Tensor, optional
        [N], int: how many keys a sample has.

    Returns
    -------
    torch.Tensor or None
        Bool, broadcast to [N, H, S, T].
    """
    if not causal and left < 0 and right < 0 and count is None:
        return None
    keys = torch.arange(k.shape[2], device=q.device)
    start = first.reshape(-1, 1, 1, 1) if isinstance(first, Tensor) else first
    ahead = keys - torch.arange(q.shape[2], device=q.device)[:, None] - start
    allowed = torch.ones_like(ahead, dtype=torch.bool)
    right = min(right, 0) if causal and right >= 0 else 0 if causal else right
    if right >= 0:
        allowed = allowed & (ahead <= right)
    if left >= 0:
        allowed = allowed & (ahead >= -left)
    return allowed if count is None else allowed & (keys < count.reshape(-1, 1, 1, 1))


def joined(mask: Tensor | None, allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Join a mask of the node's own, bool or added to the scores, with what may be looked at."""
    if mask is None or allowed is None:
        return allowed if mask is None else mask if mask.dtype is torch.bool else mask.to(dtype)
    return mask & allowed if mask.dtype is torch.bool else torch.where(allowed, mask.to(dtype), -torch.inf)


def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """ONNX's Attention (operator set 23 on), grouped, causal, windowed, with a cache.

    Parameters
    ----------
    call : Call
        Attributes ``is_causal``, ``kv_num_heads``, ``left_window_size``, ``q_num_heads``, ``right_window_size``,
        ``scale``, ``softcap``.
    q, k, v : torch.Tensor
        [N, heads, steps, D], or [N, steps, heads * D].
    mask : torch.Tensor, optional
        Bool, true where a key counts, or added to the scores; keys behind its end are hidden.
    past_key, past_value : torch.Tensor, optional
        [N, heads, P, D], put in front of keys and values.
    count : torch.Tensor, optional
        [N], int: how many keys of each sample count (operator set 24 on).

    Returns
    -------
    tuple of torch.Tensor
        In the layout of q; all keys and all values.
    """
    merged = q.dim() == 3
    q = split_heads(q, call.get("q_num_heads", 1))
    k, v = (split_heads(x, call.get("kv_num_heads", 1)) for x in (k, v))
    first: int | Tensor = 0
    if past_key is not None and past_value is not None:
        first = past_key.shape[2]
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    elif count is not None:
        first = count - q.shape[2]
    if mask is not None and mask.shape[-1] < k.shape[2]:
        hidden = False if mask.dtype is torch.bool else -torch.inf
        mask = F.pad(mask, (0, k.shape[2] - mask.shape[-1]), value=hidden)
    sides = {side: call.get(f"{side}_window_size", -1) for side in ("left", "right")}
    allowed = seen(q, k, first, causal=bool(call.get("is_causal", 0)), count=count, **sides)
    y = attend(q, k, v, joined(mask, allowed, q.dtype), call.get("scale"), call.get("softcap", 0.0))
    return merge_heads(y) if merged else y, k, v


def scores_limits(call: Call) -> str:
    """Refuse the output of the scores: what it holds has changed with the operator set."""
    return "its output of scores is not computed" if call.outputs > 3 else ""


OPERATORS: dict[str, Operator] = {"Attention": attention}

RESTRICTIONS: dict[str, Restriction] = {"Attention": scores_limits}
