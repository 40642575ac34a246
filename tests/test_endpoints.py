"""What a saved model's `handler.py` answers behind an endpoint: in a process without the package, over HTTP on loopback,
loaded and called as Hugging Face's inference toolkit does.

Expected answers are those of the package's own pipelines.
"""

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tiny import tiny_model, tiny_processor
from transformers import pipeline

from spot_hf import (
    SpotImageSegmentationPipeline,
    SpotViTForSemanticSegmentation,
    SpotViTModel,
    SpotZeroShotImageClassificationPipeline,
    convert_checkpoint,
)
from spot_hf.handler import REQUIREMENTS
from spot_hf.hub.models import TIMM, save_model


ROOT = Path(__file__).resolve().parents[1]


def answers(directory, requests, clients, commands):
    """In its process: `[status, answer]` to each request `{"file" or "json", "type", "query"}`; what the Hub's client reads
    from its calls `[method, image, arguments]`; and what commands of a shell print, of which `$ENDPOINT` is the address."""
    import asyncio
    import importlib.util
    import io
    import json
    import os
    import subprocess
    import sys
    import threading
    import urllib.error
    import urllib.parse
    import urllib.request
    from pathlib import Path

    from aiohttp import web
    from PIL import Image

    # As the toolkit does.
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", Path(directory) / "handler.py")
    sys.path.insert(0, directory)
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler.EndpointHandler"] = module
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(directory)

    def read(body, content_type):
        if content_type.startswith("image/"):
            return {"inputs": Image.open(io.BytesIO(body)).convert("RGB")}
        return json.loads(body) if content_type == "application/json" else {"inputs": body}

    def converted(query):
        return {
            name: int(value) if value.isnumeric() else value == "true" if value in ("true", "false") else value
            for name, value in query.items()
        }

    async def predict(request):
        try:
            body = read(await request.read(), request.content_type)
            if "inputs" not in body:
                raise ValueError("Body needs to provide a inputs key")
            if request.query and "parameters" not in body:
                body["parameters"] = converted(request.query)
            answer = await asyncio.get_running_loop().run_in_executor(None, handler, body)
            return web.Response(text=json.dumps(answer, allow_nan=False), content_type="application/json")
        except Exception as error:
            return web.json_response({"error": str(error)}, status=400)

    loop, started, port = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/", predict)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(site._server.sockets[0].getsockname()[1])
        started.set()

    threading.Thread(target=lambda: (loop.create_task(start()), loop.run_forever()), daemon=True).start()
    assert started.wait(60)
    url = f"http://127.0.0.1:{port[0]}/"

    def ask(request):
        body = json.dumps(request["json"]).encode() if "json" in request else Path(request["file"]).read_bytes()
        query = urllib.parse.urlencode(request.get("query", {}))
        headers = {"Content-Type": request.get("type", "application/json")}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{url}?{query}", body, headers), timeout=120) as answer:
                return [answer.status, json.load(answer)]
        except urllib.error.HTTPError as error:
            return [error.code, json.load(error)]

    found = [ask(request) for request in requests]
    read_by_clients = []
    if clients:
        import huggingface_hub

        huggingface_hub.constants.HF_HUB_OFFLINE = False  # this process reaches nothing but loopback
        huggingface_hub.close_session()
        client = huggingface_hub.InferenceClient(url)
        for method, image, arguments in clients:
            result = getattr(client, method)(Path(image).read_bytes(), **arguments)
            plain = [{"label": one.label, "score": one.score, "mask": str(getattr(one, "mask", ""))} for one in result]
            read_by_clients.append(plain)
    environment = {**os.environ, "ENDPOINT": url, "HF_TOKEN": "hf_me"}
    printed = [subprocess.check_output(["bash", "-c", one], env=environment, text=True, timeout=120) for one in commands]
    return found, read_by_clients, printed


def base64_of(file: str | Path) -> str:
    return base64.b64encode(Path(file).read_bytes()).decode()


def close(value: Any) -> Any:
    """Weights lie elsewhere in memory in the other process: matrix products may round otherwise."""
    if isinstance(value, dict):
        return {key: close(one) for key, one in value.items()}
    if isinstance(value, list):
        return [close(one) for one in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def ask(fresh_process):
    """Answers of a saved model: of each request, which has to succeed."""

    def call(directory: Path, requests: list[dict[str, Any]], clients=(), commands=()):
        arguments = (str(directory), requests, list(clients), list(commands))
        found, read, printed = fresh_process(answers, *arguments, without_spot_hf=True)
        assert [status for status, _ in found] == [200] * len(requests), found
        return [answer for _, answer in found], read, [json.loads(one) for one in printed]

    return call


# -------------------------------------------------------------------------------------------------------------- classifier


@pytest.fixture(scope="module")
def classifier(tiny_vit, tmp_path_factory) -> tuple[Path, Any]:
    """A directory that `convert_checkpoint` wrote, and the package's pipeline."""
    directory = tmp_path_factory.mktemp("classifier") / "model"
    report = convert_checkpoint(str(tiny_vit), directory, num_tokens=7, placement="isotropic")
    ours = pipeline("spot-image-classification", model=report.model, image_processor=report.image_processor)
    return directory, ours


def test_a_classifier(classifier, photos, ask, tmp_path):
    directory, ours = classifier
    Image.open(photos[1]).save(tmp_path / "photo.jpg", quality=90)
    jpeg, photo, other = str(tmp_path / "photo.jpg"), photos[0], photos[1]
    text = base64_of(photo)
    placed = {"coordinates": [[0.25, 0.5], [0.75, 0.5]], "window_scales": [1, 2.5], "return_coordinates": True}
    looks = {"num_tokens": [4, 9], "confidence": 0.9, "return_coordinates": True}
    several = [[[0.1, 0.2]], [[0.3, 0.4], [0.5, 0.6]]]
    boxes = {"boxes": [0, 0, 20, 20], "num_tokens": 5, "placement": "salient", "seed": 3, "return_coordinates": True}
    cases = [
        ({"file": photo, "type": "image/png"}, ours(photo)),
        ({"file": jpeg, "type": "image/jpeg"}, ours(jpeg)),
        ({"file": jpeg, "type": "application/octet-stream"}, ours(jpeg)),
        (
            {"file": photo, "type": "image/png", "query": {"num_tokens": 4, "placement": "center", "top_k": 2}},
            ours(photo, num_tokens=4, placement="center", top_k=2),
        ),
        (
            {"file": photo, "type": "image/png", "query": {"coordinates": "[[0.5,0.5]]", "return_coordinates": "true"}},
            ours(photo, coordinates=[[0.5, 0.5]], return_coordinates=True),
        ),
        ({"json": {"inputs": text}}, ours(photo)),
        ({"json": {"inputs": f"data:image/png;base64,{text}", "parameters": {"top_k": None}}}, ours(photo)),
        ({"json": {"inputs": text, "parameters": placed}}, ours(photo, **placed)),
        ({"json": {"inputs": [text, base64_of(other)], "parameters": {"num_tokens": 9}}}, ours([photo, other], num_tokens=9)),
        ({"json": {"inputs": [text]}}, ours([photo])),
        (
            {"json": {"inputs": [text, base64_of(other)], "parameters": {"coordinates": several}}},
            ours([photo, other], coordinates=several),
        ),
        (
            {"json": {"inputs": text, "parameters": {"num_tokens": 9, "window_scales": "cover", "return_coordinates": True}}},
            ours(photo, num_tokens=9, window_scales="cover", return_coordinates=True),
        ),
        ({"json": {"inputs": text, "parameters": boxes}}, ours(photo, **boxes)),
        ({"json": {"inputs": text, "parameters": looks}}, ours(photo, **looks)),
        (
            {"json": {"inputs": text, "parameters": {"function_to_apply": "none", "top_k": 1}}},
            ours(photo, function_to_apply="none", top_k=1),
        ),
    ]
    client = ("image_classification", photo, {"top_k": 2})
    found, (read,), _ = ask(directory, [request for request, _ in cases], [client])
    for (request, expected), answer in zip(cases, found, strict=True):
        assert answer == close(expected), request
    assert [{"label": one["label"], "score": one["score"]} for one in read] == close(ours(photo, top_k=2))


def commands_of(directory: Path, photo: str, tmp_path: Path) -> list[str]:
    """Those of the card, for that photograph."""
    Image.open(photo).save(tmp_path / "photo.jpg")
    (block,) = re.findall(r"```bash\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    return [f"cd {tmp_path}; {one}" for one in block.strip().split("\n\n")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_cards_commands(classifier, photos, ask, tmp_path):
    """Of a classifier here; those of a zero-shot model have labels, too."""
    from tiny_texts import save_source

    directory, ours = classifier
    _, _, (in_address, in_body) = ask(directory, [], (), commands_of(directory, photos[0], tmp_path))
    jpeg, places = str(tmp_path / "photo.jpg"), [[0.25, 0.5], [0.75, 0.5]]
    assert in_address == close(ours(jpeg, num_tokens=4, placement="isotropic"))
    assert in_body == close(ours(jpeg, coordinates=places))

    convert_checkpoint(str(save_source(tmp_path / "source")), tmp_path / "model")
    _, _, printed = ask(tmp_path / "model", [], (), commands_of(tmp_path / "model", photos[0], tmp_path))
    assert [{one["label"] for one in answer} for answer in printed] == [{"a cat", "a dog"}] * 2


def test_what_convert_writes(classifier):
    directory, _ = classifier
    assert (directory / "handler.py").read_bytes() == (ROOT / "src/spot_hf/handler.py").read_bytes()
    assert (directory / "requirements.txt").read_text().split("\n") == [*REQUIREMENTS, ""]
    packaging = (ROOT / "setup.py").read_text()
    assert all(f'"{requirement}' in packaging for requirement in (*REQUIREMENTS, TIMM))


def test_requirements_that_are_there_stay(tmp_path):
    (tmp_path / "requirements.txt").write_text("mine\n")
    save_model(tiny_model(), tiny_processor(), tmp_path, repo_id="user/name")
    assert (tmp_path / "requirements.txt").read_text() == "mine\n"


# --------------------------------------------------------------------------------------------------- models of other kinds


def test_a_model_that_places_by_itself(photos, ask, tmp_path):
    """With its placer, and thresholds that `spot-hf calibrate` would have found."""
    calibration = {
        "num_tokens": [4, 9, 36],
        "temperature": [2.0, 1.5, 1.0],
        "points": [
            {"confidence": [0.0, 0.0], "mean_tokens": 4.0, "accuracy": 50.0},
            {"confidence": [0.3, 0.3], "mean_tokens": 20.0, "accuracy": 60.0},
        ],
    }
    placer = {"thumbnail_size": 16, "head": "heatmap", "hidden_size": 8}
    looks = {"num_tokens": [4, 9, 36], "confidence": [0.4, 0.4], "calibration": calibration}
    model = tiny_model(placer=placer, placement="learned", **looks)
    save_model(model, tiny_processor(), tmp_path / "model", repo_id="user/name")
    ours = pipeline("spot-image-classification", model=model, image_processor=tiny_processor())
    photo, where = photos[0], {"return_coordinates": True}
    calls = [
        {},
        {"num_tokens": 9},
        {"num_tokens": 9, "placement": "learned"},
        {"num_tokens": [4, 9], "confidence": 0.5},
        {"max_mean_tokens": 10},
        {"num_tokens": 9, "placement": "isotropic"},
        {"coordinates": [[0.5, 0.5]]},
    ]
    requests = [{"json": {"inputs": base64_of(photo), "parameters": {**call, **where}}} for call in calls]
    found, _, _ = ask(tmp_path / "model", requests)
    for call, answer in zip(calls, found, strict=True):
        assert answer == close(ours(photo, **call, **where)), call
    counts = [len(answer["coordinates"]) for answer in found]
    assert counts[1:3] == [9, 9] and counts[5:] == [9, 1]


def zero_shot_pipeline(report):
    return pipeline(
        "spot-zero-shot-image-classification",
        model=report.model,
        tokenizer=report.tokenizer,
        image_processor=report.image_processor,
        pipeline_class=SpotZeroShotImageClassificationPipeline,
    )


def test_a_zero_shot_model(photos, ask, tmp_path):
    from tiny_texts import save_source

    report = convert_checkpoint(str(save_source(tmp_path / "source")), tmp_path / "model", num_tokens=9)
    ours = zero_shot_pipeline(report)
    photo, labels = photos[0], {"candidate_labels": ["cat", "dog", "eel"]}
    more = {**labels, "hypothesis_template": "a {}", "num_tokens": 4, "return_coordinates": True}
    requests = [
        {"json": {"inputs": base64_of(photo), "parameters": labels}},
        {"json": {"inputs": base64_of(photo), "parameters": more}},
        {"file": photo, "type": "image/png", "query": {"candidate_labels": "cat, dog, eel", "top_k": "1"}},
    ]
    client = ("zero_shot_image_classification", photo, labels)
    found, (read,), _ = ask(tmp_path / "model", requests, [client])
    assert found == close([ours(photo, **labels), ours(photo, **more), ours(photo, **labels, top_k=1)])
    assert [{"label": one["label"], "score": one["score"]} for one in read] == close(ours(photo, **labels))


def test_a_segmentation_model(photos, ask, tmp_path):
    model = tiny_model(model_class=SpotViTForSemanticSegmentation)
    save_model(model, tiny_processor(), tmp_path / "model", repo_id="user/name")
    ours = pipeline(
        "spot-image-segmentation",
        model=model,
        image_processor=tiny_processor(),
        pipeline_class=SpotImageSegmentationPipeline,
    )
    photo, placed = (
        photos[0],
        {"num_tokens": 9, "placement": "isotropic", "window_scales": "cover", "return_coordinates": True},
    )
    requests = [
        {"file": photo, "type": "image/png"},
        {"json": {"inputs": base64_of(photo), "parameters": placed}},
        {"json": {"inputs": [base64_of(photo), base64_of(photos[1])]}},
    ]
    (one, at_places, two), (read,), _ = ask(tmp_path / "model", requests, [("image_segmentation", photo, {})])
    expected = ours(photo, **placed)
    assert at_places["coordinates"] == close(expected["coordinates"]) and at_places["window_scales"]
    assert_same_segments(at_places["segments"], expected["segments"])
    for segments, file in ((one, photo), *zip(two, photos[:2], strict=True)):
        assert_same_segments(segments, ours(file))
    assert [part["label"] for part in read] == [part["label"] for part in one]
    assert all("size=60x45" in part["mask"] for part in read)  # the client made images of them


def assert_same_segments(segments: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [{**one, "mask": ""} for one in segments] == [{**one, "mask": ""} for one in expected]
    for one, other in zip(segments, expected, strict=True):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"]))))
        other_mask = np.asarray(other["mask"])
        assert mask.shape == other_mask.shape
        # Where two classes are as likely to 1e-6, rounding decides.
        assert (mask != other_mask).mean() < 0.01


def test_a_convolutional_network(photos, ask, tmp_path):
    from tiny_networks import save_network

    report = convert_checkpoint(save_network(tmp_path / "source"), tmp_path / "model", num_tokens=4, placement="isotropic")
    ours = pipeline("spot-image-classification", model=report.model, image_processor=report.image_processor)
    photo, placed = photos[0], {"num_tokens": 6, "placement": "center", "return_coordinates": True}
    requests = [
        {"file": photo, "type": "image/png"},
        {"json": {"inputs": base64_of(photo), "parameters": placed}},
    ]
    found, _, _ = ask(tmp_path / "model", requests)
    assert found == close([ours(photo), ours(photo, **placed)])
    assert (tmp_path / "model" / "handler.py").exists() and "timm" not in (tmp_path / "model/requirements.txt").read_text()


def test_an_encoder_gives_features(photos, ask, tmp_path):
    model, processor = tiny_model(model_class=SpotViTModel), tiny_processor(num_tokens=5, placement="isotropic")
    save_model(model, processor, tmp_path / "model", repo_id="user/name")
    image = Image.open(photos[0]).convert("RGB")
    placed = {"coordinates": [[0.25, 0.5], [0.5, 0.75]], "window_scales": [1, 2]}
    requests = [
        {"file": photos[0], "type": "image/png"},
        {"json": {"inputs": base64_of(photos[0]), "parameters": {**placed, "pool": False}}},
    ]
    (pooled, tokens), _, _ = ask(tmp_path / "model", requests)
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt"))
        at_places = model(**processor(image, return_tensors="pt", **placed))
    assert torch.tensor(pooled).sub(expected.pooler_output).abs().max() <= 1e-5  # another place in memory, as `close` says
    assert torch.tensor(tokens).sub(at_places.last_hidden_state).abs().max() <= 1e-5


# --------------------------------------------------------------------------------------------------------------- bad input


def test_every_form_of_an_image(classifier, handler, tmp_path):
    """Of a photograph that its file says to turn: also as what the toolkit makes of it, in which it is not turned yet."""
    _, ours = classifier
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 255, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    content, text = (tmp_path / "turned.jpg").read_bytes(), base64_of(tmp_path / "turned.jpg")
    decoded = Image.open(io.BytesIO(content)).convert("RGB")
    expected = ours(str(tmp_path / "turned.jpg"))
    assert expected != ours(Image.fromarray(np.asarray(decoded)))
    for given in (content, bytearray(content), text, f"data:image/jpeg;base64,{text}", decoded):
        assert handler({"inputs": given}) == expected, type(given)
    assert handler({"inputs": [content, text, decoded], "options": {"use_cache": False}}) == [expected] * 3
    for mode, format in (("L", "PNG"), ("RGBA", "WEBP"), ("P", "GIF"), ("CMYK", "TIFF"), ("1", "BMP")):
        file = tmp_path / f"{mode}.{format.lower()}"
        decoded.convert(mode).save(file)
        assert handler({"inputs": file.read_bytes()}) == ours(str(file)), mode


@pytest.fixture(scope="module")
def handler(classifier):
    """In this process: the file as it lies in the repository, with the package's pipeline."""
    return handler_of(*classifier)


def handler_of(directory: Path, ours: Any):
    spec = importlib.util.spec_from_file_location("a_repositorys_handler", directory / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "pipeline", lambda *arguments, **options: ours)
        return module.EndpointHandler(str(directory))


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, format="PNG")
    return file.getvalue()


def eps() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="EPS")
    return file.getvalue()


NO_IMAGE = "`inputs` must be an image file that can be read, one of PNG, JPEG, WEBP, GIF, BMP, TIFF; got "


def no_base64(text: str, name: str = "inputs") -> str:
    return f"`{name}` as a text must be an image file in base64; got {text!r}. Addresses and paths are not read"


BAD_INPUTS = {
    "no inputs": ({"image": ""}, "a request must have `inputs`, and may have `parameters`; got dict of 1"),
    "no object": ([1], "a request must have `inputs`, and may have `parameters`; got list of 1"),
    "in the wrong place": (
        {"inputs": b"", "num_tokens": 9},
        "a request may have `inputs` and `parameters`; got 'num_tokens': does it belong into `parameters`?",
    ),
    "an address": (
        {"inputs": "https://example.com/photo.jpg"},
        no_base64("https://example.com/photo.jpg"),
    ),
    "a path": (
        {"inputs": "/etc/passwd!"},
        no_base64("/etc/passwd!"),
    ),
    "a path that is base64": (  # as are all of letters, digits and slashes
        {"inputs": "/etc/passwd0"},
        NO_IMAGE + "9 bytes: it is none",
    ),
    "a data URL of something else": (
        {"inputs": "data:text/html;base64,AAAA"},
        no_base64("data:text/html;base64,AAAA"),
    ),
    "no ASCII": (
        {"inputs": "ü"},
        no_base64("ü"),
    ),
    "of another type": ({"inputs": 7}, "`inputs` must be an image: a file's bytes, or these in base64; got int"),
    "a row": ({"inputs": {"image": "x"}}, "`inputs` must be an image: a file's bytes, or these in base64; got dict"),
    "too many": ({"inputs": [png(4, 4)] * 65}, "`inputs` may be at most 64 images; got 65"),
    "none": ({"inputs": []}, "`inputs` must have an image; got an empty list"),
    "the second": (
        {"inputs": [png(4, 4), "?"]},
        no_base64("?", "inputs[1]"),
    ),
    "broken": (
        {"inputs": png(400, 400)[:60]},
        NO_IMAGE + "60 bytes: ",
    ),
    "a format that needs a program": (
        {"inputs": eps()},
        NO_IMAGE,
    ),
    "a bomb": (
        {"inputs": png(12000, 12000)},
        "this model takes 134,217,728 pixels in all images of a request together; got 12000 × 12000 at `inputs`",
    ),
    "a bomb that Pillow refuses": (
        {"inputs": png(20000, 20000)},
        NO_IMAGE,
    ),
    "a line, which a recipe would blow up": (
        {"inputs": png(40400, 400)},
        "`inputs` may be at most 100 times as wide as it is high, or as high as wide; got 40400 × 400",
    ),
    "together": (
        {"inputs": [png(9000, 8000), png(9000, 8000)]},
        "this model takes 134,217,728 pixels in all images of a request together; got 9000 × 8000 at `inputs[1]`",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_inputs_that_are_none(case, handler):
    body, message = BAD_INPUTS[case]
    with pytest.raises(ValueError) as error:
        handler(body)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


NAMED = "must be a name of letters, digits and underscores; got"
BAD_PARAMETERS = {
    "no object": ([1], "`parameters` must be an object of names and values; got list of 1"),
    "unknown": ({"num_token": 9}, "`parameters` of this model may have num_tokens, placement, coordinates, "),
    "not for strangers": ({"compile": True}, "`parameters` of this model may have num_tokens, placement, coordinates, "),
    "timeout": ({"timeout": 1}, "`parameters` of this model may have num_tokens, placement, coordinates, "),
    "of another task": ({"candidate_labels": ["a"]}, "`parameters` of this model may have num_tokens, "),
    "an import": ({"placement": "os:getcwd", "num_tokens": 9}, f"`placement` {NAMED} 'os:getcwd'"),
    "no placement": ({"placement": "nowhere", "num_tokens": 9}, "`placement` must be one of grid, "),
    "no placer": ({"placement": "learned", "num_tokens": 9}, "`placement` "),
    "a list of placements": ({"placement": ["center"]}, "`placement` must be a text; got list of 1"),
    "no number": ({"num_tokens": "many"}, "`num_tokens` must be a number, or a list of them; got 'many'"),
    "true": ({"num_tokens": True}, "`num_tokens` must be a number, or a list of them; got True"),
    "zero": ({"num_tokens": 0}, "`num_tokens` must be "),
    "too many": ({"num_tokens": 4097}, "`num_tokens` may be at most 4096 tokens in an image; got 4097"),
    "too many at the end": (
        {"num_tokens": [4, 99999], "confidence": 0.5},
        "`num_tokens` may be at most 4096 tokens in an image; got 100003",
    ),
    "too many positions": (
        {"coordinates": [[0.5, 0.5]] * 4097},
        "`coordinates` may be at most 4096 tokens in an image; got 4097",
    ),
    "a path of positions": (
        {"coordinates": "/etc/passwd"},
        "`coordinates` must be a number, or a list of them; got '/etc/passwd'",
    ),
    "outside": ({"coordinates": [[1.5, 0.5]]}, "`coordinates` must lie in [0, 1]"),
    "not a number": (
        {"coordinates": [[float("nan"), 0.5]]},
        "`coordinates` must be a number, or a list of them; got list of 1",
    ),
    "too deep": ({"coordinates": "[" * 100_000}, "`coordinates` must be a number, or a list of them; got "),
    "half a seed": ({"seed": 0.5}, "`seed` must be an integer; got 0.5"),
    "too many positions of the second": (
        {"coordinates": [[[0.5, 0.5]], [[0.5, 0.5]] * 4097]},
        "`coordinates` may be at most 4096 tokens in an image; got 4097",
    ),
    "too large": ({"seed": 10**400}, "`seed` must be a number, or a list of them; got "),
    "two say where": ({"coordinates": [[0.5, 0.5]], "num_tokens": 9}, "`coordinates` and `num_tokens` exclude each other"),
    "no confidence": ({"num_tokens": [4, 9]}, "`confidence` is needed with several `num_tokens`"),
    "a negative scale": ({"window_scales": -1, "num_tokens": 9}, "`window_scales` must be "),
    "another word": ({"window_scales": "fit"}, "`window_scales` must be a number, or a list of them; got 'fit'"),
    "no positive number": ({"top_k": 0}, "`top_k` must be a positive integer; got 0"),
    "a saliency map's path": ({"saliency": "map.png"}, "`saliency` must be a number, or a list of them; got 'map.png'"),
    "no function": ({"function_to_apply": "exp"}, "`function_to_apply` must be one of softmax, sigmoid, none; got 'exp'"),
    "no flag": ({"return_coordinates": 1}, "`return_coordinates` must be true or false; got 1"),
    "not JSON's": ({"seed": {"a": 1}}, "`seed` must be a number, or a list of them; got dict of 1"),
}


@pytest.mark.parametrize("case", BAD_PARAMETERS)
def test_parameters_that_are_not_accepted(case, handler):
    parameters, message = BAD_PARAMETERS[case]
    with pytest.raises(ValueError) as error:
        handler({"inputs": png(40, 40), "parameters": parameters})
    assert str(error.value).startswith(message)


BAD_LABELS = {
    "none": ({}, "`candidate_labels` must be a list of different texts; got None"),
    "twice": ({"candidate_labels": ["a", "a"]}, "`candidate_labels` must be a list of different texts; got 'a' twice"),
    "too many": ({"candidate_labels": ["a"] * 1001}, "`candidate_labels` may be at most 1000; got 1001"),
    "no place": ({"hypothesis_template": "a cat"}, "`hypothesis_template` must be a text with one place {} for a label"),
    "inside of a label": ({"hypothesis_template": "{.__class__}"}, "`hypothesis_template` must be a text with one place {}"),
    "a bomb": ({"hypothesis_template": "{:>999999999}"}, "`hypothesis_template` must be a text with one place {} for a label"),
    "a bomb beside": ({"hypothesis_template": "{} {0:>9999999}"}, "`hypothesis_template` must be a text with one place {}"),
}


def test_labels_that_are_not_accepted(tmp_path):
    from tiny_texts import save_source

    report = convert_checkpoint(str(save_source(tmp_path / "source")), tmp_path / "model")
    ours = zero_shot_pipeline(report)
    handler = handler_of(tmp_path / "model", ours)
    for case, (parameters, message) in BAD_LABELS.items():
        with pytest.raises(ValueError) as error:
            handler({"inputs": png(40, 40), "parameters": parameters})
        assert str(error.value).startswith(message), case


def test_errors_are_answers_with_status_400(classifier, fresh_process):
    requests = [
        {"json": {"inputs": "/etc/hostname"}},
        {"json": {"inputs": base64.b64encode(png(9, 9)).decode(), "parameters": {"placement": "os:getcwd", "num_tokens": 4}}},
    ]
    found, _, _ = fresh_process(answers, str(classifier[0]), requests, [], [], without_spot_hf=True)
    assert [status for status, _ in found] == [400, 400]
    assert found[0][1]["error"].startswith("`inputs` ") and found[1][1]["error"].startswith("`placement` must be a name")


def test_a_library_that_is_too_old_is_named(classifier, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "4.51.3")
    with pytest.raises(ImportError, match=r"Write transformers>=5.10.1 into `requirements.txt`, beside `handler.py`"):
        handler_of(*classifier)


def test_the_hubs_emulator_of_endpoints(classifier, photos, tmp_path):
    """Hugging Face's own: `pip install hf-endpoints-emulator "starlette<1"`, into a folder that PYTHONPATH names."""
    pytest.importorskip("hf_endpoints_emulator", reason="hf-endpoints-emulator is not installed")
    directory, ours = classifier
    script = tmp_path / "ask.py"
    script.write_text(EMULATED)
    environment = {
        **os.environ,
        "HANDLER_PATH": str(directory / "handler.py"),
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run([sys.executable, script, photos[0]], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    image, text, bad = json.loads(done.stdout.splitlines()[-1])
    assert image == [200, close(ours(photos[0]))]
    assert text == [200, close(ours(photos[0], num_tokens=4, return_coordinates=True))]
    assert bad == [400, {"error": no_base64("https://example.com/photo.jpg")}]


EMULATED = """
import base64, json, sys, threading, time, urllib.error, urllib.request
import uvicorn
from hf_endpoints_emulator.emulator import app

server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.1)
url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
photo = open(sys.argv[1], "rb").read()
placed = {"inputs": base64.b64encode(photo).decode(), "parameters": {"num_tokens": 4, "return_coordinates": True}}
answers = []
for kind, body in (
    ("image/png", photo),
    ("application/json", json.dumps(placed).encode()),
    ("application/json", b'{"inputs": "https://example.com/photo.jpg"}'),
):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=120) as answer:
            answers.append([answer.status, json.load(answer)])
    except urllib.error.HTTPError as error:
        answers.append([error.code, json.load(error)])
print(json.dumps(answers))
"""
