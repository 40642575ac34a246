"""What coordinates are worth to a model: accuracy at the positions that another model's oracle found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..coordinates.joining import join_coordinates
from ..coordinates.loading import load_coordinates, load_record, source_of
from ..data.batches import model_saliency
from ..data.encoded import stored_saliency
from ..data.labels import classes_of, likeliest_class
from ..data.source import load_images
from ..hub.loading import check_classifier, load_image_processor, load_spot_vit, load_spot_vit_config
from ..jobs.files import write_atomically
from ..placement import edge_saliency, generator_for, grid, uniform
from .analysis import analysis_table, describe_positions, means
from .intervals import Accuracy, Difference


# Of one image: what each set of positions is.
POSITIONS = {
    "initial": "where the search began",
    "shared": "best positions that the other model's oracle found",
    "snapped": "the same, each moved to the centre of the nearest grid cell",
    "control": "where the search began, moved as another image's positions were: what a gain owes to moving alone",
}


def evaluate_transfer(
    model: str,
    coordinates: str,
    dataset_name: str | None = None,
    *,
    output_dir: str | Path | None = None,
    revision: str | None = None,
    config: str | None = None,
    coordinates_split: str | None = None,
    dataset_config_name: str | None = None,
    dataset_split: str | None = None,
    image_column_name: str = "image",
    label_column_name: str = "label",
    saliency_column_name: str | None = None,
    max_samples: int | None = None,
    among_labels: bool = False,
    batch_size: int = 32,
    device: str = "cpu",
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """
    Accuracy of a model at the positions of a coordinate data set, which another model's oracle may have found: at the initial
    positions, at the shared ones, at the shared ones snapped to this model's grid, and, as a control, at the initial ones
    moved as those of another image were, half the data set away; on the same images.

    Args:
        model (`str`): directory or Hub id of a SpotViT classifier; revision (`str`, *optional*): of a Hub id.
        coordinates (`str`): directory or Hub id of a coordinate data set.
        dataset_name (`str`, *optional*): the images that the coordinates point at; by default the Hub id that these name.
        dataset_config_name, dataset_split, image_column_name, label_column_name: likewise, as in [`load_images`].
        saliency_column_name (`str`, *optional*): whose saliency the analysis takes, as in [`load_images`]: maps, or boxes
            `[x_min, y_min, x_max, y_max]` in pixels of the original image; by default, how strong edges are.
        output_dir (`str`, *optional*): where `transfer.json` and `transfer.md` are written.
        config, coordinates_split (`str`, *optional*): of the coordinate data set, where it has several.
        max_samples (`int`, *optional*): the first so many images that have coordinates.
        among_labels (`bool`): classify among the classes that occur in the split only.
        batch_size (`int`): images per forward pass.
        device (`str`): of the model.
        say: is called with the table.

    Returns:
        `dict`: what `transfer.json` holds: accuracies in percent, differences to the initial positions in points, with
        intervals.

    Raises:
        `ValueError`: an argument is wrong, or the coordinates were found for other images. `OSError`: no such model or data.
    """
    for name, value in {"batch_size": batch_size, "max_samples": max_samples}.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}")
    check_classifier(model, load_spot_vit_config(model, revision))
    rows = load_coordinates(coordinates, config, coordinates_split)
    if dataset_name is None:
        dataset_name, dataset_config_name = source_of(load_record(coordinates, rows.info.config_name, str(rows.split)))
    images = load_images(
        dataset_name,
        config_name=dataset_config_name,
        split=dataset_split or str(rows.split),
        image_column_name=image_column_name,
        label_column_name=label_column_name,
        saliency_column_name=saliency_column_name,
    )
    joined = join_coordinates(images, rows)
    if max_samples is not None:
        joined = joined.select(range(min(max_samples, len(joined))))
    classes = classes_of(images) if among_labels else None
    right, analysis = _measure(model, revision, joined, classes, batch_size, device)
    result = {
        "model": Path(model).name if Path(model).exists() else model,
        "coordinates": Path(coordinates).name if Path(coordinates).exists() else coordinates,
        "config": config or rows.info.config_name,
        "dataset": Path(dataset_name).name if Path(dataset_name).exists() else dataset_name,
        "split": str(rows.split),
        "num_images": len(joined),
        "num_tokens": len(joined[0]["coordinates"]),
        "accuracy": {name: vars(Accuracy.of(values)) for name, values in right.items()},
        "difference_to_initial": {
            name: vars(Difference.of(right["initial"], values)) for name, values in right.items() if name != "initial"
        },
        "difference_to_control": vars(Difference.of(right["control"], right["shared"])),
        "among_labels": among_labels,
        "saliency": "edge saliency" if saliency_column_name is None else f"saliency by `{saliency_column_name}`",
        "analysis": analysis,
    }
    say(transfer_table(result))
    if output_dir is not None:
        texts = {"transfer.json": json.dumps(result, indent=2), "transfer.md": transfer_table(result)}
        for name, text in texts.items():
            with write_atomically(Path(output_dir) / name) as file:
                file.write(f"{text}\n".encode())
        say(f"written to {output_dir}: transfer.json and transfer.md")
    return result


@torch.inference_mode()
def _measure(
    model: str, revision: str | None, joined: Any, classes: list[int] | None, batch_size: int, device: str
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Which images are classified correctly at each of `POSITIONS`, `(num_images,)`, bool; and what the positions are like,
    beside random ones."""
    spot, processor = load_spot_vit(model, revision).to(device), load_image_processor(model, revision)
    right: dict[str, list[np.ndarray]] = {name: [] for name in POSITIONS}
    described: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in (*POSITIONS, "random")}
    counts = dict.fromkeys(POSITIONS, 0)
    positions_of = joined.select_columns(["image_size", "coordinates", "initial_coordinates"])
    with tqdm(total=len(joined), desc="transfer", unit="image") as progress:
        for start in range(0, len(joined), batch_size):
            rows = joined[start : start + batch_size]
            # Positions in the model frame, three sets per image, from one decoding of it.
            inputs = processor(rows["image"], coordinates=rows["coordinates"], return_tensors="pt")
            sizes = [image.size for image in rows["image"]]
            initial = _in_model_frame(rows["initial_coordinates"], sizes, processor)
            count = len(joined)
            others = positions_of[[(start + i + count // 2) % count for i in range(len(sizes))]]
            moves = _in_model_frame(others["coordinates"], others["image_size"], processor) - _in_model_frame(
                others["initial_coordinates"], others["image_size"], processor
            )
            sets = {
                "initial": initial,
                "shared": inputs["coordinates"],
                "snapped": snap_to_grid(inputs["coordinates"], inputs["pixel_values"], spot.config.patch_size),
                "control": (initial + moves).clamp(0, 1),
            }
            labels = np.array(rows["label"])
            if "saliency" in rows:
                columns = (rows["saliency"], sizes, rows["image_id"])
                maps = [
                    model_saliency(stored_saliency(one), size, image_id, processor)
                    for one, size, image_id in zip(*columns, strict=True)
                ]
            else:
                maps = [edge_saliency(image) for image in inputs["pixel_values"]]
            sets_and_random = {**sets, "random": _random_like(initial, rows["image_id"])}
            _describe(sets_and_random, torch.stack(maps), spot.config.patch_size, described)
            scales = {}
            if "window_scales" in rows:
                scales["window_scales"] = torch.tensor(rows["window_scales"]).to(device)
            for name, positions in sets.items():
                # Windows have their own sizes at the positions for which these were found.
                own = scales if name != "initial" else {}
                logits = spot(inputs["pixel_values"].to(device), coordinates=positions.to(device), **own).logits
                right[name].append(likeliest_class(logits.float().cpu().numpy(), classes) == labels)
                counts[name] += int(right[name][-1].sum())
            progress.update(len(labels))
            progress.set_postfix_str(", ".join(f"{name} {100 * n / progress.n:.1f} %" for name, n in counts.items()))
    right_at = {name: np.concatenate(parts) for name, parts in right.items()}
    return right_at, {name: means(parts) for name, parts in described.items()}


def _in_model_frame(sets: list[Any], sizes: list[Any], processor: Any) -> torch.Tensor:
    """`(batch_size, num_tokens, 2)`: positions of images of those `(width, height)`, from the image frame."""
    return torch.stack([
        processor.to_model_frame(torch.tensor(one), tuple(size)) for one, size in zip(sets, sizes, strict=True)
    ])  # fmt: skip


def _random_like(coordinates: torch.Tensor, image_ids: list[str]) -> torch.Tensor:
    """Uniform positions, drawn per image."""
    return torch.stack([uniform(coordinates.shape[1], generator_for(0, image_id)) for image_id in image_ids])


def _describe(
    sets: dict[str, torch.Tensor],
    saliency: torch.Tensor,
    patch_size: int,
    described: dict[str, list[dict[str, torch.Tensor]]],
) -> None:
    """Appends what each set of positions is like on a batch, whose maps are `(batch_size, height, width)`."""
    height, width = saliency.shape[-2:]
    for name, positions in sets.items():
        described[name].append(describe_positions(positions, height, width, patch_size, saliency))


def snap_to_grid(coordinates: torch.Tensor, pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    Each position moved to the centre of the nearest cell of the model's grid.

    Args:
        coordinates (`torch.Tensor` of shape `(batch_size, num_tokens, 2)`): `(x, y)`, model frame.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): whose size gives the grid.
        patch_size (`int`): in pixels.

    Returns:
        `torch.Tensor` of the same shape. Tokens that share a nearest cell share its centre.
    """
    height, width = pixel_values.shape[-2:]
    cells = grid(height, width, patch_size).to(coordinates)
    pixels = torch.tensor([width, height]).to(coordinates)  # nearest in pixels
    return cells[torch.cdist(coordinates * pixels, cells * pixels).argmin(-1)]


def transfer_table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['model']} at the positions of {result['coordinates']} {result['config']}: {result['num_tokens']} tokens, "
        f"{result['num_images']} images of {result['dataset']}, {result['split']}"
        + (", among the classes that occur" if result["among_labels"] else ""),
        "",
        "| positions | top-1, % (95 % interval) | difference to initial, points (95 % interval, paired) | gained / lost |",
        "|---|---:|---:|---:|",
    ]
    for name, accuracy in result["accuracy"].items():
        cell = f"{accuracy['value']:.1f} ({accuracy['low']:.1f} to {accuracy['high']:.1f})"
        difference = result["difference_to_initial"].get(name)
        if difference is None:
            lines.append(f"| {name} | {cell} | | |")
        else:
            lines.append(
                f"| {name} | {cell} | {difference['value']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f}) | "
                f"{difference['gained']} / {difference['lost']} |"
            )
    control = result["difference_to_control"]
    lines += [
        "",
        f"Shared positions against the control (another image's moves): {control['value']:+.1f} points "
        f"({control['low']:+.1f} to {control['high']:+.1f}, paired).",
    ]
    if "analysis" in result:
        lines += ["", *analysis_table(result["analysis"], result["saliency"])]
    return "\n".join(lines)
