"""What is pushed while a model trains: with a checkpoint's weights their golden outputs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..golden import GOLDEN_FILE


class PushGoldenOutputs(TrainerCallback):
    """Trainer copies a checkpoint's weights to the output directory and pushes that: here goes the golden file with them."""

    checkpoint: Path | None = None

    @contextmanager
    def of(self, checkpoint: str) -> Iterator[None]:
        """While it is pushed, if it is: Trainer may leave it out."""
        self.checkpoint = Path(checkpoint)
        try:
            yield
        finally:
            self.checkpoint = None

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            there, here = self.checkpoint / GOLDEN_FILE, Path(args.output_dir) / GOLDEN_FILE
            here.unlink(missing_ok=True)
            if there.is_file():
                shutil.copy(there, here)
