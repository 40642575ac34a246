"""LoRA: train adapters for few tokens, and merge them into a model that needs no PEFT.

    python examples/lora.py [MODEL] [OUTPUT_DIR]

Needs `pip install peft`. Modules that adapters can go to: `q_proj`, `k_proj`, `v_proj`, `o_proj` of attention, `fc1` and `fc2`
of the feed-forward layers.
"""

import sys

from peft import LoraConfig, get_peft_model
from transformers import AutoImageProcessor, AutoModelForImageClassification

from spot_hf import SpotTrainer, SpotTrainingArguments
from spot_hf.data.digits import load_digits


model_name = sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/spot-a"
output_dir = sys.argv[2] if len(sys.argv) > 2 else "runs/examples/lora"
processor = AutoImageProcessor.from_pretrained(model_name)
model = AutoModelForImageClassification.from_pretrained(model_name)

adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))
adapted.print_trainable_parameters()
trainer = SpotTrainer(
    adapted,
    SpotTrainingArguments(
        output_dir, num_train_epochs=1, learning_rate=1e-3, logging_steps=5, eval_strategy="no", save_strategy="no",
        dataloader_num_workers=0, report_to="none",
    ),
    train_dataset=load_digits()["train"],
    processing_class=processor,
    num_tokens=9,
)  # fmt: skip
trainer.train()

merged = adapted.merge_and_unload()  # a SpotViT again: for `spot-hf`, pipelines, and `spot_hf.push_model`
merged.save_pretrained(output_dir)
processor.save_pretrained(output_dir)
print("written to", output_dir)
