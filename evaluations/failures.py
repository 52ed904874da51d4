"""Scores that clips do not have, which is no fault, and metrics that failed, which do not stop the others."""

from collections.abc import Callable
from typing import Any

from common.distributed import Runtime
from common.errors import InputError


class NoValue(InputError):
    """These clips have no such score, as they are too few or too still. Any other error is a failure."""


def attempt(
    name: str, measure: Callable[[], dict[str, Any]], runtime: Runtime = Runtime()
) -> dict[str, Any]:
    """The sections that `measure` makes on all processes; if it fails on one, a section `name` saying why."""
    try:
        with runtime.together():
            return measure()
    except (InputError, OSError) as error:
        if runtime.is_main:
            print(f"{name} failed: {error}", flush=True)
        return {name: {"failed": True, "reason": str(error)}}
