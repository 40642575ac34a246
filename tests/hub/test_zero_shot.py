"""A zero-shot model on the Hub: pushed by the package, found by someone who has transformers alone, converted from the Hub."""

import json

import pytest

from .test_models import MODEL_FILES, files


TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json"}


def publish(family, photos, tests):
    """In its process: a converted model, pushed by [`push_model`] and by the pipeline; and its source."""
    import sys
    from pathlib import Path

    sys.path.insert(0, tests)

    from huggingface_hub import HfApi
    from tiny_texts import save_source
    from transformers import pipeline

    from spot_hf import SpotZeroShotImageClassificationPipeline, convert_checkpoint, push_model

    source = save_source(Path("source"), family)
    HfApi().create_repo(f"alice/{family}-source")
    HfApi().upload_folder(folder_path=source, repo_id=f"alice/{family}-source")
    report = convert_checkpoint(f"alice/{family}-source", "model", num_tokens=9)
    push_model(report.model, report.image_processor, f"alice/{family}", tokenizer=report.tokenizer)
    try:
        push_model(report.model, report.image_processor, "alice/lacking")
        refused = ""
    except ValueError as error:
        refused = str(error)
    ours = pipeline(
        "spot-zero-shot-image-classification",
        model=report.model,
        tokenizer=report.tokenizer,
        image_processor=report.image_processor,
        pipeline_class=SpotZeroShotImageClassificationPipeline,
    )
    ours.push_to_hub(f"alice/{family}-pipeline")
    labels = {"candidate_labels": ["cat", "dog", "eel"]}
    return {
        "source": type(report.model).__name__,
        "refused": refused,
        "saved": ours(photos, **labels),
        "center": ours(photos, num_tokens=5, placement="center", return_coordinates=True, **labels),
    }


def load(family, photos, save_to):
    """In a process without the package and without a token."""
    import torch
    from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoTokenizer, pipeline

    remote = {"trust_remote_code": True}
    labels = {"candidate_labels": ["cat", "dog", "eel"]}
    model = AutoModelForZeroShotImageClassification.from_pretrained(f"alice/{family}", **remote)
    tokenizer = AutoTokenizer.from_pretrained(f"alice/{family}", **remote)
    tower = AutoModel.from_pretrained(f"alice/{family}", **remote)
    texts = tokenizer(["cat", "dog"], return_tensors="pt", **model.config.text_padding)
    images = torch.randn(2, 3, 31, 31)
    with torch.no_grad():
        pooled = model.get_image_features(images, coordinates=torch.rand(1, 4, 2)).pooler_output.shape
        logits = model(pixel_values=images, **texts).logits_per_image.shape
        equal = torch.equal(tower(images).pooler_output, model.spot_vit(images).pooler_output)
    spot = pipeline("spot-zero-shot-image-classification", model=f"alice/{family}", **remote)
    stock = pipeline("zero-shot-image-classification", model=f"alice/{family}", **remote)
    whole = pipeline("spot-zero-shot-image-classification", model=f"alice/{family}-pipeline", **remote)
    found = {
        "modules": [type(one).__module__ for one in (model, tower, spot, model.config)],
        "stock": type(stock).__name__,
        "shapes": [list(pooled), list(logits)],
        "tower": equal,
        "verified": model.verify().equal,
        "spot answers": spot(photos, **labels),
        "stock answers": stock(photos, **labels),
        "whole answers": whole(photos, **labels),
        "center": spot(photos, num_tokens=5, placement="center", return_coordinates=True, **labels),
    }
    spot.save_pretrained(save_to)
    again = pipeline("spot-zero-shot-image-classification", model=save_to, **remote)
    found["saved again"] = again(photos, **labels)
    return found


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_push_and_load(family, hub, photos, tmp_path, fresh_process, request):
    tests = str(request.config.rootpath / "tests")
    published = fresh_process(publish, family, photos, tests, hub=hub, token="hf_alice")
    assert published["source"] == "SpotViTForZeroShotImageClassification"
    assert published["refused"] == "`tokenizer` is needed by a zero-shot model: that of its source; got NoneType"
    for repo_id in (f"alice/{family}", f"alice/{family}-pipeline"):
        pushed = files(hub, repo_id)
        own = {"requirements.txt"} if repo_id == f"alice/{family}" else set()  # of `push_model`
        assert set(pushed) == {*MODEL_FILES, *TOKENIZER_FILES, "README.md"} | own
        card = pushed["README.md"].decode()
        assert "pipeline_tag: zero-shot-image-classification" in card and "[More Information Needed]" not in card
        assert f'pipeline("spot-zero-shot-image-classification", model="{repo_id}", trust_remote_code=True)' in card
        assert ("this model is SigLIP's" in card) is (family == "siglip")
        config = json.loads(pushed["config.json"])
        references = [*config["auto_map"].values(), *(entry["impl"] for entry in config["custom_pipelines"].values())]
        for reference in references:
            module, name = reference.split(".")  # no `user/name--` before it
            assert f"class {name}(" in pushed[f"{module}.py"].decode()
    loaded = fresh_process(load, family, photos, tmp_path / "saved", hub=hub, without_spot_hf=True)
    assert all(module.startswith("transformers_modules.") for module in loaded["modules"])
    ours = "SpotZeroShotImageClassificationPipeline"
    assert loaded["stock"] == (ours if family == "siglip" else "ZeroShotImageClassificationPipeline")
    assert loaded["tower"] is loaded["verified"] is True and loaded["shapes"] == [
        [2, 36 if family == "siglip" else 20],
        [2, 2],
    ]
    for name in ("spot answers", "whole answers", "saved again"):
        # Weights lie elsewhere in memory: matrix products may round otherwise.
        assert close(loaded[name], published["saved"], 1e-5), name
    assert close(loaded["stock answers"], published["saved"], 5e-3)  # windows of 8-bit pixels, as `tiny.nearly` says
    for one, other in zip(loaded["center"], published["center"], strict=True):
        assert close([one["predictions"]], [other["predictions"]], 1e-5)
        assert one["coordinates"] == other["coordinates"] and len(one["coordinates"]) == 5


def close(answers, expected, tolerance):
    """Of several images, scores by label."""
    return all(
        {entry["label"]: entry["score"] for entry in one}
        == pytest.approx({entry["label"]: entry["score"] for entry in other}, abs=tolerance)
        for one, other in zip(answers, expected, strict=True)
    )
