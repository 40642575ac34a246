"""A placement of one's own, as a person writes it into a file: `--placement own_placement:diagonal`."""

import torch


def diagonal(num_tokens):
    """From the top left corner to the bottom right one."""
    return torch.linspace(0, 1, num_tokens)[:, None].expand(-1, 2)


def bright(num_tokens, generator, pixel_values):
    """Drawn with probability in proportion to brightness."""
    brightness = pixel_values.mean(0)
    weights = (brightness - brightness.min() + 1e-6).flatten()
    cells = torch.multinomial(weights, num_tokens, generator=generator)
    height, width = brightness.shape
    return torch.stack([(cells % width + 0.5) / width, (cells // width + 0.5) / height], dim=-1)
