"""Store sparse weights so that they are small in the file, as the last pass before verification.

Each tensor gets the smallest of three forms, decoders counted: dense, one byte for the distance of every entry from the
one before (gaps), or one bit for every place (bitmap); see `graphprune.ir.encoding`. What is not +0 to the last bit is
an entry, so the model is the same to the last bit. With ``fp16`` the entries are float16 in the file and cast back:
half the bytes, and the weights are rounded (to 11 bits; below 6e-8 to 0).

Left dense, with a reason where that costs bytes: weights that a caller may replace or reads as an output, those inside
bodies of control flow, element types that ONNX Runtime has too few operators of, and everything before operator set 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from graphprune.errors import RecipeError
from graphprune.ir.bodies import replace_nodes
from graphprune.ir.encoding import forms
from graphprune.ir.encoding.decode import decode, store
from graphprune.ir.encoding.decoders import FIRST, FORMS, KINDS, MARK, VERSION, Decoder, Stored, decoder
from graphprune.ir.encoding.sites import Site, find_sites, free_prefix, in_memory, opset_of
from graphprune.ir.tensors import array
from graphprune.values import ENCODINGS

SETS: tuple[tuple[str, ...], ...] = (FORMS, ("dense", "gaps"), ("dense",))
"""Forms that a model may use: all its bitmaps share a table, which few small weights do not pay for."""
SMALLEST = 256
"""Bytes below which a weight stays dense: no decoder is smaller."""


@dataclass(frozen=True)
class Encoding:
    """How one weight is stored.

    Attributes
    ----------
    tensor : str
    form : str
        ``"dense"``, ``"gaps"`` or ``"bitmap"``.
    values : str
        Type of the stored values, such as ``"float32"``.
    before, after : int
        Bytes in the file, dense and as it is stored now, its decoder included; constants that decoders share aside.
    reason : str
        Why it is dense, where another form would be smaller; else empty.
    """

    tensor: str
    form: str
    values: str
    before: int
    after: int
    reason: str = ""


@dataclass(frozen=True)
class _Choice:
    """A form for a weight, and the bytes it takes."""

    site: Site
    form: str
    half: bool
    bytes: int
    decoder: Decoder | None = None

    @property
    def dense(self) -> bool:
        """Whether the weight stays as it is."""
        return self.decoder is None


def encode(proto: onnx.ModelProto, mode: str = "auto") -> tuple[onnx.ModelProto, list[Encoding]]:
    """Return a model that computes the same, with sparse weights stored by their entries alone.

    Parameters
    ----------
    proto : onnx.ModelProto
        Its weights in memory; not changed. An encoded one is encoded anew.
    mode : {"off", "auto", "fp16"}, default "auto"
        ``"auto"`` keeps every bit; ``"fp16"`` rounds entries to float16 where all of a weight's are in its range.

    Returns
    -------
    model : onnx.ModelProto
        The very model given when it is not encoded and stays so. `graphprune.ir.encoding.decode.decode` turns it back.
    encodings : list of Encoding
        One for every float weight of the main graph, and those elsewhere that would be smaller; none when off.

    Raises
    ------
    RecipeError
        When there is no such mode.
    ModelError
        When the model given is encoded, and damaged.
    """
    if mode not in ENCODINGS:
        raise RecipeError(f"--encode must be one of {', '.join(ENCODINGS)}, not {mode!r}", where="--encode")
    if mode == "off":
        return proto, []
    proto = decode(proto)
    prefix = free_prefix(proto)
    sites = find_sites(proto, prefix)
    options = {site.stem: _options(site, prefix, opset_of(proto), half=mode == "fp16") for site in sites}
    plans = [_plan(options, allowed) for allowed in SETS]
    chosen = min(plans, key=_total)
    if _total(chosen) >= sum(_dense(site).bytes for site in sites):
        chosen = [_dense(site) for site in sites]
    result, failed = _apply(proto, prefix, chosen)
    return result, [_record(choice, options, failed) for choice in chosen]


def _plan(options: dict[str, list[_Choice]], allowed: tuple[str, ...]) -> list[_Choice]:
    """Take the smallest of the forms allowed for every weight that nothing stands against."""
    return [
        min((c for c in found if c.dense or (c.form in allowed and not c.site.obstacle)), key=lambda c: c.bytes)
        for found in options.values()
    ]


def _total(chosen: list[_Choice]) -> int:
    """Bytes of all weights as chosen, with shared constants and the mark."""
    shared = {t.name: t for choice in chosen if choice.decoder for t in choice.decoder.shared}
    constants = sum(_field(tensor.ByteSize()) for tensor in shared.values())
    return sum(choice.bytes for choice in chosen) + constants + 2 * len(MARK)


def _dense(site: Site) -> _Choice:
    return _Choice(site, "dense", False, _field(site.tensor.ByteSize()))


def _options(site: Site, prefix: str, opset: int, *, half: bool) -> list[_Choice]:
    """Return the forms that a weight may take, as it is first; what it would save where something stands against it."""
    options = [_dense(site)]
    if options[0].bytes < SMALLEST or site.tensor.data_type not in KINDS or not in_memory(site.tensor):
        return options
    values, rounded = _entries(site.tensor, half=half)
    places = forms.occupied(values)
    for form in FORMS:
        if (form == "dense" and not rounded) or (opset < FIRST[form] and not site.obstacle):
            continue
        count = {"dense": len(values), "gaps": len(forms.to_gaps(places)), "bitmap": len(places)}[form]
        stored = Stored(site.name, tuple(site.tensor.dims), site.tensor.data_type, form, count, rounded)
        code = {"dense": 0, "gaps": count, "bitmap": -(-len(values) // 8)}[form]
        made = decoder(stored, site.stem, prefix, max(opset, FIRST[form]))
        names = 2 * (len(site.stem) + 34)  # of the tensors of values and codes, with shapes and types
        size = count * values.dtype.itemsize + code + names + sum(_field(item.ByteSize()) for item in _items(made))
        options.append(_Choice(site, form, rounded, size, made))
    return options


def _items(made: Decoder) -> list[onnx.NodeProto | onnx.ValueInfoProto]:
    return [*made.nodes, *made.shapes]


def _entries(tensor: onnx.TensorProto, *, half: bool) -> tuple[npt.NDArray[np.generic], bool]:
    """Return a weight's values, flat, and whether they were rounded to float16, which none may overflow."""
    values = array(tensor).ravel()
    if not half or values.dtype == np.float16:
        return values, False
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = values.astype(np.float16)
    fits = bool((np.isfinite(rounded) | ~np.isfinite(values)).all())
    return (rounded, True) if fits else (values, False)


def _apply(proto: onnx.ModelProto, prefix: str, chosen: list[_Choice]) -> tuple[onnx.ModelProto, set[str]]:
    """Write the forms chosen; return the weights, too, that could not be given back as they were, and stay dense."""
    if all(choice.dense for choice in chosen):
        return proto, set()
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph, failed = result.graph, set()
    wanted = {choice.site.name: choice for choice in chosen if not choice.dense}
    shared: dict[str, onnx.TensorProto] = {}
    codes: list[onnx.TensorProto] = []
    ahead: list[onnx.NodeProto] = []
    nodes: list[onnx.NodeProto] = []

    def write(name: str, tensor: onnx.TensorProto, *, in_node: bool) -> Decoder | None:
        made = _write(wanted[name], tensor, codes, in_node=in_node)
        if made is None:
            failed.add(name)
            return None
        shared.update((constant.name, constant) for constant in made.shared)
        graph.value_info.extend(made.shapes)
        return made

    for tensor in graph.initializer:
        if tensor.name in wanted:
            made = write(tensor.name, tensor, in_node=False)
            ahead.extend(made.nodes if made else ())
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Constant" and node.output[0] in wanted:
            choice = wanted[node.output[0]]
            made = write(choice.site.name, next(a.t for a in node.attribute if a.name == "value"), in_node=True)
            if made is not None:
                node.output[0] = f"{choice.site.stem}.values"
                nodes.extend(made.nodes)
    graph.initializer.extend([*codes, *shared.values()])
    replace_nodes(graph, [*ahead, *nodes])
    if len(ahead) + len(nodes) > len(proto.graph.node):
        result.metadata_props.add(key=MARK, value=f"{VERSION} {prefix}")
    return result, failed


def _write(
    choice: _Choice, tensor: onnx.TensorProto, codes: list[onnx.TensorProto], *, in_node: bool
) -> Decoder | None:
    """Put a weight's entries into its place and note where they go; nothing where it could not be given back."""
    before = onnx.TensorProto()
    before.CopyFrom(tensor)
    values, rounded = _entries(tensor, half=choice.half)
    shape, places = tuple(tensor.dims), forms.occupied(values)
    gaps = forms.to_gaps(places) if choice.form == "gaps" else np.zeros(0, dtype=np.uint8)
    places = forms.from_gaps(gaps, len(values)) if choice.form == "gaps" else places
    entries = values if choice.form == "dense" else values[places]
    again = np.zeros(len(values), dtype=values.dtype)
    again[places] = values[places]
    if not rounded:  # signalling NaNs in a list of floats, for one, come back as quiet ones
        store(tensor, before.name, again, shape)
        if tensor.SerializeToString(deterministic=True) != before.SerializeToString(deterministic=True):
            tensor.CopyFrom(before)
            return None
    # What a Constant node holds keeps its name, which nothing reads.
    name = before.name if in_node else f"{choice.site.stem}.values"
    store(tensor, name, entries, shape if choice.form == "dense" else (1, 1, len(entries)))
    if choice.form == "gaps":
        codes.append(numpy_helper.from_array(gaps[None, None], f"{choice.site.stem}.gaps"))
    elif choice.form == "bitmap":
        codes.append(numpy_helper.from_array(forms.to_bitmap(places, len(values)), f"{choice.site.stem}.bitmap"))
    return choice.decoder


def _record(choice: _Choice, options: dict[str, list[_Choice]], failed: set[str]) -> Encoding:
    """Say what became of a weight."""
    found = options[choice.site.stem]
    dense, kind = found[0].bytes, helper.tensor_dtype_to_np_dtype(choice.site.tensor.data_type)
    reason = "its values cannot be given back to the last bit" if choice.site.name in failed else choice.site.obstacle
    if choice.dense or choice.site.name in failed:
        saves = min(c.bytes for c in found) < dense or (bool(choice.site.obstacle) and _may_save(choice.site))
        return Encoding(choice.site.name, "dense", kind.name, dense, dense, reason if saves else "")
    return Encoding(choice.site.name, choice.form, "float16" if choice.half else kind.name, dense, choice.bytes)


def _may_save(site: Site) -> bool:
    """Whether a weight of a kind that cannot be encoded holds as many zeros as others that are."""
    if site.tensor.data_type in KINDS or not in_memory(site.tensor) or site.tensor.ByteSize() < 2 * SMALLEST:
        return False
    return bool(np.count_nonzero(array(site.tensor)) < 0.8 * site.size)


def _field(size: int) -> int:
    """Bytes of a message inside another: its tag, its length, and itself."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size
