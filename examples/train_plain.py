"""Fine-tune for few tokens with transformers' own Trainer: a transform that places tokens is all there is to it.

python examples/train_plain.py [MODEL] [OUTPUT_DIR]
"""

import sys

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

import spot_hf  # noqa: F401
from spot_hf.data.digits import load_digits


model_name = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
output_dir = sys.argv[2] if len(sys.argv) > 2 else "runs/examples/plain"
model = AutoModelForImageClassification.from_pretrained(model_name)
processor = AutoImageProcessor.from_pretrained(model_name)


def prepare(rows):
    # seed=None: other positions in every epoch. Otherwise an image has the same ones each time it is drawn.
    inputs = processor(rows["image"], num_tokens=9, placement="uniform", seed=None, return_tensors="pt")
    return {**inputs, "labels": torch.tensor(rows["label"])}


trainer = Trainer(
    model,
    TrainingArguments(
        output_dir, num_train_epochs=1, per_device_train_batch_size=64, learning_rate=3e-4, logging_steps=5,
        remove_unused_columns=False, report_to="none", save_strategy="no",
    ),
    train_dataset=load_digits()["train"].with_transform(prepare),
    processing_class=processor,  # is saved with the model
)  # fmt: skip
trainer.train()
trainer.save_model()
print("written to", output_dir)
