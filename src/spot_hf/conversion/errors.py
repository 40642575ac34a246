"""The error of a conversion."""


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message names what stands in the way."""
