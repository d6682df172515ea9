"""Translation from English to German on Multi30k: an encoder-decoder LSTM with attention, judged by BLEU."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from data import DATA, require
from gradual import train
from graphs import Builder
from onnx import TensorProto
from onnx.utils import Extractor
from torch import Tensor
from torch.nn.functional import cross_entropy
from training import DEVICE

from graphprune.finetune import GraphModule, to_proto, to_torch

PADDING, UNKNOWN, START, STOP = range(4)
EMBEDDINGS = ("source.embedding", "target.embedding")
WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
LONGEST = 40
"""Words after which a translation is cut off."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    large: int
    words: int
    steps: int
    batch: int
    rate: float
    dropout: float


FULL = Size(large=512, words=6000, steps=9000, batch=64, rate=1e-3, dropout=0.3)
QUICK = Size(large=128, words=2500, steps=2500, batch=48, rate=4e-3, dropout=0.0)


# -- the text -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Sentence pairs by part (train, val, test_2016_flickr), as numbers and, in German, as text; and the words."""

    pairs: dict[str, list[tuple[list[int], list[int]]]]
    german: dict[str, list[str]]
    words: tuple[list[str], list[str]]


def read(words: int) -> Corpus:
    """Read Multi30k in lower case; words that are not among the most frequent ones become unknown."""
    parts = ("train", "val", "test_2016_flickr")
    text = {
        (part, language): _lines(require(DATA / "text" / f"multi30k.{part}.{language}.gz"))
        for part in parts
        for language in ("en", "de")
    }
    vocabularies = [_vocabulary(text["train", language], words) for language in ("en", "de")]
    known = [{word: number for number, word in enumerate(vocabulary)} for vocabulary in vocabularies]

    def numbers(line: str, side: int) -> list[int]:
        return [known[side].get(word, UNKNOWN) for word in WORD.findall(line)]

    pairs = {
        part: [
            (numbers(english, 0), numbers(german, 1))
            for english, german in zip(text[part, "en"], text[part, "de"], strict=True)
        ]
        for part in parts
    }
    return Corpus(pairs, {part: text[part, "de"] for part in parts}, (vocabularies[0], vocabularies[1]))


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip().lower() for line in file]


def _vocabulary(lines: Sequence[str], words: int) -> list[str]:
    counts = Counter(word for line in lines for word in WORD.findall(line))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ["<padding>", "<unknown>", "<start>", "<stop>", *ranked[: words - 4]]


def joined(words: Sequence[str]) -> str:
    """Write words as text: no space in front of punctuation."""
    return re.sub(r" ([.,!?;:)])", r"\1", " ".join(words))


def padded(sentences: Sequence[Sequence[int]]) -> Numbers:
    """Lay sentences side by side: [longest, count], short ones padded."""
    made = np.full((max(map(len, sentences)), len(sentences)), PADDING, np.int64)
    for column, sentence in enumerate(sentences):
        made[: len(sentence), column] = sentence
    return made


# -- the network ----------------------------------------------------------------------------------------------------


def network(width: int, words: tuple[int, int], seed: int, dropout: float = 0.0) -> onnx.ModelProto:
    """Make an encoder in both directions, and a decoder that attends to it (Luong et al. 2015, general score).

    Parameters
    ----------
    width : int
        Hidden units of the decoder and of the encoder's two directions together, and columns of embeddings: even.
    words : tuple of int
        In the two vocabularies.
    seed : int
        Of the weights.
    dropout : float
        In front of the output, in [0, 1).

    Returns
    -------
    onnx.ModelProto
        From ``source`` [S, N], int64, ``lengths`` [N], int32, and ``target`` [T, N], int64, which begins with the
        start, to ``logits`` [N, T, words], and the decoder's last state and cell [1, N, width].
    """
    builder = Builder(seed)
    _encoder(builder, width, words[0])
    _embedding(builder, "target.embedding", (words[1], width))
    embedded = builder.node("Gather", ["target.embedding", "target"], "target.embedded")
    y, state, cell = builder.lstm("decoder", embedded, width, width, ("first_state", "first_cell"))
    builder.store("directions", np.array([1]))
    query = builder.node(
        "Transpose",
        [
            builder.node("Squeeze", [y, "directions"], "decoded"),
        ],
        "query",
        perm=[1, 0, 2],
    )
    scores = builder.node("Add", [builder.node("MatMul", [query, "keys"], "products"), "mask"], "scores")
    weights = builder.node("Softmax", [scores], "attention", axis=-1)
    context = builder.node("MatMul", [weights, "memory"], "context")
    both = builder.node("Concat", [query, context], "both", axis=-1)
    hidden = builder.node("Tanh", [builder.dense("attended", both, 2 * width, width)], "attentional")
    if dropout:
        hidden = builder.node("Dropout", [hidden, builder.store("ratio", np.float32(dropout))], "thinned")
    builder.node("Identity", [builder.dense("output", hidden, width, words[1])], "logits")
    shape = [1, "sentences", width]
    return builder.model(
        {
            "source": (TensorProto.INT64, ["source_words", "sentences"]),
            "lengths": (TensorProto.INT32, ["sentences"]),
            "target": (TensorProto.INT64, ["target_words", "sentences"]),
        },
        {"logits": ["sentences", "target_words", words[1]], state: shape, cell: shape},
    )


def _embedding(builder: Builder, name: str, shape: tuple[int, int]) -> str:
    return builder.store(name, builder.random.uniform(-0.1, 0.1, shape))  # Zaremba et al. 2014


def _encoder(builder: Builder, width: int, words: int) -> None:
    """Add what makes ``keys`` [N, H, S], ``memory`` [N, S, H], ``mask`` [N, 1, S] and the decoder's first states."""
    _embedding(builder, "source.embedding", (words, width))
    embedded = builder.node("Gather", ["source.embedding", "source"], "source.embedded")
    y, state, cell = builder.lstm("encoder", embedded, width, width // 2, both=True, lengths="lengths")
    joined_shape = builder.store("joined", np.array([0, 0, width]))
    ordered = builder.node("Transpose", [y], "encoded", perm=[2, 0, 1, 3])
    memory = builder.node("Reshape", [ordered, joined_shape], "memory")
    key = builder.dense("key", memory, width, width, bias=False)
    builder.node("Transpose", [key], "keys", perm=[0, 2, 1])
    first_shape = builder.store("first", np.array([1, -1, width]))
    for name, last in (("first_state", state), ("first_cell", cell)):
        turned = builder.node("Transpose", [last], f"{name}.turned", perm=[1, 0, 2])
        builder.node("Reshape", [turned, first_shape], name)
    empty = builder.node("Equal", ["source", builder.store("padding", np.int64(PADDING))], "empty")
    shut, open_ = builder.store("shut", np.float32(-1e9)), builder.store("open", np.float32(0))
    penalty = builder.node("Where", [empty, shut, open_], "penalty")
    rows = builder.node("Transpose", [penalty], "penalty.rows", perm=[1, 0])
    builder.node("Unsqueeze", [rows, builder.store("middle", np.array([1]))], "mask")


# -- training and judging -------------------------------------------------------------------------------------------


def batches(pairs: Sequence[tuple[list[int], list[int]]], size: int, seed: int) -> Iterator[list[int]]:
    """Yield the numbers of pairs for ever, in batches of like lengths."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(pairs))
        made = []
        for start in range(0, len(order), 50 * size):
            pool = sorted(order[start : start + 50 * size].tolist(), key=lambda k: (len(pairs[k][1]), len(pairs[k][0])))
            made += [pool[first : first + size] for first in range(0, len(pool), size)]
        for number in random.permutation(len(made)):
            yield made[number]


def run(
    size: Size, corpus: Corpus, width: int, sparsity: float, seed: int, faster: float = 1.0
) -> tuple[int, dict[str, float]]:
    """Train one network, its learning rate times a factor; return nonzeros, and BLEU by part."""
    counts = (len(corpus.words[0]), len(corpus.words[1]))
    dropout = size.dropout * width / size.large
    module = to_torch(network(width, counts, seed, dropout)).to(DEVICE)
    torch.manual_seed(seed)
    pairs = corpus.pairs["train"]
    order = batches(pairs, size.batch, seed)

    def loss(step: int) -> Tensor:
        chosen = [pairs[number] for number in next(order)]
        target = torch.from_numpy(padded([[START, *german, STOP] for _, german in chosen])).to(DEVICE)
        source, lengths = (torch.from_numpy(array).to(DEVICE) for array in encoded([english for english, _ in chosen]))
        logits = module(source, lengths, target[:-1])[0]
        return cross_entropy(logits.flatten(0, 1), target[1:].t().flatten(), ignore_index=PADDING)

    label = f"width {width}, sparsity {sparsity:g}"
    optimizer = torch.optim.Adam(module.parameters(), lr=faster * size.rate)
    nonzeros = train(module, optimizer, loss, size.steps, sparsity, clip=1.0, embeddings=EMBEDDINGS, label=label)
    parts = {"validation": "val", "test": "test_2016_flickr"}
    return nonzeros, {name: bleu(module, corpus, part) for name, part in parts.items()}


def encoded(sentences: Sequence[Sequence[int]]) -> tuple[Numbers, npt.NDArray[np.int32]]:
    """Return what the encoder reads: words [S, N] and lengths [N]."""
    return padded(sentences), np.array([len(sentence) for sentence in sentences], np.int32)


def bleu(module: GraphModule, corpus: Corpus, part: str, batch: int = 100) -> float:
    """Translate by the most probable word at each step, in ONNX Runtime, and compare with the German text."""
    try:
        import sacrebleu  # noqa: PLC0415
    except ImportError:
        raise SystemExit("zhu-translation needs sacrebleu: pip install sacrebleu") from None
    translate = Translator(to_proto(module))
    sources = [english for english, _ in corpus.pairs[part]]
    by_length = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    translations = [""] * len(sources)
    for start in range(0, len(sources), batch):
        numbers = by_length[start : start + batch]
        for number, words in zip(numbers, translate([sources[number] for number in numbers]), strict=True):
            translations[number] = joined([corpus.words[1][word] for word in words if word != UNKNOWN])
    return float(sacrebleu.corpus_bleu(translations, [corpus.german[part]]).score)


class Translator:
    """The two halves of a trained graph in ONNX Runtime: the encoder runs once, the decoder word by word."""

    STATES = ("first_state", "first_cell")
    MEMORY = ("keys", "memory", "mask")

    def __init__(self, model: onnx.ModelProto) -> None:
        cut = Extractor(onnx.shape_inference.infer_shapes(model))
        self.encoder = _session(cut.extract_model(["source", "lengths"], [*self.MEMORY, *self.STATES]))
        self.decoder = _session(
            cut.extract_model(["target", *self.MEMORY, *self.STATES], ["logits", "decoder.state", "decoder.cell"])
        )

    def __call__(self, sentences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Translate numbers to numbers."""
        source, lengths = encoded(sentences)
        *memory, state, cell = self.encoder.run([*self.MEMORY, *self.STATES], {"source": source, "lengths": lengths})
        word = np.full((1, len(sentences)), START, np.int64)
        made: list[Numbers] = []
        done = np.zeros(len(sentences), bool)
        while len(made) < LONGEST and not done.all():
            feeds = dict(zip(self.MEMORY, memory, strict=True), target=word, first_state=state, first_cell=cell)
            logits, state, cell = self.decoder.run(["logits", "decoder.state", "decoder.cell"], feeds)
            word = logits[:, 0].argmax(1)[None]
            made.append(word[0])
            done |= word[0] == STOP
        return [_until_stop(column) for column in np.stack(made, 1).tolist()]


def _until_stop(words: list[int]) -> list[int]:
    return words[: words.index(STOP)] if STOP in words else words


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
