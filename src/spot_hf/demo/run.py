"""
`spot-hf demo`: exports a model, writes a page on which its tokens are dragged, and serves it or makes it a Space.

```
spot-hf demo --model runs/spot-vit-tiny --image photos/     # about a minute, then http://127.0.0.1:7860
```
"""

import json
import logging
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..export.export import export_model
from ..export.files import FILES, FOLDER, PLACER, check_installed
from ..hub.cards import space_card
from ..hub.loading import ModelSource, open_model
from ..hub.uploads import push_folder
from ..jobs.directory import JobDirectory, Ledger
from ..jobs.files import LEDGER, replaced_directory, write_json
from ..jobs.versions import public_name, versions
from .arguments import DemoArguments
from .cost import cost_coefficients, placer_cost
from .examples import Example, examples_of
from .npm import FILES as RUNTIME_FILES
from .npm import NOTICE, PACKAGE, VERSION, onnxruntime_web
from .server import HEADERS, PageServer


logger = logging.getLogger(__name__)

PAGE = "site.json"  # what the page knows of its model and its examples
EXAMPLES = "examples"
RUNTIME = "ort"
PAGE_FILES = {one.name: one for one in sorted(Path(__file__).with_name("page").iterdir())}
LARGEST = 1.5 * 2**30  # bytes of weights that torch writes into an ONNX file, and not beside it


def run_demo(arguments: DemoArguments) -> None:
    """
    Writes the page, where it is not there yet, and serves it until it is interrupted, or publishes it.

    Raises:
        `ValueError`: an argument is wrong, no classifier, or another page in `output_dir`. `OSError`: a port in use, no such
            file, or the npm registry cannot be reached. [`ExportError`]: a model that cannot be exported.
    """
    arguments.check()
    output_dir = Path(arguments.output_dir).expanduser().resolve()
    server = None if arguments.no_serve or arguments.push_to_hub else PageServer(output_dir, arguments.port)
    try:
        write_page(arguments, output_dir)
        if arguments.push_to_hub and arguments.hub_space_id:
            url = push_folder(
                output_dir,
                arguments.hub_space_id,
                private=arguments.hub_private,
                message=f"Demo of {public_name(arguments.model)}",
                repo_type="space",
                space_sdk="static",
                ignore=[LEDGER],
                replace=[f"{EXAMPLES}/*", f"{FOLDER}/*", f"{RUNTIME}/*", "*.mjs"],
            )
            logger.info("published at %s", url)
        elif server is not None:
            logger.info("open %s in a browser (Ctrl+C ends)", server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                logger.info("ended; the page is in %s", arguments.output_dir)
    finally:
        if server is not None:
            server.server_close()


def write_page(arguments: DemoArguments, output_dir: Path) -> None:
    """Writes a folder that any web server serves; one that is there, of the same model and examples, stays."""
    source = open_model(arguments.model, arguments.revision)
    image_processor = source.load_image_processor()
    _check_model(source, image_processor)
    examples = examples_of(arguments, list(source.config.id2label.values()))
    pictures = [example.png() for example in examples]
    parameters = _parameters(arguments, source, examples, pictures)
    if not arguments.overwrite_output_dir and (output_dir / LEDGER).exists():
        if JobDirectory(output_dir).ledger.parameters != parameters:
            raise ValueError(
                f"`output_dir` {arguments.output_dir!r} holds another page: of another model, other examples or another "
                "version of spot_hf. Give another directory, or `overwrite_output_dir` to replace it"
            )
        logger.info("the page is in %s already", arguments.output_dir)
        return
    inputs = [arguments.model, *arguments.image, *([arguments.coordinates] if arguments.coordinates else [])]
    with replaced_directory(output_dir, arguments.overwrite_output_dir, inputs=inputs) as folder:
        check_installed("onnx", "onnxscript", "onnxruntime")
        runtime = onnxruntime_web()
        logger.info("exporting %s ...", public_name(arguments.model))
        page = {**_page(source, examples), **_write_model(source, image_processor, folder, arguments.quantize)}
        for name, path in PAGE_FILES.items():
            shutil.copyfile(path, folder / name)
        (folder / RUNTIME).mkdir()
        for name in RUNTIME_FILES:
            shutil.copyfile(runtime / name, folder / RUNTIME / name)
        (folder / RUNTIME / "NOTICE").write_text(NOTICE)
        (folder / EXAMPLES).mkdir()
        for number, picture in enumerate(pictures):
            (folder / EXAMPLES / f"{number}.png").write_bytes(picture)
        write_json(folder / PAGE, page)
        (folder / "README.md").write_text(space_card(page, HEADERS), encoding="utf-8")
        write_json(folder / LEDGER, Ledger(parameters=parameters, versions=versions("onnxruntime")).to_json())
    size = sum(path.stat().st_size for path in output_dir.rglob("*") if path.is_file())
    logger.info("written to %s (%.0f MB)", arguments.output_dir, size / 1e6)


def _check_model(source: ModelSource, image_processor: Any) -> None:
    """`ValueError` for a model of which the page could not show what it says."""
    source.check_vit()
    source.check_classifier()
    config = source.config
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"`model` must pick one of several classes; {source.name!r} has num_labels={config.num_labels} and "
            f"problem_type={config.problem_type!r}"
        )
    if config.num_channels != 3:
        raise ValueError(f"`model` must see colours; {source.name!r} has num_channels={config.num_channels}")
    if getattr(image_processor, "do_pad", None):
        raise ValueError(f"`model` must not pad images; the image processor of {source.name!r} has do_pad=True")


def _parameters(
    arguments: DemoArguments, source: ModelSource, examples: list[Example], pictures: list[bytes]
) -> dict[str, Any]:
    """Of which pages there are others."""
    page = sha256()
    for path in PAGE_FILES.values():
        page.update(path.read_bytes())
    shown = sha256()
    for example, picture in zip(examples, pictures, strict=True):
        shown.update(repr((example.name, example.recording)).encode() + picture)
    return {
        **source.recorded(),
        "quantize": arguments.quantize,
        "examples_sha256": shown.hexdigest(),
        "page_sha256": page.hexdigest(),
        PACKAGE: VERSION,
    }


def _write_model(source: ModelSource, image_processor: Any, folder: Path, quantize: str | None) -> dict[str, Any]:
    """Writes the graphs and their configs. What the page has to know of them: where they are, and what a token costs."""
    model = source.load()
    size = 4 * model.num_parameters()
    if size > LARGEST:
        raise ValueError(
            f"`model` must have less than {LARGEST / 1e9:.1f} GB of float32 weights for a browser; {source.name!r} has "
            f"{size / 1e9:.1f} GB"
        )
    graphs = {"model": f"{FOLDER}/{FILES[quantize]}"}
    if source.config.placer is not None:
        graphs["placer"] = f"{FOLDER}/{PLACER}"
    with tempfile.TemporaryDirectory() as exported:
        export_model(
            model,
            exported,
            image_processor=image_processor,
            quantize=[quantize] if quantize else [],
            with_window_scales=True,
        )
        (folder / FOLDER).mkdir()
        for name in ("preprocessor_config.json", *graphs.values()):
            shutil.move(f"{exported}/{name}", folder / name)
        config = json.loads(Path(exported, "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a path of this machine
    write_json(folder / "config.json", config)
    return {"files": graphs, "cost": cost_coefficients(model), "placer_cost": placer_cost(model)}


def _page(source: ModelSource, examples: list[Example]) -> dict[str, Any]:
    """Of `site.json`, what is not of the graphs."""
    is_local = Path(source.name).expanduser().is_dir()
    return {
        "title": public_name(source.name),
        "url": None if is_local else f"https://huggingface.co/{source.name}",
        "examples": [
            {
                "file": f"{EXAMPLES}/{number}.png",
                "name": example.name,
                **({"recording": example.recording} if example.recording else {}),
            }
            for number, example in enumerate(examples)
        ],
    }
