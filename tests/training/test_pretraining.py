"""The pre-training job: `spot-hf pretrain` on digits, from new models and given ones, interrupted, and what comes after."""

import json

import numpy as np
import pytest
import torch
from oracle_runs import save_images
from PIL import Image
from safetensors.torch import load_file
from tiny import TINY, random_images, tiny_model, tiny_processor
from transformers import AutoModelForPreTraining

from spot_hf import SpotViTForImageClassification, SpotViTForPreTraining, SpotViTModel, verify_model
from spot_hf.cli import main
from spot_hf.data.failures import TooManyFailedImagesError
from spot_hf.placement import grid
from spot_hf.training import pretraining
from spot_hf.training.arguments import PretrainArguments
from spot_hf.training.draws import MASK, uniforms
from spot_hf.training.placements import TrainingPlacements
from spot_hf.training.pretraining import SpotPretrainer, reconstruct, run_pretraining, save_reconstructions
from spot_hf.training.trainer_arguments import SpotPretrainingArguments


DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
}
OVERRIDES = json.dumps({**{name: value for name, value in TINY.items() if name != "num_labels"}, **DECODER})


def run(output_dir, **changes):
    how = {"max_steps": 6, "per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "steps", "save_steps": 3}
    what = {"dataset_name": "digits", "max_samples": 40, "num_tokens": [12, 16]}
    if "model" not in changes:
        what["config_overrides"] = OVERRIDES
    training = {name: changes.pop(name) for name in list(changes) if name in SpotPretrainingArguments.__dataclass_fields__}
    return run_pretraining(
        PretrainArguments(**{**what, **changes}),
        SpotPretrainingArguments(
            output_dir=str(output_dir), dataloader_num_workers=0, report_to="none", **{**how, **training}
        ),
    )


def weights(directory) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pretrained") / "model"
    return directory, run(directory, num_train_epochs=1)


def test_a_run_leaves_a_model_its_card_its_log_and_pictures(pretrained):
    directory, results = pretrained
    model = AutoModelForPreTraining.from_pretrained(directory)
    assert verify_model(str(directory)).equal
    assert type(model) is SpotViTForPreTraining and model.config.decoder_hidden_size == 24
    last, before = (weights(directory / f"checkpoint-{step}") for step in (6, 3))
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name], tensor) for name, tensor in last.items())
    assert not all(torch.equal(found[name], tensor) for name, tensor in before.items())
    assert json.loads((directory / "pretraining.json").read_text()) == results.to_json()
    assert len([entry for entry in results.log if entry.get("loss", 0) > 0]) == 6 and results.failed == []
    for name, width in (("reconstruction.png", 1710), ("pretraining.png", 1125)):  # 11.4 and 7.5 inches
        with Image.open(directory / name) as picture:
            assert picture.format == "PNG" and picture.width == width
    card = (directory / "README.md").read_text()
    assert "Pre-trained by masked windows, from random weights, on 40 images of `digits`" in card
    assert run(directory, num_train_epochs=1).to_json() == results.to_json()  # is finished


def test_unreadable_images_are_skipped_and_listed(tmp_path):
    """In training, and in the picture, whose images are of the validation split."""
    save_images(tmp_path / "data", 20, broken=(7,), split="train")
    save_images(tmp_path / "data", 8, broken=(2,))
    how = {"max_steps": 4, "save_strategy": "no", "max_samples": None}
    results = run(tmp_path / "run", dataset_name=str(tmp_path / "data"), max_failed_share=0.1, **how)
    assert [(one.image_index, one.image_id) for one in results.failed] == [(7, "picture_7.png")]
    assert json.loads((tmp_path / "run/pretraining.json").read_text())["failed"][0]["image_id"] == "picture_7.png"
    assert "split `train`, of which 1 could not be read" in (tmp_path / "run/README.md").read_text()
    with Image.open(tmp_path / "run/reconstruction.png") as picture:
        assert picture.height == 660  # two rows, of 2.2 inches at 150 dots per inch: three images of the four
    with pytest.raises(TooManyFailedImagesError, match=r"1 of 20 images .* picture_7.png"):
        run(tmp_path / "strict", dataset_name=str(tmp_path / "data"), **how)


def test_an_encoder_that_does_not_fit_its_config_is_named(tmp_path):
    tiny_model(model_class=SpotViTModel).save_pretrained(tmp_path / "odd")
    tiny_processor().save_pretrained(tmp_path / "odd")
    config = json.loads((tmp_path / "odd/config.json").read_text())
    (tmp_path / "odd/config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(ValueError, match=r"odd.*do not fit.*mlp.fc1.bias.*\(48,\).*\(40,\)"):
        run(tmp_path / "run", model=str(tmp_path / "odd"), config_overrides=json.dumps(DECODER))


def test_the_loss_falls(tmp_path):
    how = {"max_steps": 60, "learning_rate": 3e-3, "save_strategy": "no", "per_device_train_batch_size": 16}
    what = {"max_samples": 160, "num_tokens": [36], "placement": ["isotropic"], "crop_scale": [0.9, 1.0], "flip": 0.0}
    losses = [entry["loss"] for entry in run(tmp_path, norm_pix_loss=False, **what, **how).log if "loss" in entry]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])  # 0.39 when this was written


def test_fine_tuning_goes_on_with_the_encoder(pretrained, tmp_path, capsys):
    options = [
        "--dataset_name",
        "digits",
        "--num_tokens",
        "9",
        "--max_samples",
        "32",
        "--max_steps",
        "2",
        "--learning_rate",
        "0",
    ]
    options += ["--classifier", "new", "--eval_strategy", "no", "--per_device_train_batch_size", "8", "--save_strategy", "no"]
    options += ["--dataloader_num_workers", "0", "--report_to", "none", "--output_dir", str(tmp_path / "tuned")]
    assert main(["train", "--model", str(pretrained[0]), *options]) == 0, capsys.readouterr().err
    tuned = SpotViTForImageClassification.from_pretrained(tmp_path / "tuned")
    before = weights(pretrained[0])
    assert tuned.config.num_labels == 10
    for name, parameter in tuned.spot_vit.named_parameters():
        assert torch.equal(parameter, before[f"spot_vit.{name}"])


def test_killed_and_started_again_it_ends_with_the_same_weights(pretrained, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def dies(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise Killed
        return compute_loss(self, *args, **kwargs)

    compute_loss = SpotPretrainer.compute_loss
    monkeypatch.setattr(SpotPretrainer, "compute_loss", dies)
    with pytest.raises(Killed):
        run(tmp_path / "run", num_train_epochs=1)
    monkeypatch.setattr(SpotPretrainer, "compute_loss", compute_loss)
    run(tmp_path / "run", num_train_epochs=1)
    expected, found = weights(pretrained[0]), weights(tmp_path / "run")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("model_class", [SpotViTModel, SpotViTForImageClassification, SpotViTForPreTraining])
def test_from_a_model(model_class, tmp_path):
    """Without learning: the given encoder comes out, and a decoder, here of another shape than the one that was saved."""
    source = tiny_model(model_class=model_class, **DECODER)
    source.save_pretrained(tmp_path / "source")
    tiny_processor().save_pretrained(tmp_path / "source")
    overrides = json.dumps({"decoder_hidden_size": 36})
    run(tmp_path / "run", model=str(tmp_path / "source"), config_overrides=overrides, learning_rate=0.0, mask_ratio=0.5)
    model = SpotViTForPreTraining.from_pretrained(tmp_path / "run")
    for name, parameter in source.base_model.named_parameters():
        assert torch.equal(model.spot_vit.get_parameter(name), parameter)
    assert model.decoder.mask_token.shape[-1] == 36 and model.config.mask_ratio == 0.5


def test_masks_follow_the_draw():
    """Each image and epoch has a mask of its own, whatever its batch."""
    noise = uniforms(3, torch.tensor([5, 6, 5 + 40]), MASK, 12)
    assert torch.equal(uniforms(3, torch.tensor([6]), MASK, 12), noise[1:2])
    assert len({tuple(row.argsort()[:3].tolist()) for row in noise}) == 3


# ------------------------------------------------------------------------------------------------------------ picture


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_perfect_predictions_are_put_together_to_the_image(norm_pix_loss, monkeypatch):
    model = tiny_model(model_class=SpotViTForPreTraining, norm_pix_loss=norm_pix_loss, **DECODER)
    images, noise = random_images(), torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    coordinates = grid(48, 48, 8)[None, :30].expand(2, -1, -1)  # the last row of cells has no window
    monkeypatch.setattr(model.decoder, "forward", lambda *_: model.targets(images, coordinates))
    reconstructed, mask = reconstruct(model, images, coordinates, noise)
    torch.testing.assert_close(reconstructed[:, :, :40], images[:, :, :40], rtol=0, atol=1e-5)
    assert reconstructed[:, :, 40:].isnan().all() and mask.sum(1).tolist() == [22, 22]


def test_between_pixels_predictions_are_weighted_by_what_they_say(monkeypatch):
    """One window a quarter of a pixel to the right, of constant pixels: the constant, wherever it has a say."""
    model = tiny_model(model_class=SpotViTForPreTraining, norm_pix_loss=False, **DECODER)
    coordinates = torch.tensor([[[0.25, 0.25], [0.75 + 0.25 / 48, 0.75]]])
    monkeypatch.setattr(model.decoder, "forward", lambda *_: torch.full((1, 2, 192), 3.0))
    monkeypatch.setattr(model.config, "mask_ratio", 0.5)
    reconstructed, _ = reconstruct(model, random_images(1), coordinates, torch.tensor([[0.0, 1.0]]))
    expected = torch.full((48, 48), torch.nan)
    expected[32:40, 32:41] = 3.0
    expected[8:16, 8:16] = random_images(1)[0, 0, 8:16, 8:16]  # is seen
    torch.testing.assert_close(reconstructed[0, 0], expected, equal_nan=True)


def test_the_picture_shows_what_is_seen_and_what_is_predicted(monkeypatch):
    """Three images: their pixels as the model sees them, a quarter of the windows, and these windows as they are."""
    drawn = []
    monkeypatch.setattr(pretraining, "save_reconstruction_picture", lambda *arguments: drawn.append(arguments))
    model = tiny_model(model_class=SpotViTForPreTraining, norm_pix_loss=False, **DECODER)
    placements = TrainingPlacements(num_tokens=[12], placement=["grid_subset"], height=48, width=48, patch_size=8)
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(3)]
    save_reconstructions("picture.png", model, tiny_processor(), images, placements)
    ((file, originals, visible, reconstructed, patch_size),) = drawn
    assert file == "picture.png" and patch_size == 8
    for image, original, seen, pixels in zip(images, originals, visible, reconstructed, strict=True):
        assert np.abs(np.asarray(original).astype(int) - np.asarray(image)).max() <= 1
        assert seen.shape == (3, 2) and pixels.shape == (48, 48, 3) and np.isnan(pixels).any(2).sum() == 64 * (36 - 12)
        for x, y in np.round(seen * 48 - 4).astype(int):  # cells: no window overlaps another
            window = np.asarray(image)[y : y + 8, x : x + 8] / 255
            np.testing.assert_allclose(pixels[y : y + 8, x : x + 8], window, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------- bad input

BAD = {
    "crop": ({"crop_scale": [0.5]}, ["crop_scale", "two numbers", "[0.5]"]),
    "max_samples": ({"max_samples": 0}, ["max_samples", "at least 1", "0"]),
    "fewer images than a batch": ({"max_samples": 4}, ["per_device_train_batch_size", "4 images"]),
    "evaluation": ({"eval_strategy": "epoch"}, ["eval_strategy", "no", "epoch"]),
    "no JSON": ({"config_overrides": "hidden_size=4"}, ["config_overrides", "JSON", "hidden_size=4"]),
    "no such field": ({"config_overrides": '{"width": 4}'}, ["config_overrides", "SpotViTConfig", "width"]),
    "the encoder's": (
        {"config_overrides": '{"hidden_size": 4}', "model": "somewhere"}, ["config_overrides", "decoder", "hidden_size"],
    ),
    "placement": ({"placement": ["grid"]}, ["placement", "grid", "not for training"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path):
    changes, words = BAD[case]
    with pytest.raises(ValueError) as error:
        run(tmp_path / "run", **changes)
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "run").exists()


def test_command_line(tmp_path, capsys):
    options = ["--dataset_name", "digits", "--output_dir", str(tmp_path / "run"), "--mask_ratio", "1.5"]
    assert main(["pretrain", *options]) == 2
    assert "`mask_ratio` must be above 0 and below 1; got 1.5" in capsys.readouterr().err
