"""Find the best positions for images, keep them as a coordinate data set, and use them with another model.

    python examples/oracle_and_sharing.py [MODEL] [OTHER_MODEL] [OUTPUT_DIR]

`spot-hf oracle` and `spot-hf evaluate --coordinates` do the same from the command line. The objective here is to agree with
the model's own answer on all tokens: it needs no label, as that of a ceiling does.
"""

import sys

from spot_hf import (
    OracleArguments,
    TransferArguments,
    evaluate_transfer,
    join_coordinates,
    load_coordinates,
    run_oracle,
)
from spot_hf.data.digits import load_digits


if __name__ == "__main__":  # the jobs start processes of their own, which import this file
    defaults = ["runs/quickstart/spot-a", "runs/quickstart/spot-b", "runs/examples/oracle"]
    model, other, output_dir = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
    arguments = OracleArguments(
        model=model, dataset_name="digits", max_samples=64, num_tokens=[9], objective="distill", steps=5, output_dir=output_dir
    )
    (summary,) = run_oracle(arguments).values()
    print(f"accuracy {summary.accuracy_before:.1f} -> {summary.accuracy_after:.1f} %")

    coordinates = load_coordinates(output_dir)  # or a Hub id
    joined = join_coordinates(load_digits()["test"], coordinates)
    print("first row:", joined[0]["image_id"], joined[0]["coordinates"][:2], "...")

    transfer = evaluate_transfer(TransferArguments(model=other, coordinates=output_dir, dataset_name="digits"))
    print({name: round(accuracy.value, 1) for name, accuracy in transfer.accuracy.items()})
    # To share them: `spot_hf.push_coordinates(output_dir, "user/name")`, or `spot-hf push`, after `hf auth login`.
