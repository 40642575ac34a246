"""Features by the stock pipeline: of a model without a classifier and of a classifier's, with and without the package."""

import pytest
import torch
from PIL import Image
from random_weights import randomise
from safetensors.torch import load_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel, pipeline

from spot_hf import SpotViTModel, convert_checkpoint


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32}
WAYS = {
    "all": {},
    "placed": {"num_tokens": 7, "placement": "isotropic"},
    "points": {"coordinates": [[0.25, 0.5], [0.75, 0.4], [0.5, 0.1]]},
    "covering": {"num_tokens": 4, "window_scales": "cover"},
}


@pytest.fixture(scope="module")
def directories(tiny_vit, tmp_path_factory):
    """A converted model without a classifier, one with, and one that places 5 tokens by default."""
    directory = tmp_path_factory.mktemp("features")
    randomise(ViTModel(ViTConfig(**SIZES, patch_size=8), add_pooling_layer=False)).save_pretrained(directory / "source")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory / "source")
    convert_checkpoint(directory / "source", directory / "headless")
    convert_checkpoint(tiny_vit, directory / "classifier")
    convert_checkpoint(directory / "source", directory / "few", num_tokens=5, placement="center")
    return directory


def extract(model, photos, file):
    """By the stock pipeline, in any process: token features and pooled ones, by all ways of asking, to a file."""
    import torch
    from safetensors.torch import save_file
    from transformers import pipeline

    extractor = pipeline("image-feature-extraction", model=str(model), trust_remote_code=True)
    for parameter in extractor.model.parameters():  # weights lie in memory as in their file; products round by alignment
        parameter.data = parameter.data.clone()
    ways = {
        "all": {},
        "placed": {"num_tokens": 7, "placement": "isotropic"},
        "points": {"coordinates": [[0.25, 0.5], [0.75, 0.4], [0.5, 0.1]]},
        "covering": {"num_tokens": 4, "window_scales": "cover"},
    }
    found = {}
    for name, way in ways.items():
        options = {"return_tensors": True, "image_processor_kwargs": way}
        found[f"{name}/tokens"] = torch.cat(extractor(photos, **options))
        found[f"{name}/pooled"] = torch.cat(extractor(photos, pool=True, **options))
        found[f"{name}/batched"] = torch.cat(extractor(photos, pool=True, batch_size=3, **options))
    assert extractor(photos[0], pool=True) == found["all/pooled"][:1].tolist()
    save_file({key: one.contiguous() for key, one in found.items()}, file)
    return [type(extractor.model).__name__, type(extractor.model).__module__]


@pytest.mark.parametrize("kind", ["headless", "classifier"])
@torch.no_grad()
def test_features_are_the_models(kind, directories, photos, tmp_path):
    assert extract(directories / kind, photos, tmp_path / "found.safetensors")[0] == "SpotViTModel"
    found = load_file(tmp_path / "found.safetensors")
    model = SpotViTModel.from_pretrained(directories / kind).eval()
    processor = pipeline("image-feature-extraction", model=str(directories / kind), trust_remote_code=True).image_processor
    images = [Image.open(photo).convert("RGB") for photo in photos]
    for way, options in WAYS.items():
        expected = model(**processor(images, return_tensors="pt", **options))
        # One image at a time: sums in another order.
        torch.testing.assert_close(found[f"{way}/tokens"], expected.last_hidden_state, rtol=0, atol=1e-5)
        for pooled in ("pooled", "batched"):
            torch.testing.assert_close(found[f"{way}/{pooled}"], expected.pooler_output, rtol=0, atol=1e-5)
    assert found["all/tokens"].shape == (3, 17, 32) and found["placed/tokens"].shape == (3, 8, 32)
    assert (found["all/pooled"] - found["placed/pooled"]).abs().max() > 0.01


def test_the_saved_number_of_tokens_is_the_default(directories, photos):
    extractor = pipeline("image-feature-extraction", model=str(directories / "few"), trust_remote_code=True)
    assert extractor(photos[0], return_tensors=True).shape == (1, 6, 32)
    assert extractor(photos[0], return_tensors=True, image_processor_kwargs={"placement": "grid"}).shape == (1, 17, 32)


def test_on_the_full_grid_features_are_the_sources(directories, photos):
    source = pipeline("image-feature-extraction", model=str(directories / "source"))
    extractor = pipeline("image-feature-extraction", model=str(directories / "headless"), trust_remote_code=True)
    for photo in photos:
        expected, found = source(photo, return_tensors=True), extractor(photo, return_tensors=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # as of the models


@pytest.mark.parametrize("kind", ["headless", "classifier"])
def test_without_the_package_features_are_the_same(kind, directories, photos, tmp_path, fresh_process):
    name, module = fresh_process(extract, directories / kind, photos, tmp_path / "remote", without_spot_hf=True)
    assert name == "SpotViTModel" and module.startswith("transformers_modules.")
    extract(directories / kind, photos, tmp_path / "local")
    found, expected = load_file(tmp_path / "remote"), load_file(tmp_path / "local")
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key  # the same operations, on one thread and aligned memory
