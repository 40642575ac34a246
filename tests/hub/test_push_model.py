"""Publishing what was made in Python, and cards of what a Trainer saved."""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from oracle_runs import save_images
from tiny import tiny_model, tiny_processor

from spot_hf import push_model
from spot_hf.cli import main


LABELS = {"id2label": dict(enumerate(["ant", "bee", "cat", "dog", "eel"]))}


def publish(tests):
    """In its process: pushes a model, and once more after a person has written on its card."""
    import sys
    from pathlib import Path

    sys.path.insert(0, tests)
    import torch
    from huggingface_hub import HfApi
    from tiny import random_images, tiny_model, tiny_processor

    from spot_hf import push_model

    model, processor = tiny_model(id2label=dict(enumerate("abcde"))), tiny_processor(num_tokens=9, placement="center")
    url = push_model(model, processor, "alice/mine", measured="Measured by alice.")
    api = HfApi()
    text = Path(api.hf_hub_download("alice/mine", "README.md")).read_bytes() + b"\nHer own words.\n"
    api.upload_file(path_or_fileobj=text, path_in_repo="README.md", repo_id="alice/mine")
    push_model(model, processor, "alice/mine", commit_message="again")
    with torch.no_grad():
        logits = model(random_images(1)).logits[0].tolist()
    return {"url": url, "files": api.list_repo_files("alice/mine"), "logits": logits}


def load():
    """In the process of somebody without the package."""
    from pathlib import Path

    import torch
    from huggingface_hub import HfApi
    from PIL import Image
    from transformers import AutoModelForImageClassification, pipeline

    model = AutoModelForImageClassification.from_pretrained("alice/mine", trust_remote_code=True)
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(images).logits[0].tolist()
    classifier = pipeline("spot-image-classification", model="alice/mine", trust_remote_code=True)
    answer = classifier(Image.new("RGB", (60, 50), (9, 90, 200)), return_coordinates=True)
    card = Path(HfApi().hf_hub_download("alice/mine", "README.md")).read_text()
    return {"logits": logits, "num_tokens": len(answer["coordinates"]), "card": card}


def test_what_was_pushed_loads_by_remote_code(hub, fresh_process):
    pushed = fresh_process(publish, str(Path(__file__).parents[1]), hub=hub, token="hf_alice")
    assert pushed["url"].startswith(hub.url) and {"modeling_spot_vit.py", "drawing.py"} <= set(pushed["files"])
    found = fresh_process(load, hub=hub, without_spot_hf=True)
    assert found["logits"] == pytest.approx(pushed["logits"], abs=1e-5) and found["num_tokens"] == 9
    for words in ('model="alice/mine"', "Measured by alice.", "Her own words.", "9 tokens, center"):
        assert words in found["card"]


def push_without_token():
    from spot_hf import SpotViTConfig, SpotViTForImageClassification, SpotViTImageProcessorPil, push_model

    config = SpotViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    try:
        return push_model(SpotViTForImageClassification(config), SpotViTImageProcessorPil(patch_size=8), "alice/refused")
    except OSError as error:
        return str(error)


def test_refused_without_a_token_in_one_line(hub, fresh_process):
    line = fresh_process(push_without_token, hub=hub)
    assert "hf auth login" in line and "HF_TOKEN" in line and "\n" not in line
    assert "is complete" not in line  # the folder is gone


def with_placement(name: str):
    """A processor whose saved placement only its own process knows."""
    processor = tiny_processor()
    processor.placement = name
    return processor


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repo_id": "mine"}, "`repo_id` must be a repository such as user/name"),
        ({"model": "spot"}, "`model` must be a SpotViT; got str"),
        ({"image_processor": None}, "`image_processor` must be a SpotViT's; got NoneType"),
        ({"image_processor": with_placement("mine")}, "must have a built-in placement saved, or none"),
    ],
)
def test_what_cannot_be_pushed(changes, words):
    given = {"model": tiny_model(), "image_processor": tiny_processor(), "repo_id": "alice/mine", **changes}
    with pytest.raises(ValueError, match=words):
        push_model(**given)


def test_adapters_are_merged_first(photos, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    with pytest.raises(ValueError, match="`model` has adapters: merge it first"):
        push_model(adapted, tiny_processor(), "alice/mine")
    adapted.save_pretrained(tmp_path / "adapter")
    images = save_images(tmp_path / "images", 4)
    for command in (
        ["classify", "--model", str(tmp_path / "adapter"), *photos],
        ["evaluate", "--model", str(tmp_path / "adapter"), "--dataset_name", str(images), "--output_dir", str(tmp_path / "e")],
    ):
        assert main(command) == 2
        assert "holds adapters of PEFT, not a whole model: merge it first" in capsys.readouterr().err


def test_push_is_for_coordinates(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    assert main(["push", "--output_dir", str(tmp_path), "--hub_dataset_id", "alice/mine"]) == 2
    line = capsys.readouterr().err
    assert "holds a model: this publishes coordinates" in line and "spot_hf.push_model" in line


def test_the_card_of_what_a_trainer_saved(tmp_path, capsys):
    """A plain Trainer's `save_model` leaves none: written by itself, or with results."""
    model, directory = tiny_model(**LABELS), tmp_path / "tuned"
    model.save_pretrained(directory)
    tiny_processor(num_tokens=4, placement="center").save_pretrained(directory)
    os.remove(directory / "README.md")
    assert main(["card", "--model", str(directory)]) == 0
    card = ModelCard.load(directory / "README.md")
    assert card.data.pipeline_tag == "image-classification" and "4 tokens, center" in card.text
    assert main(["card", "--model", str(directory)]) == 2
    assert "has a card already" in capsys.readouterr().err
    os.remove(directory / "README.md")
    words = ["--dataset_name", str(save_images(tmp_path / "images", 6)), "--num_tokens", "4", "--placement", "isotropic"]
    words += ["--baselines", "none", "--num_workers", "0", "--output_dir", str(tmp_path / "results")]
    assert main(["evaluate", "--model", str(directory), *words]) == 0
    assert main(["card", "--model", str(directory), "--results", str(tmp_path / "results")]) == 0
    card = ModelCard.load(directory / "README.md")
    assert card.data.eval_results and "Accuracy by tokens and placement" in card.text
    table = (tmp_path / "results/README.md").read_text()
    assert "to grid_subset" not in table and "the source model" not in table  # neither was measured, nor is it one


def test_two_models_of_one_name(tmp_path, capsys):
    images = save_images(tmp_path / "images", 6)
    for seed, folder in enumerate("ab"):
        tiny_model(seed, **LABELS).save_pretrained(tmp_path / folder / "spot")
        tiny_processor().save_pretrained(tmp_path / folder / "spot")
    words = ["--dataset_name", str(images), "--num_tokens", "4", "--placement", "isotropic", "--baselines", "none"]
    words += ["--num_workers", "0", "--output_dir", str(tmp_path / "out")]
    first, second = (str(tmp_path / folder / "spot") for folder in "ab")
    assert main(["evaluate", "--model", first, second, *words]) == 2
    assert "NAME=DIRECTORY gives a model another name" in capsys.readouterr().err
    assert main(["evaluate", "--model", first, f"tuned={second}", *words]) == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text()  # a path of this machine
    assert {row["model"] for row in found["results"]} == set(found["parameters"]["model"]) == {"spot", "tuned"}
