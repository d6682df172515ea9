"""Shapes of tensors, and what the graph computes of shapes: beyond what ONNX infers."""
