"""Tables of what a shift of the images does to each placement: `spot-hf evaluate --corruption`."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from .cells import SettingKey
from .results import Result


def corruption_tables(rows: Sequence[Result]) -> list[str]:
    """
    Markdown lines: of each model and image size whose images were corrupted, a table per number of tokens, a row per method,
    with the full grid as the last.

    Args:
        rows: of an evaluation.
    """
    lines: list[str] = []
    for clean in dict.fromkeys(row.key for row in rows if row.corruption is None):
        own = [row for row in rows if replace(row.key, corruption=None, severity=None) == clean]
        own = [row for row in own if row.looks is None and row.num_images]
        keys = list(dict.fromkeys(row.key for row in own))
        if len(keys) < 2:
            continue
        keys.sort(key=lambda key: key != clean)
        lines += [
            f"## {clean.title}: corrupted images",
            "",
            "Top-1 accuracy in percent, on images as they are and corrupted, with the severity; the mean is over what is "
            "corrupted. Intervals are in the tables of each below.",
            "",
        ]
        for count in sorted({row.num_tokens for row in own if row.method != "full_grid"}):
            lines += [*_table([row for row in own if row.num_tokens == count or row.method == "full_grid"], keys, count), ""]
    return lines


def _table(rows: list[Result], keys: list[SettingKey], num_tokens: int) -> list[str]:
    names = ["as they are", *(f"{key.corruption} {key.severity}" for key in keys[1:]), "mean"]
    lines = [f"| {num_tokens} tokens | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    by_method: dict[str, dict[SettingKey, Result]] = {}
    for row in sorted(rows, key=lambda row: row.method == "full_grid"):
        by_method.setdefault(row.method, {})[row.key] = row
    for method, found in by_method.items():
        values = [found[key].top_1 or 0.0 for key in keys]
        name = f"full_grid, {found[keys[0]].num_tokens} tokens" if method == "full_grid" else method
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in (*values, fmean(values[1:])))} |")
    return lines
