"""What `spot-hf demo` refuses, in one line, before anything is exported."""

import io
import socket
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from tiny import tiny_model, tiny_processor

from spot_hf import SpotViTForSemanticSegmentation, SpotViTModel
from spot_hf.cli import main
from spot_hf.demo import npm
from spot_hf.demo.examples import LONGEST, MOST_IMAGES, Example
from spot_hf.demo.server import PageServer


def save(directory, **changes):
    tiny_model(**changes).save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved"))


def refused(capsys, *words: str) -> str:
    assert main(["demo", *words]) != 0
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "`quantize` must be int8 or float16; got 'int4'"),
        (["--port", "70000"], "`port` must be in 0 to 65535; got 70000"),
        (["--push_to_hub"], "`push_to_hub` needs `hub_space_id`"),
        (["--hub_private"], "`hub_private` goes with `push_to_hub`"),
        (["--hub_space_id", "user/space"], "`hub_space_id` goes with `push_to_hub`"),
        (["--image_id", "a.jpg"], "`image_id` needs `coordinates`; got ['a.jpg'] alone"),
        (["--image", "none.jpg"], "`image` 'none.jpg' cannot be read"),
        (["--coordinates", "none"], "'none' is neither a directory with a coordinate data set nor a Hub id"),
        (["--model", "none"], "`model` must be a directory or a Hub id"),
    ],
)
def test_options(saved, tmp_path, capsys, options, message):
    given = [] if "--model" in options else ["--model", saved]
    error = refused(capsys, *given, "--output_dir", str(tmp_path / "out"), "--no_serve", *options)
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_class": SpotViTModel}, "has no classifier"),
        ({"model_class": SpotViTForSemanticSegmentation}, "segments images"),
        ({"problem_type": "multi_label_classification"}, "`model` must pick one of several classes"),
        ({"num_labels": 1}, "`model` must pick one of several classes"),
        ({"num_channels": 1}, "`model` must see colours"),
    ],
)
def test_models_that_a_page_cannot_show(changes, message, tmp_path, capsys):
    model = save(tmp_path / "model", **changes)
    assert message in refused(capsys, "--model", model, "--output_dir", str(tmp_path / "out"), "--no_serve")


def test_a_port_in_use(saved, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = refused(capsys, "--model", saved, "--output_dir", str(tmp_path / "out"), "--port", str(port))
    assert f"`port` {port} of 127.0.0.1 is in use: give another, or 0 for any that is free" in error
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else(saved, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for options, message in ((), "is not empty"), (("--overwrite_output_dir",), "remove it yourself"):
        error = refused(capsys, "--model", saved, "--output_dir", str(tmp_path), "--no_serve", *options)
        assert "output_dir" in error and message in error
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_page_of_another_model(saved, tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"parameters": {"model": "another"}}')
    error = refused(capsys, "--model", saved, "--output_dir", str(tmp_path), "--no_serve")
    assert "holds another page: of another model, other examples or another version of spot_hf" in error


def test_too_many_images(saved, tmp_path, capsys):
    for number in range(MOST_IMAGES + 1):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    error = refused(capsys, "--model", saved, "--output_dir", str(tmp_path / "out"), "--image", str(tmp_path), "--no_serve")
    assert f"`image` may be at most {MOST_IMAGES} files" in error and f"got {MOST_IMAGES + 1}" in error


def test_the_page_is_for_its_own_address(tmp_path):
    (tmp_path / "index.html").write_text("the page")
    server = PageServer(tmp_path, 0)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with urlopen(server.address) as answer:
            assert answer.read() == b"the page" and answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        # A name of somebody else that was made to point here.
        with pytest.raises(HTTPError, match="403"):
            urlopen(Request(server.address, headers={"Host": f"example.com:{server.server_port}"}))
    finally:
        server.shutdown()
        server.server_close()


def test_a_registry_that_is_away_or_gives_something_else(tmp_path, monkeypatch):
    monkeypatch.setattr(npm, "cached_assets_path", lambda **names: tmp_path)
    monkeypatch.setenv(npm.REGISTRY, "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"onnxruntime-web-.*\.tgz cannot be downloaded: .*npm_config_registry"):
        npm.onnxruntime_web()
    package = tmp_path / "registry/onnxruntime-web/-" / f"onnxruntime-web-{npm.VERSION}.tgz"
    package.parent.mkdir(parents=True)
    package.write_bytes(b"something else")
    monkeypatch.setenv(npm.REGISTRY, (tmp_path / "registry").as_uri())
    with pytest.raises(OSError, match=r"is not the onnxruntime-web .* its digest is another one"):
        npm.onnxruntime_web()
    assert not list(tmp_path.glob("*.mjs"))


def test_examples_are_small_and_know_nothing_of_their_owner():
    image = Image.new("CMYK", (3000, 40))
    image.info["exif"] = b"where it was taken"
    with Image.open(io.BytesIO(Example("a", image).png())) as found:
        assert (found.format, found.mode, found.width) == ("PNG", "RGB", LONGEST)
        assert not found.getexif() and "exif" not in found.info
