"""Tokens that a model places by itself, and a budget per image: looks with more and more tokens, until it is sure."""

import json

import pytest
import torch
from saved_pipelines import check_stock_pipelines
from tiny import pictures, random_images, save_pictures, tiny_model, tiny_processor

from spot_hf import SpotImageClassificationPipeline, SpotViTForImageClassification
from spot_hf.budgets import resolve_budgets
from spot_hf.cli import main


LOOKS = [4, 9, 36]
SURE = 0.31  # as sure as the tiny model is of some images at a first look, of others at a second, of some never


def by_hand(model, images, confidence, temperature=(1.0, 1.0, 1.0)):
    """Image by image, look by look."""
    logits, spent = [], []
    for image in images.split(1):
        total = 0
        for number, count in enumerate(LOOKS):
            found = model(image, **model.place(image, count)).logits / temperature[number]
            total += count
            if number == len(LOOKS) - 1 or found.softmax(-1).max() >= confidence[number]:
                break
        logits.append(found)
        spent.append(total)
    return torch.cat(logits), torch.tensor(spent)


# ------------------------------------------------------------------------------------------------- placed by the model


@pytest.mark.parametrize("placement", ["isotropic", "foveated_edge", "foveated_center"])
def test_a_model_places_as_its_processor_does(placement):
    model, processor, images = tiny_model(placement=placement), tiny_processor(), pictures(3)
    inputs = processor(images, num_tokens=9, placement=placement, window_scales="cover", return_tensors="pt")
    placed = model.place(inputs["pixel_values"], 9)
    for name in ("coordinates", "window_scales"):
        assert torch.equal(placed[name], inputs[name])
    with torch.no_grad():
        assert torch.equal(model(inputs["pixel_values"], num_tokens=9).logits, model(**inputs).logits)


def test_as_many_tokens_as_cells_are_the_full_grid():
    model, images = tiny_model(), random_images(3)
    with torch.no_grad():
        assert torch.equal(model(images, num_tokens=36).logits, model(images).logits)


def test_tokens_placed_by_the_model_compile_and_export():
    model, images = tiny_model(placement="foveated_edge"), random_images(2)
    expected = model(images, num_tokens=9).logits
    torch.compiler.reset()  # graphs of other tests count towards a limit
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, num_tokens=9).logits, expected, rtol=0, atol=1e-5)
    exported = torch.export.export(model, (images,), {"num_tokens": 9}).module()
    torch.testing.assert_close(exported(images, num_tokens=9).logits, expected, rtol=0, atol=1e-5)


def test_positions_stay_float32_in_a_model_of_bfloat16():
    placed = tiny_model().to(torch.bfloat16).place(random_images(2).to(torch.bfloat16), 9)
    assert {one.dtype for one in placed.values()} == {torch.float32}


# ------------------------------------------------------------------------------------------------- budgets per image


@pytest.mark.parametrize("confidence", [[SURE, SURE], [0.0, 0.0], [2.0, SURE], [2.0, 2.0]])
def test_a_look_after_another(confidence):
    """As image by image, in a batch of any size. Sums in another order: 1e-5."""
    model, images = tiny_model(), random_images(24)
    with torch.no_grad():
        logits, spent = by_hand(model, images, confidence)
        for batch_size in (1, 5, 24):
            outputs = [model(part, num_tokens=LOOKS, confidence=confidence) for part in images.split(batch_size)]
            assert torch.equal(torch.cat([one.num_tokens for one in outputs]), spent)
            torch.testing.assert_close(torch.cat([one.logits for one in outputs]), logits, rtol=0, atol=1e-5)
    expected = {(0.0, 0.0): {4}, (2.0, 2.0): {49}, (SURE, SURE): {4, 13, 49}, (2.0, SURE): {13, 49}}
    assert set(spent.tolist()) == expected[tuple(confidence)]


def test_looks_at_given_positions():
    model, images = tiny_model(), random_images(8)
    placed = [model.place(images, count) for count in LOOKS]
    coordinates = torch.cat([one["coordinates"] for one in placed], dim=1)
    scales = torch.cat([one.get("window_scales", torch.ones(8, 36)) for one in placed], dim=1)
    with torch.no_grad():
        own = model(images, num_tokens=LOOKS, confidence=SURE)
        given = model(images, coordinates=coordinates, window_scales=scales, num_tokens=LOOKS, confidence=SURE)
    assert torch.equal(own.num_tokens, given.num_tokens)
    torch.testing.assert_close(own.logits, given.logits, rtol=0, atol=1e-5)


def test_the_config_decides_where_nothing_is_said(tmp_path):
    """Saved and loaded again. Calibrated: confidences have temperatures, and a mean number of tokens has thresholds."""
    calibration = {
        "num_tokens": LOOKS,
        "temperature": [2.0, 1.5, 1.0],
        "points": [
            {"confidence": [0.0, 0.0], "mean_tokens": 4.0, "accuracy": 50.0},
            {"confidence": [0.25, 0.29], "mean_tokens": 20.0, "accuracy": 60.0},
        ],
    }
    tiny_model(num_tokens=LOOKS, confidence=0.27, calibration=calibration).save_pretrained(tmp_path)
    model, images = SpotViTForImageClassification.from_pretrained(tmp_path), random_images(12)
    with torch.no_grad():
        for given, confidence in (
            ({}, [0.27, 0.27]),
            ({"max_mean_tokens": 25}, [0.25, 0.29]),
            ({"max_mean_tokens": 5}, [0, 0]),
        ):
            logits, spent = by_hand(model, images, confidence, calibration["temperature"])
            outputs = model(images, **given)
            assert torch.equal(outputs.num_tokens, spent)
            torch.testing.assert_close(outputs.logits, logits, rtol=0, atol=1e-5)
        assert not hasattr(model(images, num_tokens=9), "num_tokens") and "num_tokens" not in model(images, num_tokens=9)
    with pytest.raises(ValueError, match=r"`max_mean_tokens` must be at least 4\.0"):
        model(images, max_mean_tokens=3)


def test_what_budgets_refuse():
    model, images = tiny_model(), random_images(2)
    for given, message in (
        ({"num_tokens": LOOKS}, "`confidence` is needed"),
        ({"num_tokens": [9, 4], "confidence": 0.5}, "`num_tokens` must be one number, or several, ascending"),
        ({"num_tokens": [9], "confidence": 0.5}, "`num_tokens` must be one number, or several, ascending"),
        ({"num_tokens": 0}, "`num_tokens` must be positive"),
        ({"num_tokens": [0, 4], "confidence": 0.5}, "`num_tokens` must be positive"),
        ({"num_tokens": LOOKS, "confidence": [0.5]}, "`confidence` must be one number"),
        ({"num_tokens": LOOKS, "confidence": -1}, "`confidence` must be one number"),
        ({"num_tokens": LOOKS, "confidence": float("nan")}, "`confidence` must be one number"),
        ({"num_tokens": LOOKS, "confidence": 0.5, "max_mean_tokens": 9}, "exclude each other"),
        ({"num_tokens": LOOKS, "max_mean_tokens": 9}, "spot-hf calibrate"),
        ({"confidence": 0.5}, "`confidence` needs several `num_tokens`"),
        ({"num_tokens": 9, "max_mean_tokens": 5}, "`max_mean_tokens` needs several `num_tokens`"),
        ({"num_tokens": 9, "coordinates": torch.rand(2, 9, 2)}, "exclude each other"),
        ({"num_tokens": LOOKS, "confidence": 0.5, "coordinates": torch.rand(2, 9, 2)}, "one after another, 49"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images, **given)
    with pytest.raises(ValueError, match="one number in training"):
        model.train()(images, num_tokens=LOOKS, confidence=0.5)
    for wrong in ({"num_tokens": [9, 4]}, {"num_tokens": 0}, {"placement": "sobol"}, {"num_tokens": LOOKS, "confidence": [1]}):
        with pytest.raises(Exception, match=next(iter(wrong)) if len(wrong) == 1 else "confidence"):
            tiny_model(**wrong)


def test_a_loss_is_that_of_the_last_looks():
    model, images, labels = tiny_model(), random_images(6), torch.arange(6) % 5
    outputs = model(images, labels=labels, num_tokens=LOOKS, confidence=0.5)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))


# --------------------------------------------------------------------------------------------- processor and pipelines


def test_a_processor_places_look_after_look():
    processor, images = tiny_processor(), pictures(2)
    together = processor(images, num_tokens=LOOKS, placement="sobol", window_scales="cover", return_tensors="pt")
    alone = [processor(images, num_tokens=n, placement="sobol", window_scales="cover", return_tensors="pt") for n in LOOKS]
    assert torch.equal(together["coordinates"], torch.cat([one["coordinates"] for one in alone], dim=1))
    assert together["window_scales"].shape == (2, 49)
    with pytest.raises(ValueError, match="ascending"):
        processor(images, num_tokens=[9, 4])
    with pytest.raises(ValueError, match="`num_tokens` must be at most 36"):
        processor(images, num_tokens=[9, 49], placement="grid_subset")


@pytest.mark.parametrize("placement", [None, "uniform"])
def test_a_pipeline_gives_each_image_its_budget(placement):
    model, processor, images = tiny_model(), tiny_processor(), pictures(8)
    classifier = SpotImageClassificationPipeline(model=model, image_processor=processor)
    budget = {"num_tokens": LOOKS, "confidence": SURE, "placement": placement, "return_coordinates": True}
    found = [classifier(images, batch_size=size, **budget) for size in (1, 3, 8)]
    counts = [len(one["coordinates"]) for one in found[0]]
    assert set(counts) <= {4, 13, 49} and len(set(counts)) > 1
    for other in found[1:]:
        assert [len(one["coordinates"]) for one in other] == counts
        for one, same in zip(found[0], other, strict=True):
            assert one["predictions"][0]["label"] == same["predictions"][0]["label"]
            assert one["predictions"][0]["score"] == pytest.approx(same["predictions"][0]["score"], abs=1e-5)
    # The last look alone gives the same answer at the positions that are told.
    few = next(i for i, count in enumerate(counts) if count == 13)
    scales = found[0][few].get("window_scales", [1.0] * 13)
    again = classifier({"image": images[few], "coordinates": found[0][few]["coordinates"][4:], "window_scales": scales[4:]})
    assert again[0]["score"] == pytest.approx(found[0][few]["predictions"][0]["score"], abs=1e-4)  # through both frames


def test_what_a_pipeline_refuses_of_budgets():
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor())
    with pytest.raises(ValueError, match="`confidence` and `max_mean_tokens` exclude each other"):
        classifier(pictures(1), num_tokens=LOOKS, confidence=0.5, max_mean_tokens=9)
    with pytest.raises(ValueError, match="`confidence` is needed"):
        classifier(pictures(1), num_tokens=LOOKS)
    with pytest.raises(ValueError, match="`coordinates` and several `num_tokens` exclude each other"):
        classifier({"image": pictures(1)[0], "coordinates": [[0.5, 0.5]]}, num_tokens=LOOKS, confidence=0.5)


def test_saved_budgets_in_stock_pipelines(fresh_process, tmp_path):
    """Also as remote code, in a process without the package."""
    tiny_model(num_tokens=LOOKS, confidence=SURE).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    files = save_pictures(tmp_path, 6)
    own = SpotImageClassificationPipeline(
        model=SpotViTForImageClassification.from_pretrained(tmp_path / "model"), image_processor=tiny_processor()
    )
    expected = own(files, top_k=1, return_coordinates=True)
    assert len({len(one["coordinates"]) for one in expected}) > 1
    check_stock_pipelines(fresh_process, tmp_path / "model", files, expected)


def test_classify_with_a_budget_per_image(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    save_pictures(tmp_path / "images", 6)
    words = ["classify", "--model", str(tmp_path / "model"), str(tmp_path / "images"), "--json"]
    assert main([*words, "--num_tokens", "4,9,36", "--confidence", f"{SURE},{SURE}", "--draw", str(tmp_path / "seen")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["num_tokens"] for one in found} == {4, 13, 49} and len(list((tmp_path / "seen").iterdir())) == 6
    assert main([*words, "--num_tokens", "9", "--merge_tokens", "0.5"]) == 0
    for wrong in (["--num_tokens", "4,x"], ["--num_tokens", "9,4"], ["--num_tokens", "4,9"], ["--confidence", "0.5"]):
        assert main([*words, *wrong]) == 2
    assert main([*words, "--num_tokens", "4,9", "--confidence", "0.5", "--max_mean_tokens", "5"]) == 2


def test_budgets_of_a_config_need_its_looks():
    config = tiny_model(num_tokens=LOOKS, confidence=0.4).config
    assert resolve_budgets(config, None).confidence == (0.4, 0.4)
    with pytest.raises(ValueError, match="`confidence` is needed"):
        resolve_budgets(config, [4, 9])
    assert resolve_budgets(config, 9) == 9


# ------------------------------------------------------------------------------------- where budgets are not what is wanted


def test_windows_of_ones_own_size_in_a_pipeline_that_looks_again():
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor())
    budget = {"num_tokens": [4, 9], "confidence": 2.0, "return_coordinates": True}
    (picture,) = pictures(1)
    assert classifier(picture, **budget)["window_scales"] == [3.0] * 4 + [2.0] * 9
    assert classifier(picture, window_scales=1.5, **budget)["window_scales"] == [1.5] * 13
    calibrated = tiny_model(num_tokens=[4, 9], confidence=2.0)
    saved = SpotImageClassificationPipeline(model=calibrated, image_processor=tiny_processor())
    own = classifier(picture, window_scales=1.5, **budget)
    assert saved(picture, window_scales=1.5, return_coordinates=True) == own  # two looks, not one with 13 tokens
    scales = [1.0] * 4 + [1.5] * 9
    assert classifier(picture, window_scales=scales, **budget)["window_scales"] == scales


def test_what_a_call_names_takes_the_place_of_what_the_pipeline_was_made_with():
    made = {"num_tokens": [4, 9], "confidence": 2.0, "return_coordinates": True}
    classifier = SpotImageClassificationPipeline(model=tiny_model(), image_processor=tiny_processor(), **made)
    (picture,) = pictures(1)
    assert len(classifier(picture)["coordinates"]) == 13
    assert len(classifier(picture, confidence=0.0)["coordinates"]) == 4
    assert len(classifier(picture, num_tokens=9)["coordinates"]) == 9
    assert len(classifier(picture, coordinates=[[0.5, 0.5]])["coordinates"]) == 1
    with pytest.raises(ValueError, match="`confidence` needs several `num_tokens`"):
        classifier(picture, num_tokens=9, confidence=0.5)


def test_a_batch_of_images_with_and_without_positions_of_their_own():
    """Where the config says how many tokens: as one by one. Sums in another order: 1e-5."""
    classifier = SpotImageClassificationPipeline(model=tiny_model(num_tokens=9), image_processor=tiny_processor())
    one, two, three = pictures(3)
    inputs = [one, {"image": two, "coordinates": [[0.2, 0.3], [0.7, 0.6]]}, three]
    together = classifier(inputs, batch_size=3, return_coordinates=True)
    alone = [classifier(each, return_coordinates=True) for each in inputs]
    assert [len(each["coordinates"]) for each in together] == [9, 2, 9]
    for each, same in zip(together, alone, strict=True):
        assert each["coordinates"] == same["coordinates"] and each.get("window_scales") == same.get("window_scales")
        scores = [{answer["label"]: answer["score"] for answer in found["predictions"]} for found in (each, same)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_classifiers_of_one_class_have_no_budgets():
    for changes in ({"num_labels": 1}, {"problem_type": "multi_label_classification"}):
        with pytest.raises(ValueError, match="one of several classes"):
            tiny_model(**changes)(random_images(1), num_tokens=LOOKS, confidence=0.5)
    with pytest.raises(ValueError, match="`output_hidden_states` is not for several"):
        tiny_model()(random_images(1), num_tokens=LOOKS, confidence=0.5, output_hidden_states=True)
