"""What Hugging Face Inference Endpoints run: a model's own pipeline, behind HTTP.

The endpoint's toolkit finds this file in the model's repository, makes one `EndpointHandler(path)`, and calls it with the body
of each request; what it raises becomes an answer with status 400. The file needs torch, transformers and Pillow, and imports
nothing that lies beside it.

Requests come from strangers. So an image is a file's content, and never an address or a path; a placement is a name, and
nothing that is imported; and what a request may cost is bounded.
"""

import base64
import binascii
import json
import math
import re
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import pipeline
from transformers.utils.versions import require_version


# What the code beside this file needs, and an older container lacks: a repository says so in its `requirements.txt`.
REQUIREMENTS = ("torch>=2.6", "transformers>=5.10.1")

# By how the name of a model's class ends: its pipeline.
TASKS = {
    "ForImageClassification": "spot-image-classification",
    "ForZeroShotImageClassification": "spot-zero-shot-image-classification",
    "ForSemanticSegmentation": "spot-image-segmentation",
}
FEATURES = "image-feature-extraction"  # of all others

# Those of Pillow's that need no other program, and that the toolkit knows.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 2**27  # of all images of a request: 400 MB when decoded
MAX_SCORES = 2**30  # of a segmentation, one per class and pixel: 4 GB
MAX_RATIO = 100  # of an image's sides: recipes that resize the short one make the long one longer
MAX_IMAGES = 64
MAX_TOKENS = 4096  # per image, in all looks: attention grows by the square
MAX_LABELS = 1000  # a text is embedded for each
MAX_TEXT = 1000  # letters of a label, or of what is put around it
MAX_NUMBER = 2.0**63
FUNCTIONS = ("softmax", "sigmoid", "none")
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)

NUMBERS, TEXT, FLAG, LABELS, TEMPLATE = "numbers", "text", "flag", "labels", "template"
PLACES = {
    "num_tokens": NUMBERS,
    "placement": TEXT,
    "coordinates": NUMBERS,
    "window_scales": NUMBERS,
    "seed": NUMBERS,
    "outside": TEXT,
    "saliency": NUMBERS,
    "boxes": NUMBERS,
}
CLASSES = {
    **PLACES,
    "confidence": NUMBERS,
    "max_mean_tokens": NUMBERS,
    "merge_tokens": NUMBERS,
    "top_k": NUMBERS,
    "function_to_apply": TEXT,
    "return_coordinates": FLAG,
}
# What a request to each pipeline may have as its `parameters`. The last four of segmentation are the stock pipeline's, which
# the Hub's client can send along.
PARAMETERS = {
    "spot-image-classification": CLASSES,
    "spot-zero-shot-image-classification": {**CLASSES, "candidate_labels": LABELS, "hypothesis_template": TEMPLATE},
    "spot-image-segmentation": {
        **PLACES,
        "return_coordinates": FLAG,
        "subtask": TEXT,
        "threshold": NUMBERS,
        "mask_threshold": NUMBERS,
        "overlap_mask_area_threshold": NUMBERS,
    },
    FEATURES: {**{name: kind for name, kind in PLACES.items() if name not in ("saliency", "boxes")}, "pool": FLAG},
}


class EndpointHandler:
    """
    Answers requests to one model.

    Args:
        path (`str`): the directory of the model.

    Raises:
        `ImportError`: a library is too old. `OSError`: there is no model.
    """

    def __init__(self, path: str = ""):
        for requirement in REQUIREMENTS:
            require_version(requirement, f"Write {requirement} into `requirements.txt`, beside `handler.py`.")
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        architecture = (config.get("architectures") or [""])[0]
        self.task = next((task for ending, task in TASKS.items() if architecture.endswith(ending)), FEATURES)
        device = 0 if torch.cuda.is_available() else -1
        self.pipeline: Any = pipeline(self.task, model=str(path) or ".", device=device, trust_remote_code=True)
        self.max_pixels = MAX_PIXELS
        if self.task == "spot-image-segmentation":
            self.max_pixels = min(MAX_PIXELS, MAX_SCORES // self.pipeline.model.config.num_labels)
        self._lock = threading.Lock()  # a zero-shot pipeline keeps the texts of its last call

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """
        Args:
            data (`dict`): the body of a request. `"inputs"`: an image, as a file's `bytes`, these in base64, with or without
                `data:image/...;base64,` before them, or a `PIL.Image`; or a list of these. `"parameters"` (*optional*): by
                name, what the model's pipeline takes, see `PARAMETERS`.

        Returns:
            `list`: what the pipeline answers, of lists, dicts, texts and numbers alone: a mask is a PNG file in base64. Of a
            list of images, a list of such answers.

        Raises:
            `ValueError`: what the request has is not accepted.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError(f"a request must have `inputs`, and may have `parameters`; got {_shorten(data)}")
        unknown = sorted(set(data) - {"inputs", "parameters", "options"})  # the last is of the Hub's own clients
        if unknown:
            raise ValueError(
                f"a request may have `inputs` and `parameters`; got {unknown[0]!r}: does it belong into `parameters`?"
            )
        parameters = self._read_parameters(data.get("parameters"))
        images = _read_images(data["inputs"], self.max_pixels)
        if self.task == FEATURES:
            pool = parameters.pop("pool", True)
            parameters = {"image_processor_kwargs": parameters, "pool": pool}
        with self._lock:
            return _plain(self.pipeline(images, **parameters))

    def _read_parameters(self, given: Any) -> dict[str, Any]:
        accepted = PARAMETERS[self.task]
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise ValueError(f"`parameters` must be an object of names and values; got {_shorten(given)}")
        for name in given:
            if name not in accepted:
                raise ValueError(f"`parameters` of this model may have {', '.join(accepted)}; got {_shorten(name)}")
        return {name: _read(name, value, accepted[name]) for name, value in given.items() if value is not None}


# ------------------------------------------------------------------------------------------------------------------ inputs


def _read_images(inputs: Any, max_pixels: int) -> Any:
    if not isinstance(inputs, list):
        return _read_image(inputs, "inputs", 0, max_pixels)
    if not inputs:
        raise ValueError("`inputs` must have an image; got an empty list")
    if len(inputs) > MAX_IMAGES:
        raise ValueError(f"`inputs` may be at most {MAX_IMAGES} images; got {len(inputs)}")
    images: list[Image.Image] = []
    for index, one in enumerate(inputs):
        before = sum(image.width * image.height for image in images)
        images.append(_read_image(one, f"inputs[{index}]", before, max_pixels))
    return images


def _read_image(given: Any, name: str, before: int, max_pixels: int) -> Image.Image:
    """An image, decoded: whatever is wrong with it is found here. `before`: how many pixels the request has already."""
    if isinstance(given, Image.Image):
        _check_size(given, name, before, max_pixels)
        return given
    content = _from_base64(given, name) if isinstance(given, str) else given
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"`{name}` must be an image: a file's bytes, or these in base64; got {type(given).__name__}")
    accepted = f"`{name}` must be an image file that can be read, one of {', '.join(FORMATS)}; got {len(content)} bytes"
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except Exception as error:  # any of Pillow's, and of what its plugins stumble over
        raise ValueError(f"{accepted}: {_reason(error)}") from None
    _check_size(image, name, before, max_pixels)
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"{accepted}: {_reason(error)}") from None
    return image


def _from_base64(text: str, name: str) -> bytes:
    prefix = DATA_URL.match(text)
    try:
        return base64.b64decode(text[prefix.end() if prefix else 0 :], validate=True)
    except (binascii.Error, ValueError):  # the latter where it is not ASCII
        raise ValueError(
            f"`{name}` as a text must be an image file in base64; got {_shorten(text)}. Addresses and paths are not read"
        ) from None


def _check_size(image: Image.Image, name: str, before: int, max_pixels: int) -> None:
    width, height = image.size
    if before + width * height > max_pixels:
        raise ValueError(
            f"this model takes {max_pixels:,} pixels in all images of a request together; got {width} × {height} at `{name}`"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"`{name}` may be at most {MAX_RATIO} times as wide as it is high, or as high as wide; got {width} × {height}"
        )


def _reason(error: Exception) -> str:
    return "it is none" if isinstance(error, Image.UnidentifiedImageError) else _shorten(str(error) or type(error).__name__)


# -------------------------------------------------------------------------------------------------------------- parameters


def _read(name: str, value: Any, kind: str) -> Any:
    if kind in (NUMBERS, FLAG, LABELS) and isinstance(value, str):
        value = _from_query(value, kind)
    if kind == FLAG and not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false; got {_shorten(value)}")
    if kind == NUMBERS and not (name == "window_scales" and value == "cover") and not _are_numbers(value):
        raise ValueError(f"`{name}` must be a number, or a list of them; got {_shorten(value)}")
    if kind in (TEXT, TEMPLATE) and not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text; got {_shorten(value)}")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"`{name}` may be at most {MAX_TEXT} letters; got {len(value)}")
    if kind == TEXT and not re.fullmatch(r"\w{1,40}", value, re.ASCII):
        raise ValueError(f"`{name}` must be a name of letters, digits and underscores; got {_shorten(value)}")
    if name == "seed" and not isinstance(value, int):
        raise ValueError(f"`seed` must be an integer; got {_shorten(value)}")
    if name == "function_to_apply" and value not in FUNCTIONS:
        raise ValueError(f"`{name}` must be one of {', '.join(FUNCTIONS)}; got {value!r}")
    if kind == TEMPLATE and (value.count("{}") != 1 or set("{}") & set(value.replace("{}", ""))):
        raise ValueError(f"`{name}` must be a text with one place {{}} for a label, and no other brace; got {_shorten(value)}")
    if kind == LABELS and isinstance(value, list) and len(value) > MAX_LABELS:
        raise ValueError(f"`{name}` may be at most {MAX_LABELS}; got {len(value)}")
    if kind == LABELS and any(isinstance(one, str) and len(one) > MAX_TEXT for one in _listed(value)):
        raise ValueError(f"`{name}` must be texts of at most {MAX_TEXT} letters; got {max(map(len, _listed(value)))}")
    if name in ("num_tokens", "coordinates"):
        _check_number_of_tokens(name, value)
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _from_query(text: str, kind: str) -> Any:
    """Of the query of an address, values come as texts: JSON, or labels with commas between them."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return [one.strip() for one in text.split(",")] if kind == LABELS else text


def _are_numbers(value: Any, depth: int = 3) -> bool:
    """Finite ones, or lists of these, as deep as sets of coordinates of several images."""
    if isinstance(value, list):
        return depth > 0 and all(_are_numbers(one, depth - 1) for one in value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < MAX_NUMBER and not math.isnan(value)


def _check_number_of_tokens(name: str, value: Any) -> None:
    """As far as there are numbers and sets where they belong: of the rest, the pipeline says what is wrong."""
    if name == "num_tokens":
        several = _listed(value)
        if any(isinstance(one, (int, float)) and one < 1 for one in several):
            raise ValueError(f"`num_tokens` must be positive integers; got {_shorten(value)}")
        count = sum(one for one in several if isinstance(one, (int, float)))
    else:  # one set, or one per image
        sets = value if isinstance(value, list) else []
        first = sets[0] if sets else None
        are_several = isinstance(first, list) and bool(first) and isinstance(first[0], list)
        count = max(len(one) for one in sets if isinstance(one, list)) if are_several else len(sets)
    if count > MAX_TOKENS:
        raise ValueError(f"`{name}` may be at most {MAX_TOKENS} tokens in an image; got {count}")


# ----------------------------------------------------------------------------------------------------------------- answers


def _plain(value: Any) -> Any:
    """With what JSON has no form for, in a form that it has."""
    if isinstance(value, Image.Image):
        file = BytesIO()
        value.save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode("ascii")
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _shorten(value: Any) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"
    return text if len(text) <= 80 else f"{text[:77]}..."


__all__ = ["EndpointHandler"]
