"""Progress of long work: a bar on a terminal, elsewhere a line every half minute."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


class PlainLines:
    """A file for tqdm that prints each state of the bar as a line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable | None, total: int, title: str, unit: str, enabled: bool) -> tqdm:
    """A tqdm bar over `items`, or with None for calls of `update`."""
    plain = {} if sys.stderr.isatty() else {
        "file": PlainLines(), "mininterval": 30, "delay": 1,
        "bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {remaining} left"}
    return tqdm(items, title, total, unit=unit, disable=not enabled, **plain)
