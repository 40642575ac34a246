"""Fine-tune for few tokens with SpotTrainer: mixtures of token counts and placements, crops, evaluation by token count.

    python examples/train_spot.py [MODEL] [OUTPUT_DIR]

`spot-hf train` does the same from the command line, resumes when it was killed, and writes a card.
"""

import sys

from transformers import AutoImageProcessor, AutoModelForImageClassification

from spot_hf import SpotTrainer, SpotTrainingArguments
from spot_hf.data.digits import load_digits


model_name = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
output_dir = sys.argv[2] if len(sys.argv) > 2 else "runs/examples/spot"
digits = load_digits()

trainer = SpotTrainer(
    AutoModelForImageClassification.from_pretrained(model_name),
    SpotTrainingArguments(
        output_dir, num_train_epochs=1, learning_rate=3e-4, logging_steps=5, save_strategy="no", dataloader_num_workers=0,
        report_to="none",
    ),
    train_dataset=digits["train"],
    eval_dataset=digits["test"].select(range(100)),
    processing_class=AutoImageProcessor.from_pretrained(model_name),
    num_tokens=[9, 18],
    placement=["isotropic", "uniform", "center"],
)  # fmt: skip
trainer.train()
print({name: round(value, 1) for name, value in trainer.evaluate().items() if name.endswith("accuracy")})
trainer.save_model()
print("written to", output_dir)
