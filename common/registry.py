"""Released weights: where they come from, and the facts that their files do not carry."""

from pathlib import Path
from typing import Any

from common.files import read_json

MODELS_FOLDER = Path(__file__).resolve().parent.parent / "pretrained_models"


def registry() -> dict[str, dict[str, Any]]:
    """File name -> its entry in pretrained_models/registry.json."""
    return read_json(MODELS_FOLDER / "registry.json")
