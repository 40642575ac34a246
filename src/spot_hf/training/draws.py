"""Random numbers by hash: a function of the seed and of what they are for, rather than of a generator's state.

An image's numbers depend neither on its batch mates, nor on the number of processes, nor on whether training was interrupted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch


# Streams: what numbers are for. Runs that go on rely on them: add new ones at the end.
CHOICE, POSITIONS, CELLS, JITTER, SCALES, OWN, COUNT, PIXELS, MASK, AUGMENTATION, MIXING, SCALE_CHOICE, FOVEATION = range(13)

# Of splitmix64 (Steele, Lea and Flood 2014), as the signed integers that torch has.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
MIXERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right of int64, whose own shift would repeat the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def hash_integers(values: torch.Tensor) -> torch.Tensor:
    """The output function of splitmix64: int64 of any shape to int64 that look random."""
    values = values + GOLDEN_GAMMA
    values = (values ^ _shifted(values, 30)) * MIXERS[0]
    values = (values ^ _shifted(values, 27)) * MIXERS[1]
    return values ^ _shifted(values, 31)


def uniforms(seed: int, draws: torch.Tensor, stream: int, count: int) -> torch.Tensor:
    """
    Random numbers in [0, 1) for each draw.

    Args:
        seed (`int`): of the run.
        draws (`torch.LongTensor` of shape `(batch_size,)`): which draw each row is.
        stream (`int`): what the numbers are for; different streams are independent.
        count (`int`): numbers per draw.

    Returns:
        `torch.Tensor` of shape `(batch_size, count)`, float32, multiples of 2^-24.
    """
    state = hash_integers(draws + hash_integers(torch.tensor(seed, device=draws.device)))
    state = hash_integers(state + stream)
    counter = torch.arange(count, device=draws.device)
    return _shifted(hash_integers(state[:, None] + GOLDEN_GAMMA * counter), 40).float() * 2**-24


def normals(uniform: torch.Tensor) -> torch.Tensor:
    """Standard normal numbers within ±5.5, float32, from the multiples of 2^-24 that [`uniforms`] gives, of any shape."""
    # The middle of each interval; that of the last one rounds to 1, where erfinv is infinite.
    middle = (2 * (uniform + 2**-25) - 1).clamp_max(1 - 2**-24)
    return math.sqrt(2) * torch.erfinv(middle)


def hashed_seed(seed: int, *values: int, stream: int = PIXELS) -> int:
    """A seed for a library's own generator, from the run's seed and what it is for."""
    state = hash_integers(torch.tensor(seed))
    for value in (stream, *values):
        state = hash_integers(state + value)
    return int(state) & 0x7FFFFFFFFFFFFFFF


@contextmanager
def seeded_by(seed: int, *values: int, stream: int) -> Iterator[None]:
    """For code that draws from torch's global generator: that of the CPU is seeded by [`hashed_seed`], and restored
    afterwards. `torch.manual_seed` would reseed the accelerators' too."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(hashed_seed(seed, *values, stream=stream))
        yield
