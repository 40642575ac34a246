"""Golden outputs on the Hub: beside the weights that they are of, however pushed, and read from where a model is from."""

from tiny import tiny_model


def push_by_saving(directory):
    """In its process: `save_pretrained(push_to_hub=True)` of a new repository, then of other weights."""
    import torch

    from spot_hf import SpotViTForImageClassification, verify_model

    model = SpotViTForImageClassification.from_pretrained(directory)
    lines = []
    for _ in range(2):
        model.save_pretrained("out", push_to_hub=True, repo_id="alice/saved")
        found = verify_model("alice/saved")
        lines.append([found.equal, str(found)])
        with torch.no_grad():
            model.classifier.bias += 1
    return lines


def test_what_is_pushed_as_it_is_saved_has_golden_outputs(hub, tmp_path, fresh_process):
    tiny_model().save_pretrained(tmp_path / "tiny")
    for equal, line in fresh_process(push_by_saving, tmp_path / "tiny", hub=hub, token="hf_alice"):
        assert equal, line


def push_twice(directory):
    """In its process: two commits of a private repository, the first of which has a tag; and the second in a folder, too."""
    import torch
    from huggingface_hub import HfApi

    from spot_hf import SpotViTForImageClassification

    model, api = SpotViTForImageClassification.from_pretrained(directory), HfApi()
    model.push_to_hub("alice/two", private=True)
    api.create_tag("alice/two", tag="v1")
    with torch.no_grad():
        model.classifier.bias += 1
    model.push_to_hub("alice/two")
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained("inner")
    api.upload_folder(repo_id="alice/two", folder_path="inner", path_in_repo="inner")


def verify_as_loaded():
    """In its process, without the package, and without a token in its environment."""
    import pickle

    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoModelForImageClassification

    found = {}
    for name, options in {"v1": {"revision": "v1"}, "main": {}, "inner": {"subfolder": "inner"}}.items():
        options = {**options, "token": "hf_alice", "cache_dir": "elsewhere"}
        model = AutoModelForImageClassification.from_pretrained("alice/two", trust_remote_code=True, **options)
        found[name] = [model.verify().equal, str(model.verify())]
    cached = try_to_load_from_cache("alice/two", "golden.safetensors", cache_dir="elsewhere")
    return {**found, "cached": isinstance(cached, str), "kept": b"hf_alice" in pickle.dumps(model.golden_source)}


def test_they_are_read_from_where_the_model_is_from(hub, tmp_path, fresh_process):
    """The revision, the folder, the cache; by the token, which no copy of the model has."""
    tiny_model().save_pretrained(tmp_path / "tiny")
    fresh_process(push_twice, tmp_path / "tiny", hub=hub, token="hf_alice")
    found = fresh_process(verify_as_loaded, hub=hub, without_spot_hf=True)
    for name in ("v1", "main", "inner"):
        equal, line = found[name]
        assert equal, line
    assert found["cached"] and not found["kept"]


def train_and_push(directory, trainer_class):
    """In its process: a Trainer pushes at each step; returns what `verify` says of each commit that it made."""
    import torch
    from huggingface_hub import HfApi
    from torch.utils.data import default_collate
    from transformers import Trainer, TrainingArguments

    from spot_hf import SpotTrainer, SpotViTForImageClassification, verify_model

    model = SpotViTForImageClassification.from_pretrained(directory)
    height, width = model.config.image_height_width
    arguments = TrainingArguments(
        "out", max_steps=3, save_strategy="steps", save_steps=1, per_device_train_batch_size=2, learning_rate=0.1,
        push_to_hub=True, hub_model_id=f"alice/{trainer_class}", hub_always_push=True, report_to="none", disable_tqdm=True,
        hub_strategy="every_save", use_cpu=True,
    )  # fmt: skip
    rows = [{"pixel_values": torch.randn(3, height, width), "labels": i % 5} for i in range(6)]
    own = {"Trainer": Trainer, "SpotTrainer": SpotTrainer}[trainer_class]
    trainer = own(model=model, args=arguments, train_dataset=rows, data_collator=default_collate)
    finish = trainer._finish_current_push
    push = trainer._push_from_checkpoint

    def push_and_wait(checkpoint):  # so that no commit has files of two steps
        push(checkpoint)
        finish()

    trainer._push_from_checkpoint = push_and_wait
    trainer.train()
    trainer.push_to_hub()
    api, lines = HfApi(), []
    for commit in api.list_repo_commits(f"alice/{trainer_class}"):
        names = api.list_repo_files(f"alice/{trainer_class}", revision=commit.commit_id)
        if "model.safetensors" in names:
            golden = "golden.safetensors" in names
            lines.append(str(verify_model(f"alice/{trainer_class}", commit.commit_id)) if golden else "none")
    return lines


def test_a_trainer_that_pushes_while_it_trains(hub, tmp_path, fresh_process):
    tiny_model().save_pretrained(tmp_path / "tiny")
    lines = fresh_process(train_and_push, tmp_path / "tiny", "SpotTrainer", hub=hub, token="hf_alice")
    assert len(lines) >= 3 and all("equal" in line for line in lines), lines


def test_the_plain_trainer_pushes_weights_alone(hub, tmp_path, fresh_process):
    """Until its end, which is whole."""
    tiny_model().save_pretrained(tmp_path / "tiny")
    last, *before = fresh_process(train_and_push, tmp_path / "tiny", "Trainer", hub=hub, token="hf_alice")
    assert "equal" in last and before and all(line == "none" or "OTHER WEIGHTS" in line for line in before), before
