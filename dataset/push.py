"""STAGE: a prepared data set -> the Hugging Face Hub, where --data-path hf://datasets/... finds it.

The names of the recordings go along, as they are in dataset.json.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.command import require_at_least, run_command, say_next
from common.distributed import Runtime
from common.files import remove
from common.hub import check_repository, push, write_card
from common.locks import locked
from dataset.hub_data import SHARDS, pack
from dataset.manifest import Manifest

WORK = ".push.tmp"  # in the data folder
CARD = Path(__file__).with_name("card.md")


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Upload a prepared data set in one commit. For a time it takes twice its space on the disk."""

    data_path: Path
    """Folder written by dataset.prepare, or by the sampler (its grids/)."""
    push_to_hub: str
    """Repository, owner/name; made if it is missing."""
    licence: str
    """Licence of the pictures, by the Hub's name for it: cc-by-4.0, cc-by-nc-4.0, other, ..."""
    private: bool = True
    """Whether a new repository is private; one that exists stays as it is."""
    shard_mb: int = 1000
    """Megabytes of a tar file."""

    def __post_init__(self) -> None:
        require_at_least(self, shard_mb=1)
        check_repository(self.push_to_hub, "--push-to-hub")


def run(config: PushConfig, runtime: Runtime) -> None:
    """Pack and upload, on the main process; `InputError` if another job uses the data folder."""
    if not runtime.is_main:
        return
    manifest = Manifest.read(config.data_path)
    with locked(config.data_path, Runtime()):
        work = config.data_path / WORK
        remove(work)  # of a killed run
        work.mkdir()
        try:
            pack(config.data_path, manifest, work, config.shard_mb * 10**6)
            counts = Counter((clip.label, clip.split) for clip in manifest.clips)
            recordings = Counter(label for label, _ in {(c.label, c.recording) for c in manifest.clips})
            write_card(work, CARD, {"license": config.licence, "tags": ["endoscopy", "video", "webdataset"]},
                       name=config.push_to_hub, manifest=manifest, counts=counts, recordings=recordings)
            address = push(work, config.push_to_hub, "dataset", config.private, SHARDS)
        finally:
            remove(work)
    print(f"{len(manifest.clips)} clips of {len(manifest.class_names)} classes uploaded: {address}")
    say_next("bash", "scripts/train_vq.sh", "--results-dir", "RUN", "--data-path",
             f"hf://datasets/{config.push_to_hub}")


if __name__ == "__main__":
    run_command(PushConfig, run)
