"""Scores without a value, which are no errors, and metrics that fail, which do not stop the others."""

from collections.abc import Callable
from typing import Any

from common.distributed import Runtime
from common.errors import InputError


class NoValue(InputError):
    """A score is undefined for these clips, as they are too few or do not move. Other errors are failures."""


def attempt(
    name: str, measure: Callable[[], dict[str, Any]], runtime: Runtime = Runtime()
) -> dict[str, Any]:
    """The sections of `measure`, called on all processes; if it fails on one, a section with the reason."""
    try:
        with runtime.together():
            return measure()
    except (InputError, OSError) as error:
        if runtime.is_main:
            print(f"{name} failed: {error}", flush=True)
        return {name: {"failed": True, "reason": str(error)}}
