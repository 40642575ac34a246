"""Push, load and convert through a local Hub, by the unmodified clients. Each process here stands for a person:

`publish` has the package and pushes; `load` and `load_directory` have transformers alone; `convert` has the package.
"""

import json
from pathlib import Path

import pytest
from tiny import nearly


CODE = {
    "configuration_spot_vit.py",
    "modeling_spot_vit.py",
    "batch_feature.py",
    "configuration_spot.py",
    "modeling_spot.py",
    "golden.py",
    "backbone_spot_vit.py",
    "version.py",
    "decoding.py",
    "windows.py",
    "handler.py",
    "positions.py",
    "pretraining_spot_vit.py",
    "segmentation_maps.py",
    "segmentation_pipeline.py",
    "segmentation_spot_vit.py",
    "zero_shot_pipeline.py",
    "zero_shot_spot_vit.py",
    "image_processing_spot_vit.py",
    "frames.py",
    "drawing.py",
    "foveation.py",
    "budgets.py",
    "merging.py",
    "placer.py",
    "input_checks.py",
    "placement.py",
    "pipeline_spot_vit.py",
}
MODEL_FILES = {*CODE, "config.json", "golden.safetensors", "model.safetensors", "preprocessor_config.json"}


def files(hub, repo_id: str, revision: str = "main") -> dict[str, bytes]:
    """What a repository holds, of a large file its pointer."""
    repo = hub.repos["model", repo_id]
    tree, _ = repo.tree(repo.resolve(revision)[1])
    return {path: repo.get(blob) for path, (_, blob) in tree.items() if path != ".gitattributes"}


# ------------------------------------------------------------------------------------------------------------ publish


def publish(photos, tiny_vit, expected):
    """In its process: pushes models in every way there is, and writes what they compute to the directory `expected`."""
    import json
    from pathlib import Path

    import torch
    from huggingface_hub import HfApi
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import ViTForImageClassification, ViTImageProcessor, pipeline

    from spot_hf import (
        SpotViTBackbone,
        SpotViTConfig,
        SpotViTForImageClassification,
        SpotViTForSemanticSegmentation,
        SpotViTImageProcessor,
        SpotViTModel,
    )

    api = HfApi()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    labels = {"id2label": dict(enumerate("abcde")), "label2id": {label: i for i, label in enumerate("abcde")}}
    config = SpotViTConfig(**sizes, image_size=32, patch_size=8, initializer_range=0.3, **labels)
    torch.manual_seed(0)
    model, other = SpotViTForImageClassification(config).eval(), SpotViTForImageClassification(config)
    image_processor = SpotViTImageProcessor(
        size={"height": 32, "width": 32}, patch_size=8, num_tokens=7, placement="isotropic"
    )

    model.push_to_hub("alice/parts", tags=["insects"])
    image_processor.push_to_hub("alice/parts")
    pinned = api.model_info("alice/parts").sha
    api.create_tag("alice/parts", tag="v1")
    other.push_to_hub("alice/parts")  # main moves on: a revision must be honoured

    classifier = pipeline("spot-image-classification", model=model, image_processor=image_processor)
    classifier.push_to_hub("alice/whole")
    classifier.push_to_hub("alice/private", private=True)

    torch.manual_seed(1)
    encoder = SpotViTModel(SpotViTConfig(**sizes, image_size=32, patch_size=8, initializer_range=0.3)).eval()
    image_processor.push_to_hub("alice/encoder")  # the processor first, the model after it
    encoder.push_to_hub("alice/encoder")

    segmenter = SpotViTForSemanticSegmentation(config).eval()
    segmenter.push_to_hub("alice/segmenter")
    image_processor.push_to_hub("alice/segmenter")

    rotary_options = {"use_position_table": False, "rope_theta": 100.0, "num_register_tokens": 2}
    rotary = SpotViTForImageClassification(
        SpotViTConfig(**sizes, **rotary_options, image_size=32, patch_size=8, initializer_range=0.3, **labels)
    ).eval()
    rotary.push_to_hub("alice/rotary")
    image_processor.push_to_hub("alice/rotary")
    backbone = SpotViTBackbone(SpotViTConfig(**sizes, image_size=32, patch_size=8, initializer_range=0.3, out_indices=[1, 2]))
    backbone.eval().push_to_hub("alice/backbone")
    image_processor.push_to_hub("alice/backbone")

    api.create_repo("alice/carded")
    own_card = "---\nlicense: mit\ntags:\n- birds\n---\n\nMy own words.\n"
    api.upload_file(path_or_fileobj=own_card.encode(), path_in_repo="README.md", repo_id="alice/carded")
    model.push_to_hub("alice/carded", tags=["fish"])

    source = ViTForImageClassification.from_pretrained(tiny_vit).eval()
    for name, settings in {
        "vit": {},
        "broken-vit": {},
        "gated-vit": {"gated": "manual"},
        "private-vit": {"private": True},
    }.items():
        repo_id = f"alice/{name}"
        source.push_to_hub(repo_id)
        ViTImageProcessor.from_pretrained(tiny_vit).push_to_hub(repo_id)
        api.upload_file(path_or_fileobj=f"{tiny_vit}/README.md", path_in_repo="README.md", repo_id=repo_id)
        if settings:
            api.update_repo_settings(repo_id, **settings)
    source_pinned = api.model_info("alice/vit").sha
    source.classifier.bias.data += 1  # main moves on here too
    source.push_to_hub("alice/vit")

    images = [Image.open(photo) for photo in photos]
    inputs = image_processor(images, return_tensors="pt")
    source = ViTForImageClassification.from_pretrained(tiny_vit).eval()
    source_inputs = ViTImageProcessor.from_pretrained(tiny_vit)(images, return_tensors="pt")
    with torch.no_grad():
        tensors = {
            **inputs,
            "logits": model(**inputs).logits,
            "full_grid_logits": model(inputs["pixel_values"]).logits,
            "pooler_output": model.spot_vit(**inputs).pooler_output,
            "features": encoder(**inputs).last_hidden_state,
            "maps": segmenter(**inputs).logits,
            "rotary_logits": rotary(**inputs).logits,
            "feature_maps": torch.stack(backbone(inputs["pixel_values"]).feature_maps),
            "token_features": torch.stack(backbone(**inputs).feature_maps),
            "source_logits": source(**source_inputs).logits,
        }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, f"{expected}/expected.safetensors")
    predictions = {
        "saved": classifier(photos),
        "center": classifier(photos, num_tokens=5, placement="center", return_coordinates=True),
    }
    Path(f"{expected}/expected.json").write_text(json.dumps(predictions))
    return {"pinned": pinned, "source_pinned": source_pinned}


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> Path:
    """A directory of what the pushed models compute; filled by `published`."""
    return tmp_path_factory.mktemp("expected")


@pytest.fixture(scope="module")
def published(hub, photos, tiny_vit, expected, fresh_process) -> dict[str, str]:
    return fresh_process(publish, photos, tiny_vit, expected, hub=hub, token="hf_alice")


@pytest.mark.parametrize(
    "repo_id", ["alice/parts", "alice/whole", "alice/private", "alice/encoder", "alice/segmenter", "alice/backbone"]
)
def test_a_pushed_repository_is_complete(hub, published, repo_id):
    pushed = files(hub, repo_id)
    assert set(pushed) == {*MODEL_FILES, "README.md"}
    config = json.loads(pushed["config.json"])
    recipe = json.loads(pushed["preprocessor_config.json"])
    references = [*config["auto_map"].values(), *recipe["auto_map"]["AutoImageProcessor"].values()]
    references += [entry["impl"] for entry in config["custom_pipelines"].values()]
    assert len(references) == 10
    for reference in references:
        module, name = reference.split(".")
        assert f"class {name}(" in pushed[f"{module}.py"].decode()


def test_a_repository_without_a_card_gets_the_packages(hub, published):
    for repo_id, task in {
        "alice/parts": "image-classification",
        "alice/whole": "image-classification",
        "alice/encoder": "image-feature-extraction",
        "alice/segmenter": "image-segmentation",
    }.items():
        card = files(hub, repo_id)["README.md"].decode()
        assert f"pipeline_tag: {task}" in card, repo_id
        assert "[More Information Needed]" not in card, repo_id
        assert f'from_pretrained("{repo_id}"' in card, repo_id
    assert "- insects" in files(hub, "alice/parts")["README.md"].decode()  # a tag given to `push_to_hub`
    assert "7 tokens, isotropic" in files(hub, "alice/whole")["README.md"].decode()  # the pushed pipeline's default


def test_a_persons_card_stays(hub, published):
    card = files(hub, "alice/carded")["README.md"].decode()
    assert "My own words." in card
    assert "license: mit" in card and "- birds" in card and "- fish" in card


# --------------------------------------------------------------------------------------------------------------- load


def load(pinned, expected, photos, save_to):
    """In a process without the package and without a token: loads all there is."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForSemanticSegmentation,
        UperNetConfig,
        UperNetForSemanticSegmentation,
        pipeline,
    )
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    def aligned(model):
        """Weights lie in memory as in their file; matrix products round by their operands' alignment. Copies are aligned."""
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model

    tensors = load_file(f"{expected}/expected.safetensors")
    images = [Image.open(photo) for photo in photos]
    remote = {"trust_remote_code": True}
    at = {"revision": pinned, **remote}
    model = aligned(AutoModelForImageClassification.from_pretrained("alice/parts", **at))
    tagged = aligned(AutoModelForImageClassification.from_pretrained("alice/parts", revision="v1", **remote))
    latest = aligned(AutoModelForImageClassification.from_pretrained("alice/parts", **remote))
    inner = aligned(AutoModel.from_pretrained("alice/parts", **at))
    encoder = aligned(AutoModel.from_pretrained("alice/encoder", **remote))
    segmenter = aligned(AutoModelForSemanticSegmentation.from_pretrained("alice/segmenter", **remote))
    rotary = aligned(AutoModelForImageClassification.from_pretrained("alice/rotary", **remote))
    backbone = aligned(AutoBackbone.from_pretrained("alice/backbone", **remote))
    image_processor = AutoImageProcessor.from_pretrained("alice/parts", **at)
    config = AutoConfig.from_pretrained("alice/parts", **at)
    inputs = image_processor(images, return_tensors="pt")
    with torch.no_grad():
        computed = {
            **inputs,
            "logits": model(**inputs).logits,
            "full_grid_logits": model(inputs["pixel_values"]).logits,
            "pooler_output": inner(**inputs).pooler_output,
            "features": encoder(**inputs).last_hidden_state,
            "maps": segmenter(**inputs).logits,
            "rotary_logits": rotary(**inputs).logits,
            "feature_maps": torch.stack(backbone(inputs["pixel_values"]).feature_maps),
            "token_features": torch.stack(backbone(**inputs).feature_maps),
        }
        at_tag, at_main = tagged(**inputs).logits, latest(**inputs).logits
    verified = {
        "pinned": model.verify(revision=pinned),
        "tag": tagged.verify(revision="v1"),
        "main": latest.verify(),
        "pinned by default": model.verify(),
        "pinned against main": model.verify(revision="main"),
        "encoder": encoder.verify(),
        "segmenter": segmenter.verify(),
        "rotary": rotary.verify(),
        "backbone": backbone.verify(),
    }
    differences = {name: (computed[name] - tensors[name]).abs().max().item() for name in computed}

    pipelines = {
        "spot": pipeline("spot-image-classification", model="alice/parts", **at),
        "stock": pipeline("image-classification", model="alice/parts", **at),
        "no task": pipeline(model="alice/parts", **at),
        "whole": pipeline(model="alice/whole", **remote),
    }
    for one in pipelines.values():
        aligned(one.model)

    def attempt(repo_id, **kwargs):
        try:
            AutoModelForImageClassification.from_pretrained(repo_id, **kwargs)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    refused = {
        "private": attempt("alice/private", **remote),
        "private, other user": attempt("alice/private", token="hf_bob", **remote),
        "not trusted": attempt("alice/whole", trust_remote_code=False),
    }
    # After that: what a token has brought into the cache is read without one.
    private = {"token": "hf_alice", **remote}
    private_model = aligned(AutoModelForImageClassification.from_pretrained("alice/private", **private))
    private_processor = AutoImageProcessor.from_pretrained("alice/private", **private)
    with torch.no_grad():
        private_logits = private_model(**private_processor(images, return_tensors="pt")).logits
    private_pipeline = pipeline("spot-image-classification", model="alice/private", **private)
    aligned(private_pipeline.model)

    model.save_pretrained(save_to)
    image_processor.save_pretrained(save_to)
    pipelines["spot"].push_to_hub("bob/copy", token="hf_bob")

    # Under another model's head: by the Auto classes, which have to be told of the repository's.
    AutoConfig.register("spot_vit", type(backbone.config))
    AutoBackbone.register(type(backbone.config), type(backbone))
    torch.manual_seed(0)
    head = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone.config, hidden_size=16, use_auxiliary_head=False, num_labels=5)
    ).eval()
    head.backbone.load_state_dict(backbone.state_dict())
    head.save_pretrained(f"{save_to}-upernet")
    again = UperNetForSemanticSegmentation.from_pretrained(f"{save_to}-upernet").eval()
    with torch.no_grad():
        under_head = (head(inputs["pixel_values"]).logits - again(inputs["pixel_values"]).logits).abs().max().item()
    return {
        "modules": [type(one).__module__ for one in (model, inner, encoder, image_processor, config, pipelines["spot"])],
        "differences": differences,
        "backbone": [backbone.out_features, type(head.backbone).__module__.partition(".")[0], under_head],
        "verified": {name: one.equal for name, one in verified.items()},
        "tag_difference": (at_tag - tensors["logits"]).abs().max().item(),
        "main_difference": (at_main - tensors["logits"]).abs().max().item(),
        "private_difference": (private_logits - tensors["logits"]).abs().max().item(),
        "pipelines": {name: type(one).__name__ for name, one in pipelines.items()},
        "predictions": {name: one(photos) for name, one in {**pipelines, "private": private_pipeline}.items()},
        "center": pipelines["no task"](photos, num_tokens=5, placement="center", return_coordinates=True),
        "refused": refused,
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A directory that `load` saves a model of the Hub to."""
    return tmp_path_factory.mktemp("saved") / "model"


@pytest.fixture(scope="module")
def loaded(hub, published, expected, photos, saved, fresh_process):
    return fresh_process(load, published["pinned"], expected, photos, saved, hub=hub, without_spot_hf=True)


def test_all_code_is_the_repositorys(loaded):
    assert all(module.startswith("transformers_modules.") for module in loaded["modules"]), loaded["modules"]
    assert loaded["pipelines"] == {
        "spot": "SpotImageClassificationPipeline",
        "stock": "ImageClassificationPipeline",
        "no task": "SpotImageClassificationPipeline",
        "whole": "SpotImageClassificationPipeline",
    }


def test_inputs_and_outputs_are_the_publishers_bit_for_bit(loaded):
    # The same operations in the same order, on one thread and aligned memory: no rounding differs.
    names = ["pixel_values", "coordinates", "logits", "full_grid_logits", "pooler_output", "features", "maps", "rotary_logits"]
    names += ["feature_maps", "token_features"]
    assert loaded["differences"] == dict.fromkeys(names, 0.0)
    assert loaded["tag_difference"] == 0.0


def verify(pinned):
    """In a process with the package: the command."""
    import contextlib
    import io

    from spot_hf.cli import main

    found = {}
    for argv in (
        ["alice/parts"],
        ["alice/parts", "--revision", pinned],
        ["alice/encoder"],
        ["alice/segmenter"],
        ["alice/rotary"],
        ["alice/backbone"],
        ["alice/vit"],
    ):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = main(["verify", *argv])
        found[" ".join(argv)] = [status, out.getvalue(), err.getvalue()]
    return found


def test_what_was_pulled_computes_what_was_pushed(hub, loaded, published, fresh_process):
    """By the repositories' own code, and by the package's."""
    assert {name for name, equal in loaded["verified"].items() if not equal} == {"pinned against main"}
    found = fresh_process(verify, published["pinned"], hub=hub)
    status, out, err = found.pop("alice/vit")
    assert (status, out) == (2, "") and "is a 'vit', not a SpotViT" in err
    for argv, (status, out, err) in found.items():
        assert status == 0 and out.startswith(f"{argv.split()[0]}: equal: ") and out.count("\n") == 1, (argv, out, err)


def test_a_backbone_by_remote_code_sits_under_a_head(loaded):
    out_features, module, difference = loaded["backbone"]
    # Saved and loaded again: weights lie elsewhere in memory, and products may round otherwise.
    assert (out_features, module) == (["stage1", "stage2"], "transformers_modules") and difference < 1e-4


def test_a_revision_is_honoured(loaded):
    # Other weights of standard deviation 0.3 stand on main: logits of order 1 differ by order 1.
    assert loaded["main_difference"] > 0.1


def test_pipelines_predict_as_the_publishers(loaded, expected):
    predictions = json.loads((expected / "expected.json").read_text())
    names = ["spot", "stock", "no task", "whole", "private"]
    assert loaded["predictions"] == nearly(dict.fromkeys(names, predictions["saved"]))
    assert loaded["center"] == predictions["center"]


def test_a_private_repository_needs_the_token_of_someone_who_may_read_it(loaded):
    assert loaded["private_difference"] == 0.0
    for attempt in ("private", "private, other user"):
        message = loaded["refused"][attempt]
        assert message.startswith("OSError: alice/private is not a local folder"), attempt
        assert "private repository" in message and "token" in message


def test_code_runs_only_where_it_is_trusted(loaded):
    assert "trust_remote_code=True" in loaded["refused"]["not trusted"]


def test_what_was_loaded_is_saved_and_pushed_complete(hub, loaded, published, saved):
    pushed = files(hub, "alice/parts", published["pinned"])
    again = {file.name: file.read_bytes() for file in saved.iterdir()}
    copy = files(hub, "bob/copy")
    assert set(again) == MODEL_FILES  # remote code has no template of a card
    assert set(copy) == {*MODEL_FILES, "README.md"}
    for name in MODEL_FILES - {"model.safetensors", "golden.safetensors"}:  # of which a repository has pointers
        assert again[name] == pushed[name] == copy[name], name
    assert copy["model.safetensors"] == pushed["model.safetensors"]  # the pointers, which hold the content's sha256
    assert b"--" not in again["config.json"]  # `user/name--module.Class` needs that repository


def load_directory(directory, expected, photos):
    """In a process without the package, offline: what `load` saved."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoModelForImageClassification, pipeline
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    model = AutoModelForImageClassification.from_pretrained(directory, trust_remote_code=True)
    image_processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=True)
    classifier = pipeline(model=directory, trust_remote_code=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # aligned in memory, as the publisher's
    inputs = image_processor([Image.open(photo) for photo in photos], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    expected_logits = load_file(f"{expected}/expected.safetensors")["logits"]
    return {"difference": (logits - expected_logits).abs().max().item(), "pipeline": type(classifier).__name__}


def test_what_was_loaded_and_saved_loads_without_the_hub(loaded, saved, expected, photos, fresh_process):
    result = fresh_process(load_directory, saved, expected, photos, without_spot_hf=True)
    assert result == {"difference": 0.0, "pipeline": "SpotImageClassificationPipeline"}


# ------------------------------------------------------------------------------------------------------------ convert


def convert(pinned, source_pinned, expected, photos, work):
    """In a process with the package, as bob: converts from the Hub, and fails to."""
    import traceback
    from pathlib import Path

    import torch
    from huggingface_hub import HfApi
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoModelForImageClassification
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from spot_hf import ConversionError, convert_checkpoint

    images = [Image.open(photo) for photo in photos]
    tensors = load_file(f"{expected}/expected.safetensors")

    def difference(model, image_processor):
        with torch.no_grad():
            logits = model(image_processor(images, return_tensors="pt")["pixel_values"]).logits
        return (logits - tensors["source_logits"]).abs().max().item()

    def attempt(name, source_model, **kwargs):
        directory = Path(work) / f"failed {name}" / "out"
        directory.parent.mkdir()
        try:
            convert_checkpoint(source_model, directory, **kwargs)
        except ConversionError as error:
            return {"message": str(error), "left": [str(file) for file in directory.parent.rglob("*")]}
        except Exception:
            return {"message": traceback.format_exc(), "left": []}
        return {"message": "converted", "left": []}

    report = convert_checkpoint("alice/vit", f"{work}/out", revision=source_pinned, num_tokens=5)
    latest = convert_checkpoint("alice/vit")
    private = convert_checkpoint("alice/private-vit", token="hf_alice")
    failures = {
        "missing repository": attempt("missing repository", "alice/nothing"),
        "wrong revision": attempt("wrong revision", "alice/vit", revision="v99"),
        "gated": attempt("gated", "alice/gated-vit"),
        "gated, no token": attempt("gated, no token", "alice/gated-vit", token=False),
        "private": attempt("private", "alice/private-vit"),
        "private, no token": attempt("private, no token", "alice/private-vit", token=False),
        "broken": attempt("broken", "alice/broken-vit"),
        "no Hub id": attempt("no Hub id", "a/b/c"),
    }
    # The installed package's own classes stand in for the repository's code: nothing to trust.
    local = AutoModelForImageClassification.from_pretrained("alice/parts", revision=pinned)
    local_processor = AutoImageProcessor.from_pretrained("alice/parts", revision=pinned)
    for parameter in local.parameters():
        parameter.data = parameter.data.clone()  # aligned in memory, as the publisher's
    with torch.no_grad():
        local_logits = local(**local_processor(images, return_tensors="pt")).logits
    return {
        "difference": difference(report.model, report.image_processor),
        "private_difference": difference(private.model, private.image_processor),
        "latest_difference": difference(latest.model, latest.image_processor),
        "latest_revision": latest.revision,
        "latest_sha": HfApi().model_info("alice/vit").sha,
        "failures": failures,
        "local_modules": [type(local).__module__, type(local_processor).__module__],
        "local_difference": (local_logits - tensors["logits"]).abs().max().item(),
    }


@pytest.fixture(scope="module")
def converted(hub, published, expected, photos, tmp_path_factory, fresh_process):
    """What `convert` returned, and the directory of the model that it converted."""
    work = tmp_path_factory.mktemp("work")
    revisions = published["pinned"], published["source_pinned"]
    hub.fail("GET", "/_cdn/models/alice/broken-vit/", 500, times=100)
    return fresh_process(convert, *revisions, expected, photos, work, hub=hub, token="hf_bob"), work / "out"


def test_a_model_of_the_hub_converts_with_its_logits(converted):
    result, _ = converted
    # The contract's bound on float32 rounding: the encoder adds in another order than the source's.
    assert result["difference"] < 1e-4
    assert result["private_difference"] < 1e-4
    # One was added to every logit of main.
    assert result["latest_difference"] == pytest.approx(1, abs=1e-4)


def test_conversion_records_commit_and_licence(converted, published):
    result, directory = converted
    sha = published["source_pinned"]
    config = json.loads((directory / "config.json").read_text())
    assert config["source_model"] == {"name": "alice/vit", "revision": sha, "family": "vit", "license": "cc-by-4.0"}
    card = (directory / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "base_model: alice/vit" in card
    assert f"| Revision | `{sha}` |" in card and "| Licence | cc-by-4.0 |" in card
    # A branch is recorded as the commit that it was.
    assert result["latest_revision"] == result["latest_sha"] != sha


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("missing repository", "`source_model` 'alice/nothing' is neither a local path nor a repository on the Hub"),
        ("wrong revision", "`revision` 'v99' does not exist in 'alice/vit'"),
        ("gated", "`source_model` 'alice/gated-vit' is gated: ask for access"),
        ("gated, no token", "`source_model` 'alice/gated-vit' is gated: ask for access"),
        ("private", "`source_model` 'alice/private-vit' is neither a local path nor a repository on the Hub"),
        ("private, no token", "`source_model` 'alice/private-vit' is neither a local path nor a repository on the Hub"),
        ("broken", "`source_model` 'alice/broken-vit' is no local path, and the Hub did not answer: "),
        ("no Hub id", "`source_model` 'a/b/c' is neither a local path nor a repository on the Hub"),
    ],
)
def test_a_source_that_cannot_be_had_is_one_line_and_leaves_nothing(converted, failure, message):
    result = converted[0]["failures"][failure]
    assert result["message"].startswith(message)
    assert "\n" not in result["message"]
    assert result["left"] == []


def test_with_the_package_its_own_classes_load_the_repository(converted):
    result, _ = converted
    assert result["local_modules"] == ["spot_hf.modeling_spot_vit", "spot_hf.image_processing_spot_vit"]
    assert result["local_difference"] == 0.0  # one thread, aligned memory
