"""Streams of Parquet files: any rows, without those before them."""

import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from oracle_runs import LABELS, picture, rows_of
from tiny import tiny_model, tiny_processor

from spot_hf.data.encoded import iterate_encoded
from spot_hf.data.parquet import parquet_images
from spot_hf.data.source import DatasetSource, load_images
from spot_hf.oracle.arguments import OracleArguments
from spot_hf.oracle.run import run_oracle


SIZES = [7, 5, 9]  # rows of the files, in row groups of four


FEATURES = datasets.Features(
    {"other": datasets.Value("int64"), "photo": datasets.Image(), "kind": datasets.ClassLabel(names=LABELS)}
)


def save_files(directory, contents, sizes=SIZES, row_group_size=4):
    """Of images with names and labels, under other names of the columns, and a column that nobody asks for."""
    rows = iter(range(sum(sizes)))
    (directory / "data").mkdir(parents=True)
    for number, size in enumerate(sizes):
        part = [next(rows) for _ in range(size)]
        images = [{"bytes": contents(i), "path": f"picture_{i}.png"} for i in part]
        columns = {"other": part, "photo": images, "kind": [i % len(LABELS) for i in part]}
        path = directory / f"data/validation-{number:05d}-of-{len(sizes):05d}.parquet"
        table = datasets.Dataset.from_dict(columns, features=FEATURES).with_format("arrow")[:]
        pq.write_table(table, path, row_group_size=row_group_size)
    return directory


def source_of(directory, **changes):
    return DatasetSource(dataset_name=str(directory), image_column_name="photo", label_column_name="kind", **changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_files(tmp_path_factory.mktemp("parquet"), lambda i: b"%d" % i * 50)


@pytest.mark.parametrize("label", ["kind", None])
def test_rows_are_those_of_the_stream(files, label):
    source = source_of(files, dataset_split="validation").source(streaming=True, label_column_name=label)
    images = load_images(source)
    expected = list(iterate_encoded(images, "validation"))
    found = parquet_images(source, images)
    assert found.num_rows == len(expected) == sum(SIZES)
    assert [one.num_rows for one in found.groups] == [4, 3, 4, 1, 4, 4, 1]
    for rows in (range(21), range(3, 5), range(6, 14), range(20, 21), range(18, 99), range(5, 5), range(0, 2)):
        assert list(found.rows(rows)) == expected[rows.start : rows.stop]


def test_only_what_was_asked_for_is_a_stream_of_parquet(files, tmp_path):
    source = source_of(files)
    assert parquet_images(source, load_images(source)) is None  # read as a whole
    source = source_of(files, max_samples=6).source(streaming=True)
    found = parquet_images(source, load_images(source))
    assert found.num_rows == 6 and len(list(found.rows(range(4, 21)))) == 2
    folder = tmp_path / "folder/validation/ant"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"not decoded here")
    source = DatasetSource(dataset_name=str(tmp_path / "folder"), label_column_name=None).source(streaming=True)
    assert parquet_images(source, load_images(source)) is None


# --------------------------------------------------------------------------------------------- several processes, on the Hub


def upload(directory, repo_id):
    from huggingface_hub import HfApi

    HfApi().create_repo(repo_id, repo_type="dataset")
    HfApi().upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=directory)


def noisy_picture(i: int) -> bytes:
    """Of 150 KB, beside which footers are small."""
    from io import BytesIO

    from PIL import Image

    pixels = np.random.default_rng(i).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_each_process_reads_its_own_part(hub, fresh_process, tmp_path):
    """Four processes together read the data set once, and, resumed, what is missing; their rows are those of one. Beside row
    groups, each process reads all footers: hence a tenth more. That the card states the features, as of all that
    `push_to_hub` has made, saves `datasets` from looking for them in a file."""
    data = save_files(tmp_path / "data", noisy_picture, sizes=[32] * 4, row_group_size=16)
    split = {"name": "validation", "num_bytes": 2**20, "num_examples": 128}
    info = {"dataset_info": {"features": FEATURES._to_yaml_list(), "splits": [split]}}
    (data / "README.md").write_text(f"---\n{yaml.safe_dump(info)}---\n")
    fresh_process(upload, data, "alice/stream", hub=hub, token="hf_alice")
    tiny_model(num_labels=5, id2label=dict(enumerate(LABELS))).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip

    def run(output_dir, num_processes, **changes):
        """How many bytes of the files went over the wire, in shares of theirs."""
        options = {
            "model": tmp_path / "model", "dataset_name": "alice/stream", "dataset_split": "validation", "steps": 1,
            "image_column_name": "photo", "label_column_name": "kind", "num_tokens": 4, "shard_size": 16, "num_workers": 0,
            "batch_size": 8, "output_dir": output_dir, **changes,
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
        before = hub.num_bytes.copy()
        done = subprocess.run(
            [sys.executable, *launch, "scripts/run_oracle.py", *words, "--streaming"],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        sent = sum(
            count - before[path] for path, count in hub.num_bytes.items() if path.startswith("/_cdn/datasets/alice/stream/")
        )
        return sent / sum(path.stat().st_size for path in (data / "data").iterdir())

    assert 0.9 < run(tmp_path / "four", 4) < 1.1
    alone = tmp_path / "alone"
    run(alone, 1)
    assert rows_of(tmp_path / "four") == rows_of(alone)
    for path in sorted((tmp_path / "four").glob("*/*.parquet"))[3:5]:  # of eight
        path.unlink()
    assert run(tmp_path / "four", 4) < 0.25 + 0.1
    assert rows_of(tmp_path / "four") == rows_of(alone)


def test_of_a_source_that_does_not_say_how_long_it_is(tmp_path):
    """The same rows as of one that is there as a whole, and names of files that say how many there are."""
    data = save_files(tmp_path / "data", picture)
    tiny_model(num_labels=5, id2label=dict(enumerate(LABELS))).save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    given = {
        "model": str(tmp_path / "model"), "dataset_name": str(data), "image_column_name": "photo", "label_column_name": "kind",
        "num_tokens": [4], "steps": 1, "shard_size": 5, "batch_size": 5, "num_workers": 0,
    }  # fmt: skip
    streamed = OracleArguments(**given, streaming=True, output_dir=str(tmp_path / "streamed"))
    run_oracle(streamed)
    assert json.loads((tmp_path / "streamed/run.json").read_text())["parameters"]["num_images"] is None
    run_oracle(OracleArguments(**given, output_dir=str(tmp_path / "whole")))  # from now on, `datasets` remembers the length
    assert rows_of(tmp_path / "streamed") == rows_of(tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "streamed").glob("*/*.parquet"))
    assert names == [f"validation-{i:05d}-of-00005.parquet" for i in range(5)]
