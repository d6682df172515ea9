"""The rows of the table: what is asked of one-shot pruning, and what to go for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One setting. `asked` and `goal` are top-1 percentages; None asks for the better of the two single kinds."""

    model: str
    kind: str
    amount: float
    asked: float | None = None
    goal: float | None = None


# model: (amount, asked, go for)
STRUCTURAL = {
    "resnet20_cifar10": [(0.20, 75.0, 78.0), (0.31, 71.0, 75.0), (0.50, 56.0, 65.0)],
    "squeezenet11_imagenet": [(0.10, 54.0, 58.0), (0.20, 46.0, 54.0), (0.30, 34.0, 48.0)],
    "mobilenet_v2_imagenet": [(0.10, 74.0, 84.0), (0.20, 52.0, 74.0), (0.30, 30.0, 60.0)],
    "shufflenet_v2_imagenet": [(0.05, 76.0, 82.0), (0.10, 65.0, 78.0)],
    "dscnn_kws": [(0.14, 82.0, 89.0), (0.28, 62.0, 84.0)],
    "lenet5_mnist": [(0.55, 98.8, 99.1)],  # at least half of the weights, and of the MACs
    "lenet300_mnist": [(0.53, 97.6, 98.1)],
}
ZEROS = {
    "resnet20_cifar10": [(0.50, 78.5, 80.0), (0.70, 64.0, 74.0), (0.80, 42.0, 60.0)],
    "squeezenet11_imagenet": [(0.50, 51.0, 57.0), (0.70, 25.0, 45.0)],
    "mobilenet_v2_imagenet": [(0.50, 60.0, 80.0)],
    "shufflenet_v2_imagenet": [(0.50, 55.0, 78.0)],
    "dscnn_kws": [(0.30, 88.0, 90.0), (0.50, 72.0, 85.0)],
    "lenet5_mnist": [(0.90, 98.7, 99.0)],
    "lenet300_mnist": [(0.90, 96.5, 97.5)],
}
BOTH = 0.5
MODELS = tuple(STRUCTURAL)


def rows(models: tuple[str, ...], quick: bool) -> list[Row]:
    """The rows of `models`, grouped by model; `quick` keeps the smallest amount of each kind."""
    last = 1 if quick else None
    found = []
    for model in models:
        for kind, table in (("structural", STRUCTURAL), ("zeros", ZEROS)):
            found += [Row(model, kind, amount, asked, goal) for amount, asked, goal in table[model][:last]]
        found.append(Row(model, "both", BOTH))
    return found
