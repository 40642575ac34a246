"""Arguments of `spot-hf demo`."""

from dataclasses import dataclass, field, fields

from ..coordinates.show import RecordedImages
from ..export.files import check_quantize
from ..hub.uploads import check_push


@dataclass(kw_only=True)
class DemoArguments(RecordedImages):
    """Of which model, with which examples, and where the page goes."""

    model: str = field(metadata={"help": "A SpotViT classifier: a directory or a Hub id."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})
    output_dir: str = field(default="runs/demo", metadata={"help": "Where the page is written."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the page of another model."})
    quantize: str | None = field(
        default=None, metadata={"help": "Weights on the page: int8 or float16, which load faster (default: float32)."}
    )
    image: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Examples: files or directories (default: two photographs, or digits, that scikit-learn brings). They are "
            "published with the page, under their names."
        },
    )
    coordinates: str | None = field(
        default=None, metadata={"help": "Coordinate data set, a directory or a Hub id: its searches are shown step by step."}
    )
    image_id: list[str] = field(
        default_factory=list, metadata={"help": "Which of its images, by the column image_id (default: the first four)."}
    )
    port: int = field(default=7860, metadata={"help": "Of 127.0.0.1, where the page is served; 0 for any that is free."})
    no_serve: bool = field(default=False, metadata={"help": "Write the page, and do not serve it."})
    push_to_hub: bool = field(default=False, metadata={"help": "Make it a static Space, --hub_space_id, and do not serve it."})
    hub_space_id: str | None = field(default=None, metadata={"help": "Space to push to, such as user/name."})
    hub_private: bool = field(default=False, metadata={"help": "Create that Space as a private one."})

    def check(self) -> None:
        """`ValueError` for what no page can have, before anything is loaded."""
        check_push(self.push_to_hub, "hub_space_id", self.hub_space_id)
        if self.quantize is not None:
            check_quantize(self.quantize)
        if not 0 <= self.port <= 65535:
            raise ValueError(f"`port` must be in 0 to 65535; got {self.port}")
        if self.hub_private and not self.push_to_hub:
            raise ValueError("`hub_private` goes with `push_to_hub`; got it alone")
        if self.coordinates is None:
            for name in ("image_id", *(one.name for one in fields(RecordedImages))):
                if getattr(self, name):
                    raise ValueError(f"`{name}` needs `coordinates`; got {getattr(self, name)!r} alone")
