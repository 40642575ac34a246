"""The one policy for images that cannot be read: skipped, named, counted and listed; too many stop the job. Only errors of
reading and decoding are such: any other error is an error."""

import dataclasses
import hashlib
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coordinate_runs import images_of
from oracle_runs import LABELS, picture, save_images
from tiny import tiny_processor

from spot_hf import join_coordinates, load_coordinates
from spot_hf.cli import main
from spot_hf.coordinates.records import load_record
from spot_hf.coordinates.shards import Shard, ShardFacts
from spot_hf.data.batches import FailureCount, PlacementRequest, Preparation, Work, batches_of
from spot_hf.data.failures import (
    FailedImage,
    TooManyFailedImagesError,
    check_failures,
    check_max_failed_share,
    describe_failures,
)
from spot_hf.evaluation.arguments import TransferArguments
from spot_hf.evaluation.transfer import evaluate_transfer


FAILED = [FailedImage(i, f"{i}.png", "OSError: gone") for i in range(5)]
BROKEN = (2, 7)
COUNT = 10


def test_a_share_is_of_all_images():
    check_failures(FAILED[:1], 100, 0.01)
    check_failures([], 0, 0.0)
    with pytest.raises(TooManyFailedImagesError) as error:
        check_failures(FAILED[:2], 100, 0.01)
    assert str(error.value) == (
        "2 of 100 images could not be read, more than `max_failed_share` 0.01 allows, such as 0.png: OSError: gone"
    )
    with pytest.raises(TooManyFailedImagesError):
        check_failures(FAILED[:1], 1, 0.0)
    check_failures(FAILED, 5, 1.0)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share(share):
    with pytest.raises(ValueError, match="`max_failed_share` must lie in"):
        check_max_failed_share(share)


def test_failures_are_described_in_one_line():
    assert describe_failures(FAILED[:1]) == "1 image could not be read and was skipped: 0.png: OSError: gone"
    text = describe_failures(FAILED)
    assert text.startswith("5 images") and "2.png" in text and "3.png" not in text and text.endswith(", and 2 more")


def test_failures_go_through_a_shard(tmp_path):
    features = datasets.Features({"image_id": datasets.Value("string")})
    Shard(features, failed=FAILED[:2]).write(tmp_path / "x.parquet")
    assert ShardFacts.read(tmp_path / "x.parquet").failed == FAILED[:2]


# -------------------------------------------------------------------------------------------------------------- sources


@pytest.fixture(scope="module")
def broken(data_cache, tmp_path_factory) -> Path:
    """Ten pictures, two of which are none."""
    return save_images(tmp_path_factory.mktemp("broken") / "pictures", COUNT, BROKEN)


def save_table(directory: Path, paths: list[Path]) -> Path:
    """A data set that names files, and does not hold them."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = pa.array([{"bytes": None, "path": str(path)} for path in paths], kind)
    table = pa.table({"image": image, "label": pa.array([i % len(LABELS) for i in range(len(paths))])})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)})
    directory.mkdir(parents=True)
    pq.write_table(table.cast(features.arrow_schema), directory / "validation.parquet")
    return directory


@pytest.fixture
def named(tmp_path) -> tuple[Path, list[Path]]:
    """Ten files, and a data set that names them."""
    files = [tmp_path / "files" / f"picture_{i}.png" for i in range(COUNT)]
    files[0].parent.mkdir()
    for number, file in enumerate(files):
        file.write_bytes(picture(number))
    return save_table(tmp_path / "named", files), files


def oracle(made, pictures, directory, *more: str) -> int:
    words = [
        "oracle", "--model", made.model, "--dataset_name", pictures, "--output_dir", directory, "--num_tokens", "4", "6",
        "--steps", "1", "--num_workers", "0", "--shard_size", "4", "--batch_size", "1", "--run_name", "spot", *more,
    ]  # fmt: skip
    return main([str(word) for word in words])


def error_of(capsys) -> str:
    """The one line that is not a progress bar."""
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line.startswith("spot-hf")]
    assert not any("Traceback" in line for line in lines)
    return line


# --------------------------------------------------------------------------------------------------------------- oracle


@pytest.mark.parametrize("more", [[], ["--streaming"], ["--num_workers", "1"]], ids=["here", "streamed", "by a worker"])
def test_the_oracle_skips_and_lists_them(broken, made, tmp_path, capsys, more):
    assert oracle(made, broken, tmp_path / "run", "--max_failed_share", "0.2", *more) == 0
    said = capsys.readouterr().out
    assert "2 images could not be read and were skipped: picture_2.png: UnidentifiedImageError" in said
    ledger = json.loads((tmp_path / "run/run.json").read_text())
    for config in ("spot_n4", "spot_n6"):
        rows = load_coordinates(tmp_path / "run", config)
        assert rows["image_index"] == [i for i in range(COUNT) if i not in BROKEN]
        record = load_record(tmp_path / "run", config, "validation")
        failed = record.results.failed
        assert [(one.image_index, one.image_id) for one in failed] == [(i, f"picture_{i}.png") for i in BROKEN]
        assert all("UnidentifiedImageError" in one.error for one in failed)
        assert ledger["results"][config]["failed"] == [dataclasses.asdict(one) for one in failed]
        assert ledger["results"][config]["num_images"] == COUNT - 2
    assert (tmp_path / "run/README.md").read_text().count("8 images of `pictures` (2 more could not be read)") == 2


@pytest.mark.parametrize("more", [[], ["--streaming"]], ids=["here", "streamed"])
def test_too_many_stop_the_oracle(broken, made, tmp_path, capsys, more):
    arguments = (made, broken, tmp_path / "run", *more)
    assert oracle(*arguments) == 1
    assert error_of(capsys) == (
        "spot-hf oracle: error: 1 of 10 images could not be read, more than `max_failed_share` 0.01 allows, such as "
        "picture_2.png: UnidentifiedImageError: cannot identify image file"
    )
    assert not (tmp_path / "run/README.md").exists()
    # It may go on: the share is no parameter of the results.
    assert oracle(*arguments, "--max_failed_share", "0.2") == 0
    assert len(load_coordinates(tmp_path / "run", "spot_n4")) == COUNT - 2
    # And a finished run is held to what is asked for now.
    assert oracle(*arguments, "--max_failed_share", "0.1") == 1
    assert "2 of 10 images could not be read" in error_of(capsys)


def test_too_many_of_a_stream_of_unknown_length(made, tmp_path, capsys):
    """Of how many they are is known at its end: all shards are there by then, and stay."""
    (tmp_path / "pictures/validation").mkdir(parents=True)
    for i in range(COUNT):
        content = b"not a picture" if i in BROKEN else picture(i)
        (tmp_path / f"pictures/validation/picture_{i}.png").write_bytes(content)
    words = ["--streaming", "--label_column_name", "none", "--objective", "distill"]
    arguments = (made, tmp_path / "pictures", tmp_path / "run", *words)
    assert oracle(*arguments, "--max_failed_share", "0.1") == 1
    assert "2 of 10 images could not be read" in error_of(capsys) and not (tmp_path / "run/README.md").exists()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/*.parquet")}
    assert len(shards) == 6
    assert oracle(*arguments, "--max_failed_share", "0.2") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/*.parquet")} == shards
    assert len(load_coordinates(tmp_path / "run", "spot_n4")) == COUNT - 2


def test_all_images_broken(made, tmp_path, capsys):
    pictures = save_images(tmp_path / "pictures", 3, (0, 1, 2))
    assert oracle(made, pictures, tmp_path / "run", "--max_failed_share", "1") == 0
    record = load_record(tmp_path / "run", "spot_n4", "validation")
    assert record.results.num_images == 0 and len(record.results.failed) == 3


def test_files_that_are_gone(named, made, tmp_path, capsys):
    pictures, files = named
    files[3].unlink()
    assert oracle(made, pictures, tmp_path / "run", "--max_failed_share", "0.1") == 0
    (failed,) = load_record(tmp_path / "run", "spot_n6", "validation").results.failed
    assert (failed.image_index, failed.image_id) == (3, "picture_3.png")
    assert failed.error.startswith("FileNotFoundError: ") and len(load_coordinates(tmp_path / "run", "spot_n6")) == COUNT - 1


# ----------------------------------------------------------------------------------------------------- errors of our own


class Failing:
    """An image processor that cannot cope with one of the images."""

    decode = "exact"

    def __init__(self, error: Exception):
        self.processor, self.error, self.calls, self.patch_size = tiny_processor(), error, 0, 8

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return self.processor(*args, **options)


@pytest.mark.parametrize("error", [RuntimeError("ours"), ValueError("ours"), OSError("ours"), KeyError("ours")], ids=repr)
def test_an_error_of_our_own_is_no_unreadable_image(broken, error):
    images = images_of(broken)
    request = PlacementRequest("center", 4)
    work = [Work(0, [0, 1], [request], True)]
    batches = batches_of(Preparation(images, Failing(error)), work, 0, FailureCount(1.0, COUNT))
    with pytest.raises(type(error), match="ours"):
        list(batches)
    # As it is, the same work passes.
    (batch,) = batches_of(Preparation(images, tiny_processor()), work, 0, FailureCount(1.0, COUNT))
    assert batch.image_index == [0, 1] and not batch.failed


def test_a_batch_keeps_what_could_be_read_in_step(broken):
    """Also where a picture is refused after others: each list holds the same images."""
    request, sizes = PlacementRequest("uniform", 4), {(24, 24): tiny_processor(size={"height": 24, "width": 24})}
    work = [Work(0, [1, 2, 3], [request], False), Work(0, [7], [request], True)]
    preparation = Preparation(images_of(broken), tiny_processor(), sizes)
    count = FailureCount(1.0, COUNT)
    first, second = batches_of(preparation, work, 0, count)
    assert first.image_index == [1, 3] and first.label == [1, 3] and first.num_images == 3
    assert len(first.pixel_values) == len(first.coordinates[request]) == len(first.shrunken[24, 24]) == 2
    assert second.pixel_values is None and second.num_images == 1
    assert [one.image_index for one in count.failed] == list(BROKEN)


# ------------------------------------------------------------------------------------------------------------- transfer


def transfer(made, run, pictures, **options):
    arguments = {"model": made.model, "coordinates": str(run), "dataset_name": str(pictures), "config": "spot_n4", **options}
    return evaluate_transfer(TransferArguments(**arguments))


@pytest.fixture
def run_of_named(named, made, tmp_path, capsys) -> Path:
    assert oracle(made, named[0], tmp_path / "run") == 0
    capsys.readouterr()
    return tmp_path / "run"


def test_a_transfer_skips_and_lists_files_that_are_gone(named, run_of_named, made, tmp_path):
    pictures, files = named
    whole = transfer(made, run_of_named, pictures)
    assert whole.num_images == COUNT and whole.failed == []
    for i in BROKEN:
        files[i].unlink()
    result = transfer(made, run_of_named, pictures, max_failed_share=0.2, output_dir=str(tmp_path / "out"))
    assert result.num_images == COUNT - 2
    assert [(one.image_index, one.image_id) for one in result.failed] == [(i, f"picture_{i}.png") for i in BROKEN]
    saved = json.loads((tmp_path / "out/transfer.json").read_text())
    assert saved["failed"] == [dataclasses.asdict(one) for one in result.failed]
    # Only those before the last one that was asked for.
    assert [one.image_index for one in transfer(made, run_of_named, pictures, max_failed_share=0.5, max_samples=3).failed] == [
        2
    ]
    with pytest.raises(TooManyFailedImagesError, match=r"2 of 10 images could not be read.*picture_2\.png: FileNotFoundError"):
        transfer(made, run_of_named, pictures)


def test_a_transfer_skips_and_lists_what_cannot_be_decoded(named, run_of_named, made):
    """Its hash agrees: coordinates were found where it could be decoded."""
    pictures, files = named
    for i in BROKEN:
        files[i].write_bytes(picture(i)[:-40])
    with pytest.raises(ValueError, match="the bytes of 2 of 10 differ"):
        transfer(made, run_of_named, pictures, max_failed_share=0.2)
    for shard in run_of_named.glob("spot_n4/*.parquet"):
        rows, metadata = pq.read_table(shard).to_pylist(), pq.read_schema(shard)
        for row in rows:
            if row["image_index"] in BROKEN:
                row["image_sha256"] = hash_of(files[row["image_index"]])
        pq.write_table(pa.Table.from_pylist(rows, schema=metadata), shard)
    result = transfer(made, run_of_named, pictures, max_failed_share=0.2, batch_size=1)
    assert result.num_images == COUNT - 2
    assert [(one.image_index, one.image_id) for one in result.failed] == [(i, f"picture_{i}.png") for i in BROKEN]
    with pytest.raises(TooManyFailedImagesError, match="1 of 10 images could not be read"):
        transfer(made, run_of_named, pictures, batch_size=1)
    # Batches of any size: the same figures.
    assert transfer(made, run_of_named, pictures, max_failed_share=0.2, batch_size=32).accuracy == result.accuracy


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_transfer_of_which_nothing_can_be_read(named, run_of_named, made):
    pictures, files = named
    for file in files:
        file.unlink()
    with pytest.raises(ValueError, match="`coordinates` hold none of the 10 images that can be read, 10 cannot"):
        transfer(made, run_of_named, pictures, max_failed_share=1.0)


def test_too_many_stop_a_transfer_in_one_line(named, run_of_named, made, capsys):
    pictures, files = named
    files[4].unlink()
    words = ["evaluate", "--model", made.model, "--coordinates", str(run_of_named), "--config", "spot_n4"]
    assert main([*words, "--dataset_name", str(pictures)]) == 1
    assert "1 of 10 images could not be read" in error_of(capsys)


@pytest.mark.parametrize("streaming", [False, True], ids=["downloaded", "streamed"])
def test_a_join_leaves_them_out_and_says_so(named, run_of_named, caplog, streaming):
    pictures, files = named
    files[4].unlink()
    rows = load_coordinates(run_of_named, "spot_n4")
    joined = list(join_coordinates(images_of(pictures, streaming=streaming), rows))
    assert [row["image_index"] for row in joined] == [i for i in range(COUNT) if i != 4]
    (message,) = caplog.messages
    assert message.startswith("1 image could not be read and was skipped: picture_4.png: FileNotFoundError")
