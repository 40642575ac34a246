"""Smaller weights: int8 by ONNX Runtime's dynamic quantization."""

import logging
import tempfile
from pathlib import Path

from .files import check_installed


# Of modules whose products are of positions: rounded to 8 bits they would move tokens.
KEPT = ("position_embeddings", "rotary_embeddings", "placer")


def quantize_int8(path: Path, target: Path) -> None:
    """
    Writes an ONNX model with the weights of its linear layers in int8, one scale per channel; what goes into them is quantized
    as it comes, one scale per tensor. Position embeddings stay float32.

    Args:
        path (`Path`): the model in float32.
        target (`Path`): where to write.
    """
    check_installed("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / path.name
        quant_pre_process(path, prepared, skip_symbolic_shape=True, skip_optimization=True)
        nodes = onnx.load(prepared, load_external_data=False).graph.node
        kept = [node.name for node in nodes if any(part in entry.value for entry in node.metadata_props for part in KEPT)]
        logger = logging.getLogger()
        level = logger.level
        logger.setLevel(logging.ERROR)  # it advises, on the root logger, what was done
        try:
            quantize_dynamic(
                prepared,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=kept,
            )
        finally:
            logger.setLevel(level)
