"""Cards say what is so of the weights beside them."""

import pytest
import torch
from tiny import random_images, tiny_model
from tiny_networks import save_network

from spot_hf import SpotViTForImageClassification, SpotViTForSemanticSegmentation, SpotViTModel, convert_checkpoint


def card(directory) -> str:
    return " ".join((directory / "README.md").read_text().split())


def test_a_conversion_states_its_source_and_parity(tiny_vit, tmp_path):
    convert_checkpoint(str(tiny_vit), tmp_path / "spot", num_tokens=4)
    text = card(tmp_path / "spot")
    assert f"`{tiny_vit.name}`" in text and "cc-by-4.0" in text and "logits equal its source's to 1e-4" in text
    assert "never seen off-grid" in text and "4 tokens, isotropic" in text and "untrained" not in text


def test_a_new_classifier_is_called_new(tmp_path, tiny_vit):
    from transformers import ViTModel

    ViTModel.from_pretrained(tiny_vit, add_pooling_layer=False).save_pretrained(tmp_path / "headless")
    convert_checkpoint(str(tmp_path / "headless"), tmp_path / "classifier", num_labels=3)
    text = card(tmp_path / "classifier")
    assert "classifier is new and untrained" in text and "features equal its source's" in text
    convert_checkpoint(str(tmp_path / "headless"), tmp_path / "features")
    text = card(tmp_path / "features")
    assert "features equal its source's" in text and "no classifier: it gives features" in text and "AutoModel.from" in text


def test_trained_weights_claim_no_parity(tiny_vit, tmp_path):
    convert_checkpoint(str(tiny_vit), tmp_path / "spot")
    model = SpotViTForImageClassification.from_pretrained(tmp_path / "spot")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(random_images(2, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    text = card(tmp_path / "trained")
    assert "Nothing was measured" in text and "1e-4" not in text and tiny_vit.name in text


def test_a_model_of_ones_own_claims_no_source(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    text = card(tmp_path)
    assert "not converted: trained as a SpotViT" in text and "1e-4" not in text and "More Information Needed" not in text


@pytest.mark.parametrize(
    ("model_class", "is_shown"),
    [(SpotViTForImageClassification, True), (SpotViTForSemanticSegmentation, False), (SpotViTModel, False)],
)
def test_how_to_deploy_a_model(model_class, is_shown, tmp_path):
    """What can be done with it, and no more; requests to an endpoint are run by `test_endpoints.py`."""
    tiny_model(model_class=model_class).save_pretrained(tmp_path)
    text = card(tmp_path)
    assert 'curl "$ENDPOINT?num_tokens=9&placement=isotropic"' in text
    assert "spot-hf export --model" in text and "OnnxSpotViT.from_pretrained(" in text
    assert ("spot-hf demo --model" in text) == is_shown


def test_a_network_is_not_exported(tmp_path):
    convert_checkpoint(save_network(tmp_path / "source"), tmp_path / "spot")
    text = card(tmp_path / "spot")
    assert "$ENDPOINT" in text and "spot-hf export" not in text and "spot-hf demo" not in text


def test_a_persons_card_stays(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize(("num_tokens", "placement"), [(500, "grid_subset"), (25, "grid"), (17, "grid_subset")])
def test_defaults_that_could_not_work_are_not_saved(tiny_vit, tmp_path, num_tokens, placement):
    with pytest.raises(ValueError, match="num_tokens"):
        convert_checkpoint(str(tiny_vit), tmp_path / "spot", num_tokens=num_tokens, placement=placement)
    assert not list(tmp_path.iterdir())
