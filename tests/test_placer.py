"""A model's own placer: where to look closely, from a thumbnail."""

import json

import pytest
import torch
from oracle_runs import save_images
from saved_pipelines import check_stock_pipelines
from tiny import random_images, save_pictures, tiny_model, tiny_processor

from spot_hf import SpotImageClassificationPipeline, SpotViTForImageClassification, convert_checkpoint, foveate, verify_model
from spot_hf.cli import main
from spot_hf.placer import NEW, SpotViTPlacer, bumps_at, densities, mirrored
from spot_hf.training.placer import TrainPlacerArguments, _train, run_placer_training


SIZES = {"thumbnail_size": 24, "hidden_size": 16, "grid_size": 3}
both_heads = pytest.mark.parametrize("head", ["heatmap", "linear"])


def model_with_placer(head="heatmap", **changes):
    return tiny_model(placer={**SIZES, "head": head}, placement="learned", **changes)


def test_the_family_of_foveations():
    placer = SpotViTPlacer(model_with_placer().config).placer
    found = densities(placer)
    assert found.shape == (10, 14, 14) and torch.equal(found[0], torch.ones(14, 14))
    # Row by row: the places' rows and columns, where a density is highest. A place may lie between two cells.
    rows, columns = (torch.tensor([divmod(int(one.argmax()), 14) for one in found[1:]]) / 14 * 3).long().unbind(1)
    assert rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and columns.tolist() == [0, 1, 2] * 3
    torch.testing.assert_close(found[mirrored(placer)], found.flip(-1))
    assert torch.equal(mirrored(placer)[mirrored(placer)], torch.arange(10))


@both_heads
def test_a_model_looks_where_its_placer_says(head):
    """For any number of tokens; an image's positions are its own. Sums in another order: 1e-5."""
    model = model_with_placer(head)
    images = torch.nn.functional.interpolate(blobs(12, seed=0)[0], scale_factor=2.0)
    placer = model.placer = SpotViTPlacer(model.config)
    best = placer(placer.thumbnails(images)).argmax(-1)
    assert len(set(best.tolist())) > 1
    wanted = densities(placer.placer)[best] if head == "linear" else placer.densities(placer.thumbnails(images))
    for num_tokens in (4, 9, 30):
        coordinates, scales = foveate(wanted, num_tokens, 48, 48, 8)
        placed = model.place(images, num_tokens)
        assert torch.equal(placed["coordinates"], coordinates) and torch.equal(placed["window_scales"], scales)
    alone = torch.cat([model.place(image, 9)["coordinates"] for image in images.split(1)])
    torch.testing.assert_close(model.place(images, 9)["coordinates"], alone, rtol=0, atol=1e-5)
    isotropic = model.place(images, 9, "isotropic")["coordinates"]
    assert not torch.equal(isotropic, alone)
    with torch.no_grad():
        logits = model(images, num_tokens=9).logits
        torch.testing.assert_close(logits, model(images, **model.place(images, 9)).logits, rtol=0, atol=1e-5)
        looks = model(images, num_tokens=[4, 9], confidence=2.0)
    torch.testing.assert_close(looks.logits, logits, rtol=0, atol=1e-5)


def test_a_bump_sits_between_the_places_that_score_highest():
    """At the mean of the likeliest place and its neighbours, weighed by softmax; where flat scores highest, none."""
    placer = SpotViTPlacer(model_with_placer().config)
    scores = torch.full((3, 10), -9.0)
    scores[0, [5, 6]] = 9.0  # the middle and the one to its right
    scores[1, [1, 9]] = torch.tensor([9.0, 8.9])  # two corners: the other one is no neighbour
    scores[2, 0] = 9.0
    placer.forward = lambda thumbnails: scores
    found = placer.densities(torch.zeros(3, 3, 24, 24))
    expected = bumps_at(torch.tensor([[2 / 3, 0.5], [1 / 6, 1 / 6]]), placer.placer)
    torch.testing.assert_close(found[:2], expected, rtol=1e-4, atol=0)  # exp(-18) of the weight is elsewhere
    assert torch.equal(found[2], torch.ones(14, 14))


@both_heads
def test_learned_placement_compiles_exports_and_takes_bfloat16(head):
    model, images = model_with_placer(head), random_images(2)
    expected = model(images, num_tokens=9).logits
    torch.compiler.reset()  # graphs of other tests count towards a limit
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, num_tokens=9).logits, expected, rtol=0, atol=1e-5)
    exported = torch.export.export(model, (images,), {"num_tokens": 9}).module()
    torch.testing.assert_close(exported(images, num_tokens=9).logits, expected, rtol=0, atol=1e-5)
    placed = model.to(torch.bfloat16).place(images.to(torch.bfloat16), 9)
    assert {one.dtype for one in placed.values()} == {torch.float32}


def test_a_placer_travels_with_its_model(fresh_process, tmp_path):
    """Saved, in the stock pipeline, and as remote code in a process without the package."""
    model_with_placer(num_tokens=9).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    model = SpotViTForImageClassification.from_pretrained(tmp_path / "model")
    images = random_images(3)
    assert torch.equal(model(images).logits, model_with_placer()(images, num_tokens=9).logits)
    files = save_pictures(tmp_path, 3)
    own = SpotImageClassificationPipeline(model=model, image_processor=tiny_processor())
    expected = own(files, top_k=1, return_coordinates=True)
    assert {len(one["coordinates"]) for one in expected} == {9}
    again = own(files, top_k=1, num_tokens=9, placement="learned", return_coordinates=True)
    assert again == expected
    check_stock_pipelines(fresh_process, tmp_path / "model", files, expected)


def test_what_placers_refuse():
    for wrong in (
        {"grid": 5},
        {"grid_size": 0},
        {"hidden_size": 12},
        {"width": 0.0},
        {"height": float("inf")},
        {"head": "mlp"},
    ):
        with pytest.raises(Exception, match="`placer`"):
            tiny_model(placer=wrong)
    with pytest.raises(Exception, match="`placement` 'learned' needs a `placer`"):
        tiny_model(placement="learned")
    with pytest.raises(ValueError, match="'learned' needs a placer"):
        tiny_model().place(random_images(1), 9, "learned")
    with pytest.raises(ValueError, match="`placement` must be isotropic"):
        tiny_model().place(random_images(1), 9, "sobol")


# ----------------------------------------------------------------------------------------------------------- training


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Thumbnails with a bright blob at one of nine places, and which of them it is."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(9, (count,), generator=generator)
    thumbnails = 0.3 * torch.randn(count, 3, 24, 24, generator=generator)
    for i, place in enumerate(which.tolist()):
        row, column = divmod(place, 3)
        thumbnails[i, :, 8 * row + 1 : 8 * row + 7, 8 * column + 1 : 8 * column + 7] += 1.5
    return thumbnails, which


@both_heads
def test_a_placer_learns_where_the_best_foveation_is(head):
    """On others than it was trained on, and their mirror images."""
    model = model_with_placer(head)
    model.placer = SpotViTPlacer(model.config)  # as a new one begins
    thumbnails, which = blobs(600, seed=0)
    divergence = torch.full((600, 10), 2.0).scatter(1, which[:, None] + 1, 0.05)
    arguments = TrainPlacerArguments(model="m", dataset_name="d", num_train_epochs=10, output_dir="o")
    losses = _train(arguments, model, thumbnails, divergence)
    assert losses[-1] < losses[0]
    thumbnails, which = blobs(200, seed=1)
    with torch.no_grad():
        assert (model.placer(thumbnails).argmax(-1) == which + 1).float().mean() > 0.9
        flipped = model.placer(thumbnails.flip(-1)).argmax(-1)
    assert (flipped == mirrored(model.placer.placer)[which + 1]).float().mean() > 0.9


@pytest.fixture(scope="module")
def source(tiny_vit, tmp_path_factory):
    directory = tmp_path_factory.mktemp("placer")
    convert_checkpoint(tiny_vit, directory / "spot")
    return directory / "spot", str(save_images(directory / "images", 24))


def words_of(source, output) -> list[str]:
    words = [
        "train-placer",
        "--model",
        str(source[0]),
        "--dataset_name",
        source[1],
        "--dataset_split",
        "validation",
        "--num_tokens",
        "4",
    ]
    words += ["--placer", json.dumps(SIZES), "--num_train_epochs", "2", "--num_workers", "0", "--output_dir", str(output)]
    return words


def test_the_job_from_images_to_an_evaluation(source, tmp_path, monkeypatch, capsys):
    from spot_hf.training import placer

    monkeypatch.setattr(placer, "SHARD", 10)
    assert main(words_of(source, tmp_path / "whole")) == 0
    found = json.loads((tmp_path / "whole/placer.json").read_text())
    divergence = found["divergence"]
    assert divergence["best"] <= min(divergence.values()) and len(found["losses"]) == 2
    assert "has a placer, trained without labels on 24 images" in (tmp_path / "whole/README.md").read_text()
    model = SpotViTForImageClassification.from_pretrained(tmp_path / "whole")
    verified = verify_model(str(tmp_path / "whole"))
    assert verified.equal and "placed/scores" in verified.differences
    assert model.config.placement == "learned" and model.config.placer == {**NEW, **SIZES}

    # Killed after a shard of the search: the same weights.
    real, calls = placer._Search._write, []

    def killed(self, path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, path, *rest)

    monkeypatch.setattr(placer._Search, "_write", killed)
    assert main(words_of(source, tmp_path / "killed")) == 130
    monkeypatch.setattr(placer._Search, "_write", lambda self, path, *rest: (calls.append(path), real(self, path, *rest)))
    calls.clear()
    assert main(words_of(source, tmp_path / "killed")) == 0
    assert len(calls) == 2  # of three
    again = SpotViTForImageClassification.from_pretrained(tmp_path / "killed")
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name])
    assert main([*words_of(source, tmp_path / "killed"), "--seed", "1"]) == 2  # another run

    words = ["evaluate", "--model", str(tmp_path / "whole"), "--dataset_name", source[1], "--num_tokens", "4", "9"]
    words += ["--placement", "isotropic", "learned", "learned_control", "--window_scales", "cover", "--confidence", "0.25"]
    assert (
        main(
            [
                *words,
                "--num_workers",
                "0",
                "--baselines",
                "full_grid",
                "shrunken_image",
                "--pareto",
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    rows = json.loads((tmp_path / "out/results.json").read_text())["results"]
    ways = {row["way"] for row in rows}
    assert {"learned", "learned_control", "learned, until sure", "isotropic, cover"} <= ways
    words[2] = str(source[0])
    assert main([*words, "--num_workers", "0", "--output_dir", str(tmp_path / "without")]) == 2
    assert "needs a model with a placer" in capsys.readouterr().err


def test_what_the_job_refuses(source, tmp_path):
    given = {"model": str(source[0]), "dataset_name": source[1], "output_dir": str(tmp_path / "out")}
    for wrong, message in (
        ({"num_tokens": 0}, "`num_tokens`"),
        ({"sharpness": 0.0}, "`sharpness`"),
        ({"placer": "[1]"}, "placer"),
        ({"placer": '{"grid": 1}'}, "`placer`"),
        ({"dtype": "int8"}, "`dtype`"),
        ({"dataset_split": "dev"}, "`dataset_split`"),
    ):
        with pytest.raises(ValueError, match=message):
            run_placer_training(TrainPlacerArguments(**{**given, **wrong}))
    assert not (tmp_path / "out").exists()
