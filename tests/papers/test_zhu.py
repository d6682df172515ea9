"""The networks of Zhu & Gupta's tables: valid, in torch what they are in ONNX Runtime, and as large as stated."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

from graphprune.finetune import to_torch  # noqa: E402

PAPERS = Path(__file__).resolve().parents[2] / "benchmarks" / "papers"
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(PAPERS))


def module_of(name):
    return importlib.import_module(name)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def words(high, *shape):
    return RNG.integers(4, high, shape)


def images(kind, **options):
    return module_of("networks").SCALED[kind](0.25, 0, **options), {"image": normal(2, 3, 32, 32)}


def text(dropout):
    states = {f"{kind}{layer}": normal(1, 3, 8) for layer in range(2) for kind in ("state", "cell")}
    model = module_of("language").network(8, 11, 0, dropout=dropout)
    return model, {"text": words(11, 6, 3), **states}


def sentences():
    source = words(20, 5, 3)
    source[3:, 1] = source[1:, 2] = 0
    feeds = {"source": source, "lengths": np.array([5, 3, 1], np.int32), "target": words(30, 4, 3)}
    return module_of("translation").network(8, (20, 30), 0, dropout=0.2), feeds


CASES = {
    "mobilenet": lambda: images("mobilenet"),
    "mobilenet, quick": lambda: images("mobilenet", quick=True),
    "inception": lambda: images("inception"),
    "inception, quick": lambda: images("inception", quick=True),
    "language": lambda: text(0.0),
    "language, dropout": lambda: text(0.3),
    "translation": sentences,
}


@pytest.mark.parametrize("case", CASES)
def test_torch_and_onnx_runtime_compute_the_same(case):
    model, feeds = CASES[case]()
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)
    with torch.no_grad():
        got = to_torch(model).eval()(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    for want, have in zip(expected, got if isinstance(got, tuple) else (got,), strict=True):
        assert want.std() > 0
        np.testing.assert_allclose(have.numpy(), want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_mobilenet_has_the_parameters_that_the_paper_counts():
    """4.21 million with the classifier for 1,000 classes of 1,024 inputs; here there are 10."""
    model = module_of("networks").mobilenet(1.0, 0)
    # Howard et al. count 4.2 million: 864 + 44,640 depthwise + 3,139,584 pointwise, and scales, shifts, classifier.
    assert module_of("graphs").parameters(model) == 864 + 44_640 + 3_139_584 + 2 * 10_944 + 10_250


def test_the_language_model_has_the_parameters_of_its_layers():
    model, _ = text(0.0)
    layers = 4 * 8 * (11 + 8 + 2) + 4 * 8 * (8 + 8 + 2)
    assert module_of("graphs").parameters(model) == layers + 8 * 11 + 11


def test_the_small_network_is_the_narrowest_of_enough_parameters():
    graphs, language = module_of("graphs"), module_of("language")
    build = lambda width: language.network(width, 11, 0)  # noqa: E731
    width = graphs.equal_width(build, 2_000, range(2, 40))
    assert graphs.parameters(build(width - 1)) < 2_000 <= graphs.parameters(build(width))


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_training_leaves_the_nonzeros_that_it_says(sparsity):
    gradual, translation = module_of("gradual"), module_of("translation")
    model, feeds = sentences()
    module = to_torch(model)
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []

    def loss(step):
        logits = module(**tensors)[0]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensors["target"].t().flatten()))
        return losses[-1]

    nonzeros = gradual.train(module, optimizer, loss, 40, sparsity, clip=1.0, embeddings=translation.EMBEDDINGS)
    total = sum(parameter.numel() for parameter in module.parameters())
    biases = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() == 1)
    pruned = [parameter for name, parameter in module.named_parameters() if parameter.dim() > 1 and name[-1] != "B"]
    assert losses[-1] < 0.8 * losses[0]
    assert not module.training
    zeros = sum(int((parameter == 0).sum()) for parameter in pruned)
    assert nonzeros == total - zeros
    assert zeros == pytest.approx(sparsity * sum(parameter.numel() for parameter in pruned), abs=len(pruned))
    assert biases < nonzeros


def test_depthwise_and_first_convolutions_stay_dense():
    convolutional, gradual = module_of("convolutional"), module_of("gradual")
    networks = module_of("networks")
    model = networks.mobilenet(0.125, 0, quick=True)
    module, dense = to_torch(model), convolutional.left_dense(model)
    assert len(dense) == 1 + len(networks.MOBILENET_QUICK)
    image, labels = torch.from_numpy(normal(4, 3, 32, 32)), torch.arange(4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    gradual.train(
        module, optimizer, lambda step: torch.nn.functional.cross_entropy(module(image), labels), 20, 0.9, dense=dense
    )
    assert all(bool((module.parameter_of(name) != 0).all()) for name in dense)
    pointwise = module.parameter_of("pointwise2.weight")
    assert int((pointwise == 0).sum()) == round(0.9 * pointwise.numel())


def test_translation_by_halves_is_translation_by_the_whole():
    """The encoder once and the decoder word by word find what the whole graph finds, given what was found so far."""
    translation = module_of("translation")
    model = translation.network(8, (20, 30), 4)
    sources = [[4, 5, 6, 7], [8, 9], [10]]
    got = translation.Translator(model)(sources)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for source, translated in zip(sources, got, strict=True):
        words_, lengths = translation.encoded([source])
        prefix = [translation.START]
        for word in translated:
            target = np.array(prefix)[:, None]
            logits = session.run(["logits"], {"source": words_, "lengths": lengths, "target": target})[0]
            assert int(logits[0, -1].argmax()) == word
            prefix.append(word)
        assert 0 < len(translated) <= translation.LONGEST


def test_words_become_numbers_and_text_again():
    translation = module_of("translation")
    assert (
        translation.joined(translation.WORD.findall("ein mann, der t-shirts trägt.")) == "ein mann, der t-shirts trägt."
    )
    np.testing.assert_array_equal(translation.padded([[5, 6, 7], [8]]), [[5, 8], [6, 0], [7, 0]])
    pairs = [([4] * (k % 7 + 1), [5] * (k % 5 + 1)) for k in range(23)]
    order = translation.batches(pairs, 4, 0)
    first = [next(order) for _ in range(6)]
    assert sorted(number for batch in first for number in batch) == list(range(23))
