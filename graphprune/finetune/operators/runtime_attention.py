"""Attention in one node of ONNX Runtime: Attention, MultiHeadAttention and GroupQueryAttention.

Reference: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphprune.errors import UnsupportedOperatorError
from graphprune.finetune.operators.attention import attend, joined, merge_heads, scores_limits, seen, split_heads
from graphprune.finetune.operators.call import Call, Operator, Restriction
from graphprune.finetune.operators.rotary import rotated


def multi_head_attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    added: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """ONNX Runtime's MultiHeadAttention of separate queries, keys and values.

    Parameters
    ----------
    call : Call
        Attributes ``mask_filter_value``, ``num_heads``, ``scale``, ``unidirectional``.
    q : torch.Tensor
        [N, S, H * D].
    k, v : torch.Tensor
        [N, T, H * D], or [N, H, T, D].
    bias : torch.Tensor, optional
        [3 * H * D], added to queries, keys and values.
    padding : torch.Tensor, optional
        Int: [N], how many keys count; [N, T] or [N, S, T], not 0 where a key counts.
    added : torch.Tensor, optional
        Added to the scores.
    past_key, past_value : torch.Tensor, optional
        [N, H, P, D].

    Returns
    -------
    tuple of torch.Tensor
        [N, S, H * D]; all keys and all values.
    """
    heads = call.get("num_heads")
    if bias is not None:
        widths = [x.shape[2] if x.dim() == 3 else x.shape[1] * x.shape[3] for x in (q, k, v)]
        of_q, of_k, of_v = torch.split(bias, widths)
        q = q + of_q
        k, v = (x + b if x.dim() == 3 else x for x, b in ((k, of_k), (v, of_v)))
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    return _cached(call, q, k, v, padding, added, (past_key, past_value))


def _cached(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    padding: Tensor | None,
    added: Tensor | None,
    past: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    first = 0
    if past[0] is not None and past[1] is not None:
        first = past[0].shape[2]
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    allowed = seen(q, k, first, causal=bool(call.get("unidirectional", 0)))
    bias = joined(added, allowed, q.dtype)
    if padding is not None:
        counted = _counted(padding, k.shape[2])
        hidden = torch.where(counted, 0.0, call.get("mask_filter_value", -10000.0)).to(q.dtype)
        bias = (
            hidden
            if bias is None
            else torch.where(bias, hidden, -torch.inf)
            if bias.dtype is torch.bool
            else bias + hidden
        )
    return merge_heads(attend(q, k, v, bias, call.get("scale"))), k, v


def _counted(padding: Tensor, keys: int) -> Tensor:
    """Return which keys count, broadcast to [N, H, S, T]."""
    if padding.dim() == 1:
        return torch.arange(keys, device=padding.device) < padding[:, None, None, None]
    shape = (padding.shape[0], 1, *([1] if padding.dim() == 2 else []), *padding.shape[1:])
    return padding.reshape(shape) != 0


def packed_attention(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """ONNX Runtime's Attention, which makes queries, keys and values by one weight.

    Parameters
    ----------
    call : Call
        Attributes ``mask_filter_value``, ``num_heads``, ``qkv_hidden_sizes``, ``scale``, ``unidirectional``.
    x : torch.Tensor
        [N, S, I].
    weight, bias : torch.Tensor
        [I, Q + K + V] and [Q + K + V].
    mask, added : torch.Tensor, optional
        As ``padding`` and ``added`` of `multi_head_attention`.
    past : torch.Tensor, optional
        [2, N, H, P, D].

    Returns
    -------
    tuple of torch.Tensor
        [N, S, V]; all keys and values, [2, N, H, P + S, D].
    """
    if mask is not None and (mask.dim() > 3 or mask.shape[0] != x.shape[0]):
        raise UnsupportedOperatorError(
            "the torch interpreter cannot run Attention of domain com.microsoft",
            why=f"its mask is of shape {tuple(mask.shape)}; [batch], [batch, keys] and [batch, steps, keys] are known",
        )
    made = x @ weight
    made = made if bias is None else made + bias
    sizes = call.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    q, k, v = (split_heads(part, call.get("num_heads")) for part in torch.split(made, list(sizes), 2))
    earlier = (None, None) if past is None else (past[0], past[1])
    y, k, v = _cached(call, q, k, v, mask, added, earlier)
    return (y,) if call.outputs == 1 else (y, torch.stack([k, v]))


def group_query_attention(
    call: Call,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """ONNX Runtime's GroupQueryAttention of whole sequences, as in training: nothing is cached yet.

    Parameters
    ----------
    call : Call
        Attributes ``do_rotary``, ``kv_num_heads``, ``local_window_size``, ``num_heads``, ``rotary_interleaved``,
        ``scale``, ``softcap``.
    q : torch.Tensor
        [N, S, H * D]; with keys and values behind, [N, S, (H + 2 * G) * D], where these are left out.
    k, v : torch.Tensor or None
        [N, S, G * D].
    past_key, past_value : torch.Tensor or None
        Left out, or of no step.
    last : torch.Tensor
        [N], int: the last key that counts.
    total : torch.Tensor
        Int, not looked at.
    cos, sin : torch.Tensor, optional
        [steps, D / 2], for the rotation of queries and keys.
    positions : torch.Tensor, optional
        [N, S], int; from 0 on where left out.
    added : torch.Tensor, optional
        Added to the scores.

    Returns
    -------
    tuple of torch.Tensor
        [N, S, H * D]; keys and values.
    """
    _demand_empty(past_key)
    heads, served = call.get("num_heads"), call.get("kv_num_heads")
    if k is None or v is None:
        size = q.shape[2] // (heads + 2 * served)
        q, k, v = torch.split(q, [heads * size, served * size, served * size], 2)
    q, k, v = split_heads(q, heads), split_heads(k, served), split_heads(v, served)
    if call.get("do_rotary", 0) and cos is not None and sin is not None:
        places = torch.arange(q.shape[2], device=q.device)[None] if positions is None else positions
        interleaved = bool(call.get("rotary_interleaved", 0))
        q, k = (rotated(x, cos[places], sin[places], interleaved=interleaved) for x in (q, k))
    window = call.get("local_window_size", -1)
    allowed = seen(q, k, 0, causal=True, left=window - 1 if window > 0 else -1, count=last + 1)
    y = attend(q, k, v, joined(added, allowed, q.dtype), call.get("scale"), call.get("softcap", 0.0))
    return merge_heads(y), k, v


def _demand_empty(past: Tensor | None) -> None:
    if past is not None and past.shape[2]:
        raise UnsupportedOperatorError(
            "the torch interpreter cannot run GroupQueryAttention of domain com.microsoft",
            why="something is cached already",
            hint="give an empty cache and whole sequences: training has no use for one",
        )


def _multi_head_limits(call: Call) -> str:
    if not call.has(1) or not call.has(2):
        return "packed queries, keys and values are not known"
    return "a cache that is written in place is not known" if call.has(8) or call.has(9) else scores_limits(call)


def _packed_limits(call: Call) -> str:
    if call.get("do_rotary", 0):
        return "rotation inside is not known"
    return "a cache that is written in place is not known" if call.get("past_present_share_buffer", 0) else ""


def _group_limits(call: Call) -> str:
    if call.get("smooth_softmax", 0) > 0 or call.has(11):
        return "a sink beside the keys is not known"
    return "a quantised cache is not known" if call.has(12) or call.has(13) else scores_limits(call)


OPERATORS: dict[str, Operator] = {
    "com.microsoft.Attention": packed_attention,
    "com.microsoft.GroupQueryAttention": group_query_attention,
    "com.microsoft.MultiHeadAttention": multi_head_attention,
}

RESTRICTIONS: dict[str, Restriction] = {
    "com.microsoft.Attention": _packed_limits,
    "com.microsoft.GroupQueryAttention": _group_limits,
    "com.microsoft.MultiHeadAttention": _multi_head_limits,
}
