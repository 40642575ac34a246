"""The masks of a data set, for the oracle of a model that segments."""

from typing import Any

import datasets
import torch

from ..data.batches import Batch
from ..data.masks import MaskClasses, check_masks, refuse_options_of_labels, with_encoded_masks
from ..hub.loading import ModelSource
from .arguments import OracleArguments


class OracleMasks:
    """
    Which pixels of a run's images are of which class, where its objective needs that.

    Args:
        arguments ([`OracleArguments`]): of the run.
        model ([`ModelSource`]): that segments.

    Raises:
        `ValueError`: the run has options that are of class numbers.
    """

    def __init__(self, arguments: OracleArguments, model: ModelSource):
        refuse_options_of_labels(arguments)
        self.column, self.needed = arguments.label_column_name, arguments.objective == "label"
        self.classes = MaskClasses(model.config.num_labels, model.config.semantic_loss_ignore_index)

    def beside(self, images: Any, check: bool) -> Any:
        """
        The run's images, undecoded masks beside them as the column `label` where they are needed; without this column where
        not.

        Args:
            images (`datasets.Dataset` or `datasets.IterableDataset`): as loaded.
            check (`bool`): read all masks. Those of a stream are checked one by one, as the run comes to them.

        Raises:
            `ValueError`: the column has no masks, or one is of another size than its image, or of other numbers.
        """
        if self.column is None:
            return images
        images = with_encoded_masks(images, self.column)
        if not self.needed:
            return images.remove_columns("label")
        if check and isinstance(images, datasets.Dataset):
            check_masks(images, self.classes.num_labels, self.classes.ignore_index)
        return images

    def seen(self, batch: Batch, image_processor: Any) -> torch.Tensor:
        """As [`MaskClasses.seen_of`]."""
        return self.classes.seen_of(batch, image_processor)
