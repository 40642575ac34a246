"""Out of PyTorch: a SpotViT as a file that other runtimes take, and ONNX Runtime behind the same call."""

from .export import export_model
from .runtime import OnnxSpotViT


__all__ = ["OnnxSpotViT", "export_model"]
