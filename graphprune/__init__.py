"""graphprune: prune trained ONNX graphs, with proof."""
