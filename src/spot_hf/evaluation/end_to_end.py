"""`spot-hf benchmark --end_to_end`: from image files to answers, through the pipelines that people call.

Ours and transformers' own run on the same files, in alternating rounds, so that what slows the machine slows both; ratios are
medians of the rounds' own. Large files are made from the given ones by a rule: enlarged to 12 megapixels, saved as JPEG.
"""

import functools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from PIL import Image
from tqdm import tqdm
from transformers import AutoImageProcessor, pipeline
from transformers.image_utils import load_image
from transformers.utils import is_torchvision_available

from ..data.files import image_files
from ..hub.loading import open_model
from ..image_processing_spot_vit import SpotViTImageProcessor
from ..jobs.files import write_json
from ..jobs.process import synchronize
from ..pipeline_spot_vit import SpotImageClassificationPipeline
from ..placement import place_windows


if TYPE_CHECKING:
    from .benchmark import BenchmarkArguments


logger = logging.getLogger(__name__)

LARGE_PIXELS = 12_000_000
LARGE_QUALITY = 90  # of the JPEG
BATCH_SIZES = (1, 16)
ORDINARY = "transformers"


@dataclass(kw_only=True)
class EndToEndRow:
    """Of a pipeline, on files of a kind, at a batch size. Times are per image, in milliseconds."""

    name: str
    files: str
    batch_size: int
    ms: float
    speedup: float  # to transformers' pipeline: median of each round's own ratio
    p50: float | None = None  # of single calls, at batch size 1
    p95: float | None = None
    stages: dict[str, float] = field(default_factory=dict)  # medians; `rest` is what no stage accounts for


@dataclass(frozen=True)
class Contender:
    """A pipeline, and how it is called."""

    name: str
    classifier: Any
    parameters: dict[str, Any]

    def __call__(self, files: Sequence[str], batch_size: int) -> list[float]:
        """Seconds: of each call at batch size 1, else of the one call for all."""
        device = self.classifier.model.device
        seconds = []
        for part in [[one] for one in files] if batch_size == 1 else [list(files)]:
            synchronize(device)
            began = time.perf_counter()
            self.classifier(part, batch_size=batch_size, top_k=1, **self.parameters)
            synchronize(device)
            seconds.append(time.perf_counter() - began)
        return seconds

    def stages(self, files: Sequence[str], batch_size: int) -> dict[str, float]:
        """Seconds per image of what a call consists of, each measured alone."""
        processor, model = self.classifier.image_processor, self.classifier.model
        found: dict[str, float] = {}
        contents = _timed(found, "read", lambda: [Path(one).read_bytes() for one in files])
        is_spot = isinstance(self.classifier, SpotImageClassificationPipeline)
        placed = {name: value for name, value in self.parameters.items() if name != "decode"}
        if is_spot:
            decode = self.parameters.get("decode")
            images = _timed(found, "decode", lambda: [processor.open_image(one, decode=decode) for one in contents])
            placed["return_windows"] = self.classifier.cuts_windows(self.parameters)
        else:
            images = _timed(found, "decode", lambda: [load_image(Image.open(BytesIO(one))) for one in contents])
        inputs = _timed(found, "processor", lambda: [processor(one, return_tensors="pt", **placed) for one in images])
        if is_spot and "num_tokens" in placed:  # the processor does it, too
            seen, count = torch.zeros(()).expand(3, *model.config.image_height_width), placed["num_tokens"]
            name = placed.get("placement", "isotropic")
            place = functools.partial(place_windows, name, count, seen, model.config.patch_size)
            _timed(found, "place", lambda: [place() for _ in images])
            found["processor"] -= found["place"]
        # As pipelines cast: pixels alone.
        kinds = {"pixel_values": model.dtype, "windows": model.dtype, "coordinates": torch.float32}
        kinds = {name: dtype for name, dtype in kinds.items() if name in inputs[0]}
        with torch.inference_mode():
            batches = []
            for start in range(0, len(inputs), batch_size):
                part = inputs[start : start + batch_size]
                batches.append({
                    name: torch.cat([one[name] for one in part]).to(model.device, dtype) for name, dtype in kinds.items()
                })  # fmt: skip

            def run() -> None:
                for batch in batches:
                    model(**batch)
                synchronize(model.device)

            run()
            _timed(found, "model", run)
        return {name: seconds / len(files) for name, seconds in found.items()}


def _timed(found: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = function()
    found[name] = time.perf_counter() - began
    return result


def run_end_to_end(arguments: "BenchmarkArguments") -> dict[str, Any]:
    """
    Times pipelines and prints two tables: speed, and what the time goes to.

    Args:
        arguments (`BenchmarkArguments`): `end_to_end` names the images; `num_tokens` are placed isotropically.

    Returns:
        `dict`: what the JSON holds; times in milliseconds per image.
    """
    assert arguments.end_to_end is not None
    files = list(image_files(arguments.end_to_end, "end_to_end"))[: arguments.num_images]
    for name in files:
        if not Path(name).is_file():
            raise ValueError(f"`end_to_end` must be files or directories of images; got {name!r}, which is no file")
    contenders = _contenders(arguments)
    with tempfile.TemporaryDirectory() as directory:
        large = [enlarge(one, Path(directory) / f"{i}.jpg") for i, one in enumerate(files[: arguments.num_large_images])]
        kinds = {"as given": files, "12 megapixels": large}
        rows = []
        for kind, of_kind in kinds.items():
            for batch_size in BATCH_SIZES:
                rows += _measure(contenders, kind, of_kind, batch_size, arguments.repeats)
    result = {
        **arguments.conditions(),
        "files": {"as given": _describe(files)},
        "num_images": {kind: len(of_kind) for kind, of_kind in kinds.items()},
        "transformers": transformers.__version__,
        "rows": [asdict(row) for row in rows],
    }
    logger.info(_table(result, rows))
    if arguments.output_file is not None:
        write_json(arguments.output_file, result)
        logger.info("written to %s", arguments.output_file)
    return result


def _contenders(arguments: "BenchmarkArguments") -> list[Contender]:
    model = arguments.spot_vit()
    if arguments.model is not None:
        processor = open_model(arguments.model).load_image_processor()
    else:
        processor = SpotViTImageProcessor(size={"shortest_edge": 248}, do_center_crop=True)
    ours = SpotImageClassificationPipeline(model=model, image_processor=processor, device=arguments.device)
    if arguments.baseline is not None:
        ordinary_processor = AutoImageProcessor.from_pretrained(arguments.baseline)
    else:  # the same recipe
        names = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor")
        settings = {name: getattr(processor, name) for name in (*names, "do_normalize", "image_mean", "image_std")}
        ordinary = "BitImageProcessor" if is_torchvision_available() else "BitImageProcessorPil"
        ordinary_processor = getattr(transformers, ordinary)(**settings, do_convert_rgb=True)
    theirs = pipeline(
        "image-classification",
        model=arguments.ordinary(model.config),
        image_processor=ordinary_processor,
        device=arguments.device,
    )
    found = [Contender(ORDINARY, theirs, {}), Contender("spot full grid", ours, {"placement": "grid"})]
    for count in arguments.num_tokens:
        found.append(Contender(f"spot {count}", ours, {"num_tokens": count, "placement": "isotropic"}))
        found.append(Contender(f"spot {count}, scaled", ours, {**found[-1].parameters, "decode": "scaled"}))
    return found


def _measure(
    contenders: Sequence[Contender], kind: str, files: Sequence[str], batch_size: int, repeats: int
) -> list[EndToEndRow]:
    """Each contender once a round, after one to warm up."""
    seconds: dict[str, list[list[float]]] = {one.name: [] for one in contenders}
    stages: dict[str, list[dict[str, float]]] = {one.name: [] for one in contenders}
    with tqdm(total=(repeats + 1) * len(contenders), unit="run", desc=f"{kind}, batch {batch_size}") as progress:
        for round_ in range(repeats + 1):
            for one in contenders:
                timed = one(files, batch_size)
                parts = one.stages(files, batch_size)
                if round_ > 0:
                    seconds[one.name].append(timed)
                    stages[one.name].append(parts)
                progress.update()
    rows = []
    for one in contenders:
        totals = {name: [sum(timed) / len(files) for timed in rounds] for name, rounds in seconds.items()}
        speedup = statistics.median(a / b for a, b in zip(totals[ORDINARY], totals[one.name], strict=True))
        ms = 1000 * statistics.median(totals[one.name])
        medians = {part: 1000 * statistics.median(each[part] for each in stages[one.name]) for part in stages[one.name][0]}
        row = EndToEndRow(name=one.name, files=kind, batch_size=batch_size, ms=ms, speedup=speedup)
        row.stages = {**medians, "rest": ms - sum(medians.values())}
        if batch_size == 1:
            calls = 1000 * np.concatenate(seconds[one.name])
            row.p50, row.p95 = (float(np.percentile(calls, share)) for share in (50, 95))
        rows.append(row)
    return rows


def enlarge(name: str, path: Path, num_pixels: int = LARGE_PIXELS) -> str:
    """The same picture with so many pixels, 12 million as a telephone's, as a JPEG."""
    image = Image.open(name).convert("RGB")
    factor = math.sqrt(num_pixels / (image.width * image.height))
    size = round(image.width * factor), round(image.height * factor)
    image.resize(size, Image.Resampling.BICUBIC).save(path, format="JPEG", quality=LARGE_QUALITY)
    return str(path)


def _describe(files: Sequence[str]) -> dict[str, float]:
    sizes = np.array([Image.open(one).size for one in files])
    return {"mean_width": float(sizes[:, 0].mean()), "mean_height": float(sizes[:, 1].mean())}


def _table(result: dict[str, Any], rows: Sequence[EndToEndRow]) -> str:
    size = result["files"]["as given"]
    lines = [
        f"{result['model']}, {result['dtype']}, {result['device']}, {result['num_threads']} threads; "
        f"{result['num_images']['as given']} files of {size['mean_width']:.0f} × {size['mean_height']:.0f} pixels on average, "
        f"{result['num_images']['12 megapixels']} of 12 megapixels; medians of {result['repeats']} alternating rounds",
        "",
        "| files | batch | pipeline | ms/image | to transformers' | p50 | p95 |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        latencies = [f"{one:.1f}" if one is not None else "" for one in (row.p50, row.p95)]
        lines.append(
            f"| {row.files} | {row.batch_size} | {row.name} | {row.ms:.2f} | {row.speedup:.2f}× | {' | '.join(latencies)} |"
        )
    names = ["read", "decode", "place", "processor", "model", "rest"]
    lines += [
        "",
        "What the time goes to, ms/image. `processor` resizes and normalizes and, for few tokens, cuts the windows out; "
        "otherwise the model does. A stage alone can be slower or faster than within the pipeline: `rest` is the difference.",
        "",
        f"| files | batch | pipeline | {' | '.join(names)} |",
        f"|---|---:|---|{'---:|' * len(names)}",
    ]
    for row in rows:
        parts = [f"{row.stages[name]:.2f}" if name in row.stages else "" for name in names]
        lines.append(f"| {row.files} | {row.batch_size} | {row.name} | {' | '.join(parts)} |")
    return "\n".join(lines)
