"""Images as their source stores them: what they are called, and that no two of a split have one name."""

import json
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from coordinate_runs import images_of
from oracle_runs import files_of, picture, rows_of

from spot_hf import join_coordinates, load_coordinates
from spot_hf.coordinates.show import ShowArguments, show_coordinates
from spot_hf.data.encoded import check_image_ids, encoded_image, image_id_of, iterate_encoded
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


MEMBERS = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]


@pytest.mark.parametrize(
    ("path", "image_id"),
    [
        ("/x/cat/0.png", "0.png"),
        ("0.png", "0.png"),
        ("hf://datasets/a/b@main/cat/0.png", "0.png"),
        ("https://host/cat/0.png", "0.png"),
        ("zip://cat/0.png::/x/train.zip", "cat/0.png"),
        ("zip://0.png::https://host/train.zip", "0.png"),
        ("zip://cat/0.png::hf://datasets/a/b@main/data/train.zip", "cat/0.png"),
        ("zip://cat/0.png::zip://inner.zip::/x/outer.zip", "cat/0.png"),
        (None, "test/7"),
        ("", "test/7"),
    ],
)
def test_an_id_is_the_files_name_or_its_path_below_the_archive(path, image_id):
    assert image_id_of(path, 7, "test") == image_id


# ------------------------------------------------------------------------------------------------------------- archives


@pytest.fixture(scope="module")
def archive(data_cache, tmp_path_factory) -> Path:
    """A data set of one archive: class folders, in which names occur again, and labels beside them."""
    directory = tmp_path_factory.mktemp("archive") / "pictures"
    directory.mkdir()
    with zipfile.ZipFile(directory / "train.zip", "w") as file:
        for number, member in enumerate(MEMBERS):
            file.writestr(member, picture(number))
        lines = [json.dumps({"file_name": member, "label": number}) for number, member in enumerate(MEMBERS)]
        file.writestr("metadata.jsonl", "\n".join(lines))
    return directory


@pytest.fixture(scope="module")
def archive_run(archive, made, tmp_path_factory) -> str:
    directory = tmp_path_factory.mktemp("run") / "run"
    run_oracle(oracle_of(made, archive, directory, placement="uniform"))
    return str(directory)


def oracle_of(made, pictures, directory, **options) -> OracleArguments:
    return OracleArguments(
        model=made.model, dataset_name=str(pictures), output_dir=str(directory),
        **{"num_tokens": [4], "steps": 1, "num_workers": 0, "run_name": "spot", **options},
    )  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streamed"])
def test_members_of_an_archive_have_ids_of_their_own(archive, streaming):
    images = images_of(archive, streaming=streaming)
    found = list(iterate_encoded(images, str(images.split)))
    assert [one.image_id for one in found] == MEMBERS
    assert [one.content for one in found] == [picture(number) for number in range(4)]
    assert [one.label for one in found] == [0, 1, 2, 3]
    stored = images.decode(False) if streaming else images.cast_column("image", datasets.Image(decode=False))
    assert all("::" in row["image"]["path"] for row in stored), "no archive: the test means nothing"


def test_random_draws_differ_within_an_archive(archive_run):
    rows = load_coordinates(archive_run)
    assert rows["image_id"] == MEMBERS
    starts = np.array(rows["initial_coordinates"])
    assert all(abs(starts[i] - starts[j]).max() > 0.01 for i in range(4) for j in range(i))


def test_a_stream_of_an_archive_gives_the_same_rows(archive, archive_run, made, tmp_path):
    run_oracle(oracle_of(made, archive, tmp_path / "run", placement="uniform", streaming=True))
    assert rows_of(tmp_path / "run") == rows_of(Path(archive_run))


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streamed"])
def test_members_of_an_archive_are_joined(archive, archive_run, streaming):
    rows = load_coordinates(archive_run)
    joined = list(join_coordinates(images_of(archive, streaming=streaming), rows.select([3, 1])))
    assert [row["image_id"] for row in joined] == ["cat/1.png", "dog/1.png"]
    assert [row["coordinates"] for row in joined] == [rows[1]["coordinates"], rows[3]["coordinates"]]


def test_members_of_an_archive_are_shown(archive, archive_run, tmp_path):
    ids = ["dog/0.png", "cat/0.png"]
    written = show_coordinates(
        ShowArguments(coordinates=archive_run, image_id=ids, output_dir=str(tmp_path), dataset_name=str(archive))
    )
    assert [path.name for path in written] == ["dog_0_n4.png", "cat_0_n4.png"]
    assert written[0].read_bytes() != written[1].read_bytes()


def test_a_member_that_is_broken_in_its_archive(archive, tmp_path):
    """Its compressed bytes, or what is to be their checksum: no error of ours, and not the end of a job."""
    content = bytearray((archive / "train.zip").read_bytes())
    at = content.index(picture(2))
    content[at + 50] ^= 1
    (tmp_path / "train.zip").write_bytes(content)
    row = {"image": {"bytes": None, "path": f"zip://dog/0.png::{tmp_path}/train.zip"}}
    image = encoded_image(row, 2, "train")
    assert image.image_id == "dog/0.png" and image.unreadable is not None and image.unreadable.startswith("BadZipFile: ")
    gone = encoded_image({"image": {"bytes": None, "path": f"zip://dog/9.png::{tmp_path}/train.zip"}}, 2, "train")
    assert gone.unreadable is not None and "dog/9.png" in gone.unreadable


# ----------------------------------------------------------------------------------------------------------- no two alike


@pytest.fixture
def twins(tmp_path, data_cache) -> Path:
    """Two pictures of one name, in two folders."""
    for number, name in enumerate(("ant/1.png", "ant/0.png", "bee/0.png")):
        (tmp_path / "pictures/test" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures/test" / name).write_bytes(picture(number))
    return tmp_path / "pictures"


def test_two_images_of_one_id_are_named(twins):
    with pytest.raises(ValueError) as error:
        check_image_ids(images_of(twins))
    message = str(error.value)
    assert "`dataset_name`: images 0 and 2 of 'test' share the id '0.png'" in message and "Rename the files" in message


def test_images_without_names_never_share_an_id(nameless):
    check_image_ids(nameless.images)


def test_a_run_does_not_begin_where_ids_are_shared(twins, made, tmp_path):
    with pytest.raises(ValueError, match=r"share the id '0\.png'"):
        run_oracle(oracle_of(made, twins, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_overwriting_does_not_remove_the_old_run_where_ids_are_shared(twins, made, tmp_path):
    run_oracle(oracle_of(made, made.pictures, tmp_path / "run"))
    before = files_of(tmp_path / "run")
    with pytest.raises(ValueError, match=r"share the id '0\.png'"):
        run_oracle(oracle_of(made, twins, tmp_path / "run", overwrite_output_dir=True))
    assert files_of(tmp_path / "run") == before


def test_a_run_that_began_before_ids_were_checked_goes_on(twins, made, tmp_path, monkeypatch):
    arguments = oracle_of(made, twins, tmp_path / "run", shard_size=1)
    with monkeypatch.context() as before:
        before.setattr("spot_hf.oracle.run.check_image_ids", lambda images: None)
        run_oracle(arguments)
    rows, shards = rows_of(tmp_path / "run"), sorted((tmp_path / "run/spot_n4").glob("*.parquet"))
    assert len(shards) == 3
    shards[1].unlink()
    run_oracle(arguments)
    assert rows_of(tmp_path / "run") == rows
