"""What a conversion says about itself."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ConversionReport:
    """
    What a conversion did with every tensor of the source.

    Attributes:
        source_model (`str`), revision (`str`, *optional*), license (`str`, *optional*): of the source.
        family (`str`): a name of `FAMILIES`; model_type (`str`, *optional*): transformers' name of the source's own class.
        architecture (`str`): class of the result; num_parameters (`int`): of the result.
        used (`dict`): names in the source's files to the parameters, or parts of parameters, that they became.
        skipped (`dict`): names in the source's files to the reason why they were left out.
        missing (`dict`): newly initialised parameters to the reason.
        notes (`list[str]`): what else a person should know.
        output_dir (`str`, *optional*): where the result was written.
        verification (`str`, *optional*): of what was written, read again and compared with what was in memory.
        model ([`SpotViTForImageClassification`] or [`SpotViTModel`]), image_processor: the result.
        tokenizer (*optional*): of a [`SpotViTForZeroShotImageClassification`].
    """

    source_model: str
    revision: str | None
    family: str
    model_type: str | None
    license: str | None
    architecture: str
    num_parameters: int
    used: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    output_dir: str | None = None
    verification: str | None = None
    model: Any = field(default=None, repr=False)
    image_processor: Any = field(default=None, repr=False)
    tokenizer: Any = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All but the objects and what is of this machine, as written to `conversion_report.json`."""
        left_out = ("model", "image_processor", "tokenizer", "output_dir", "verification")
        return {k: v for k, v in self.__dict__.items() if k not in left_out}

    def summary(self) -> str:
        """A few lines for a person."""
        revision = f" at {self.revision[:12]}" if self.revision else ""
        lines = [
            f"source      {self.source_model}{revision} ({self.family}, licence {self.license or 'not stated'})",
            f"model       {self.architecture}, {self.num_parameters / 1e6:.1f} M parameters",
            f"tensors     {len(self.used)} used, {len(self.skipped)} skipped, {len(self.missing)} newly initialised",
        ]
        lines += [f"  skipped   {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  new       {name}: {reason}" for name, reason in self.missing.items()]
        lines += [f"note        {note}" for note in self.notes]
        lines += [f"checked     {self.verification}"] if self.verification else []
        return "\n".join(lines + ([f"written to  {self.output_dir}"] if self.output_dir else []))
