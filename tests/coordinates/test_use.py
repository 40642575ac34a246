"""Joined rows through processor, model and pipeline: they give what the run says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from coordinate_runs import CLASSES
from transformers import AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from spot_hf import join_coordinates, load_coordinates


@pytest.mark.parametrize("config", ["spot_n4", "spot_n9"])
@torch.no_grad()
def test_rows_reproduce_their_predictions(made, config):
    rows = load_coordinates(made.run, config)
    joined = join_coordinates(made.images, rows)
    model = AutoModelForImageClassification.from_pretrained(made.model).eval()
    processor = AutoImageProcessor.from_pretrained(made.model)
    for row in joined:
        losses = []
        for name, prediction in (("initial_coordinates", "initial_prediction"), ("coordinates", "prediction")):
            inputs = processor(row["image"], coordinates=row[name], return_tensors="pt")
            logits = model(**inputs).logits
            assert logits.argmax().item() == row[prediction], row["image_id"]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).item())
        # Positions were stored relative to the image, in float32, and mapped back.
        assert losses == pytest.approx([row["losses"][0], min(row["losses"])], abs=1e-3)
    # The bare encoder too takes what the processor gives.
    encoder = AutoModel.from_pretrained(made.model).eval()
    assert encoder(**inputs).last_hidden_state.shape[1] == 1 + len(row["coordinates"])
    accuracy = np.mean(np.array(rows["prediction"]) == np.array(rows["label"]))
    assert accuracy > np.mean(np.array(rows["initial_prediction"]) == np.array(rows["label"])), "the search found nothing"


@torch.no_grad()
def test_window_scales_are_part_of_the_prediction(made, nameless):
    joined = join_coordinates(nameless.images, nameless.rows)
    model = AutoModelForImageClassification.from_pretrained(made.model).eval()
    processor = AutoImageProcessor.from_pretrained(made.model)
    without = []
    for row in joined:
        inputs = processor(row["image"], coordinates=row["coordinates"], return_tensors="pt")
        logits = model(**inputs, window_scales=torch.tensor([row["window_scales"]])).logits
        assert logits.argmax().item() == row["prediction"]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).item()
        assert loss == pytest.approx(min(row["losses"]), abs=1e-3)  # as above
        without.append(abs(model(**inputs).logits - logits).max().item())
    assert np.median(without) > 0.1


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("kind", ["made", "nameless"])
def test_the_pipeline_takes_joined_rows(made, kind, batch_size, request):
    it = request.getfixturevalue(kind)
    joined = join_coordinates(it.images, it.rows)
    classifier = pipeline(
        "spot-image-classification",
        model=AutoModelForImageClassification.from_pretrained(made.model),
        image_processor=AutoImageProcessor.from_pretrained(made.model),
    )
    answers = classifier(list(joined), top_k=1, batch_size=batch_size, return_coordinates=True)
    assert [answer["predictions"][0]["label"] for answer in answers] == [CLASSES[i] for i in joined["prediction"]]
    for answer, row in zip(answers, joined, strict=True):
        np.testing.assert_allclose(answer["coordinates"], row["coordinates"], rtol=0, atol=1e-6)  # float32, there and back
    assert classifier(joined[3], top_k=1)[0]["label"] == CLASSES[joined[3]["prediction"]]
    streamed = classifier((row for row in joined), top_k=1, batch_size=batch_size)
    assert [answer[0]["label"] for answer in streamed] == [CLASSES[i] for i in joined["prediction"]]


@pytest.mark.parametrize("kind", ["made", "nameless"])
def test_the_cards_code_gives_every_prediction(made, kind, request, tmp_path):
    """As it stands in the README, but for the paths of what is not on the Hub; of a run with window scales, and without."""
    it = request.getfixturevalue(kind)
    text = (Path(it.run) / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    local = {"DIR_OR_REPO": it.run, "PATH/TO/pictures": it.pictures, "PATH/TO/spot": made.model}
    for name, path in local.items():
        assert name in code, code
        code = code.replace(name, path)
    code = code.replace("from transformers import AutoModelForImageClassification, AutoImageProcessor",
                        "from transformers import AutoModelForImageClassification\n"
                        "from transformers.models.auto.image_processing_auto import AutoImageProcessor")  # fmt: skip
    setup, used = code.split("row = joined[0]\n")
    names: dict = {}
    exec(setup, names)
    assert len(names["joined"]) == len(it.rows) > 10
    for row in names["joined"]:
        exec(used, {**names, "row": row}, found := {})
        assert found["prediction"] == row["prediction"]
