"""Progress of long work: a bar on a terminal, now and then a plain line where there is none."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


class PlainLines:
    """A file for tqdm that prints each state of the bar as a line of its own."""

    def write(self, text: str) -> None:
        """Print what is left of `text` without the carriage returns."""
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None:
        """Nothing is held back."""
        sys.stderr.flush()


def progress(items: Iterable | None, total: int, title: str, unit: str, enabled: bool) -> tqdm:
    """A tqdm bar over `items` (None: call `update`); elsewhere a line every half minute."""
    if sys.stderr.isatty():
        return tqdm(items, title, total, unit=unit, disable=not enabled)
    form = "{desc}: {n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {remaining} left"
    return tqdm(items, title, total, unit=unit, disable=not enabled, file=PlainLines(), mininterval=30,
                bar_format=form, delay=1)
