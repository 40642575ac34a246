"""Smaller weights: int8, by the operator MatMulNBits of ONNX Runtime."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import check_installed
from .graph import rename_external_data


# So many weights of an output share a scale, and so do the activations that meet them. One scale for all activations of a
# layer, as ONNX Runtime's dynamic quantization has, is spoilt by the few large ones after a ViT's GELU, and lets an image's
# result depend on its batch mates. docs/results/export.md has the comparison.
BLOCK_SIZE = 32
# Of the operator: products in int8.
ACCURACY_LEVEL = 4
# Of modules whose products are of positions: rounded to 8 bits they would move tokens.
KEPT = ("position_embeddings", "rotary_embeddings", "placer")
# Protocol Buffers end at 2 GiB; beyond this, weights lie beside the file.
LARGEST_FILE = 1.8e9


def quantize_int8(path: Path, target: Path) -> None:
    """
    Writes an ONNX model with the weights of its linear layers in int8, one scale for each [`BLOCK_SIZE`] of them. What goes
    into such a layer is quantized as it comes, each token by itself. Stay float32: products of positions, attention's, which
    have no weights, and what is computed once per image, such as a classifier's logits.

    Args:
        path (`Path`): the model in float32.
        target (`Path`): where to write.
    """
    check_installed("onnx", "onnxscript", "onnxruntime")
    import onnx

    with _quiet_root():
        from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

        model = onnx.load(path)
        scopes = {node.name: " ".join(one.value for one in node.metadata_props) for node in model.graph.node}
        kept = [name for name, scope in scopes.items() if any(part in scope for part in KEPT)]
        config = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=ACCURACY_LEVEL, bits=8, op_types_to_quantize=("MatMul",)
        )
        quantizer = MatMulNBitsQuantizer(model, nodes_to_exclude=kept, algo_config=config)
        quantizer.process()
        num_bytes = sum(len(tensor.raw_data) for tensor in quantizer.model.model.graph.initializer)
        quantizer.model.save_model_to_file(str(target), use_external_data_format=num_bytes > LARGEST_FILE)
    rename_external_data(target)


@contextmanager
def _quiet_root() -> Iterator[None]:
    """The quantizer gives the root logger a handler and tells it about each node: undone."""
    logger = logging.getLogger()
    level, handlers = logger.level, list(logger.handlers)
    own = logging.getLogger("onnxruntime.quantization")
    own_level = own.level
    logger.setLevel(logging.ERROR)
    own.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        own.setLevel(own_level)
        logger.handlers[:] = handlers
