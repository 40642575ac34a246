"""The error of an export."""


class ExportError(ValueError):
    """A model that cannot be exported, or whose export computes something else; the message says what stands in the way."""
