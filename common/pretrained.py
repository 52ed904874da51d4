"""Models as folders, on this machine and on the Hugging Face Hub, in the format of the export."""

from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, TypeVar

from common.errors import InputError
from common.files import write_json
from common.hub import CONFIG, WEIGHTS, is_hub
from common.weights import save_safetensors

Model = TypeVar("Model", bound="Pretrained")


class Pretrained:
    """Adds `from_pretrained` and `save_pretrained` to a module with a `config`."""

    loader: ClassVar[str]
    """module:function, path or hf://... -> model. By name, as its module imports that of the model."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Facts that are saved with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    @classmethod
    def from_pretrained(cls: type[Model], name: str | Path) -> Model:
        """The model in a folder, run or weight file, or in "owner/name[@revision][/file]" on the Hub.

        It is in eval mode, on the CPU and needs no gradients. What exists here goes before the Hub. Raises:
        `InputError` naming what cannot be had, or is no such model.
        """
        path = Path(name)
        if (path / WEIGHTS).is_file():
            path = path / WEIGHTS
        elif not path.exists() and not is_hub(path):
            if str(name).startswith(("/", ".", "~")):  # no name of a repository
                raise InputError(f"{name}: no such file or folder")
            path = Path(f"hf://{name}")
        return resolve_name(cls.loader)(path)

    def save_pretrained(self, folder: str | Path, **facts: Any) -> None:
        """Write model.safetensors and config.json into `folder`.

        `facts` are those that `needs` names, for a model that was not loaded with them.
        """
        facts = {"config": asdict(self.config), **self.facts, **facts}
        if missing := [name for name in self.needs if name not in facts]:
            raise InputError(f"{folder}: save_pretrained needs {' and '.join(missing)}, as in codes.json")
        kept = {name: without_path(fact) for name, fact in facts.items()}
        save_model(Path(folder), self.state_dict(), kept)


def without_path(fact: Any) -> Any:
    """A fact without its "path", which is of this machine."""
    return {key: value for key, value in fact.items() if key != "path"} if isinstance(fact, dict) else fact


def save_model(folder: Path, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write weights with their facts inside, and the facts once more for a reader."""
    save_safetensors(folder / WEIGHTS, state, facts)
    write_json(folder / CONFIG, facts)
