"""The progress bar of a run of the oracle."""

import logging

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from ..coordinates.shards import Shard
from ..data.batches import Plan


logger = logging.getLogger(__name__)


class OracleProgress:
    """
    A bar with images/s, time left, and the accuracy so far before and after; of the first process's share.

    Args:
        num_tokens (`list[int]`): the budgets.
        plan ([`Plan`]): of this process.
        state (`PartialState`): the processes.
    """

    def __init__(self, num_tokens: list[int], plan: Plan, state: PartialState):
        self.counts = {count: np.zeros(3) for count in num_tokens}  # images, right before, right after
        self.texts = dict.fromkeys(num_tokens, "")
        shards, total = plan.shards, None
        if shards.total is not None:
            total = sum(len(shards.rows_of(shard)) for shard in plan.my_shards())
            resumed = shards.total - len(shards.missing)
            if resumed:
                logger.info("resuming: %d of %d shards are done", resumed, shards.total)
        name = "oracle, " + "/".join(map(str, num_tokens)) + " tokens"
        if state.num_processes > 1:
            name += f" (the share of process 0 of {state.num_processes})"
        self.bar = tqdm(total=total, desc=name, unit="image", disable=not state.is_main_process, smoothing=0.05)

    def show(self, num_tokens: int, shard: Shard, finished: bool) -> None:
        """What a shard in the making says; of a finished one, from now on."""
        steps = np.atleast_1d(shard.correct_per_step)
        counts = self.counts[num_tokens] + np.array([shard.num_labelled, steps[0], steps[-1]], dtype=float)
        if finished:
            self.counts[num_tokens] = counts
        if counts[0]:
            before, after = 100 * counts[1:] / counts[0]
            self.texts[num_tokens] = f"{num_tokens}: {before:.1f} -> {after:.1f} %"
            self.bar.set_postfix_str(", ".join(filter(None, self.texts.values())), refresh=False)
