"""What the stock pipeline says of a saved model: in this process, and as remote code in one without the package."""

import pytest
from transformers import pipeline


def remote_answers(directory, files, batch_size):
    """In the new process."""
    from transformers import pipeline

    classifier = pipeline("image-classification", model=directory, trust_remote_code=True)
    return classifier(files, top_k=1, batch_size=batch_size)


def check_stock_pipelines(fresh_process, directory, files: list[str], expected: list[dict]) -> None:
    """`expected`: what our own pipeline says, with `return_coordinates`. Sums in another order: 1e-5."""
    stock = pipeline("image-classification", model=str(directory))(files, top_k=1, batch_size=3)
    remote = fresh_process(remote_answers, str(directory), files, 4, without_spot_hf=True)
    for answers in (stock, remote):
        for one, other in zip(expected, answers, strict=True):
            assert other[0]["label"] == one["predictions"][0]["label"]
            assert other[0]["score"] == pytest.approx(one["predictions"][0]["score"], abs=1e-5)
