"""Prepared data sets on the Hugging Face Hub: dataset.json, and the grid pictures in tar files.

The tar files are shards of WebDataset: `train-00000.tar` holds pictures <class>/<recording>_<frame>.png.
"""

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from common.distributed import Runtime
from common.errors import InputError
from common.files import atomic_path, settle
from common.hub import check_hash, hub_name, is_hub, local_folder, one_reason
from common.locks import locked
from common.names import inside
from dataset.manifest import FILE_NAME, Manifest

SHARDS = ("train-*.tar", "val-*.tar")


def data_folder(path: Path, runtime: Runtime = Runtime()) -> Path:
    """`path` itself; of hf://datasets/owner/name[@revision] a folder of its grid pictures in the cache.

    The pictures are unpacked at first use. All processes call it. Raises: `InputError` naming `path`.
    """
    if not is_hub(path):
        return path
    from huggingface_hub import cached_assets_path

    shards, name = local_folder(path, [FILE_NAME, *SHARDS], runtime)
    repository, commit = name.replace("/", "--").split("@")
    folder = cached_assets_path("endogen", "datasets", commit) / repository
    with runtime.together(), one_reason(hub_name(path)):
        if not (shards / FILE_NAME).exists():
            raise InputError(f"{hub_name(path)}: holds no {FILE_NAME}: not made by scripts/push_data.sh")
        if runtime.local_rank == 0:
            with locked(folder.parent, Runtime(), wait=True):  # of other jobs
                if not folder.exists():
                    for file in shards.iterdir():
                        check_hash(file)
                    unpack(sorted(shards.glob("*.tar")), Manifest.read(shards), folder)
    return folder


def pack(data: Path, manifest: Manifest, folder: Path, shard_bytes: int) -> None:
    """Write dataset.json and the pictures of `data` into `folder`, tar files of about `shard_bytes`.

    They depend on the content alone, so that an unchanged shard need not be uploaded again.
    """
    manifest.write(folder)
    for split in ("train", "val"):
        clips, count = manifest.select(split)[::-1], 0
        while clips:
            with tarfile.open(folder / f"{split}-{count:05d}.tar", "w") as shard:
                while clips and shard.offset < shard_bytes:
                    entry = tarfile.TarInfo(clips.pop().name)
                    path = inside(data, entry.name)
                    entry.size = path.stat().st_size
                    with open(path, "rb") as picture:
                        shard.addfile(entry, picture)
            count += 1


def unpack(shards: Iterable[Path], manifest: Manifest, folder: Path) -> None:
    """Write `folder` whole or not at all: the pictures that `manifest` names, and dataset.json.

    Raises: `InputError` if a shard is damaged, holds anything else (a link, holes, another name), or
    one is missing.
    """
    wanted = {clip.name for clip in manifest.clips}  # names that Manifest.read has checked
    with atomic_path(folder, folder=True) as temporary:
        for shard in shards:
            try:
                with tarfile.open(shard, "r:") as archive:
                    for entry in archive:
                        if not entry.isreg() or entry.issparse() or entry.name not in wanted:
                            raise InputError(f"{shard}: {entry.name!r:.80} is no picture of {FILE_NAME}")
                        wanted.remove(entry.name)
                        path = temporary / entry.name
                        path.parent.mkdir(parents=True, exist_ok=True)
                        with open(path, "xb") as picture:
                            shutil.copyfileobj(archive.extractfile(entry), picture)
            except (tarfile.TarError, EOFError) as error:
                raise InputError(f"{shard}: not a readable tar file ({error})") from None
        if wanted:
            raise InputError(f"{FILE_NAME} names {min(wanted)}, which no tar file holds")
        for inner in {path.parent for path in temporary.rglob("*.png")}:
            settle(inner)
        manifest.write(temporary)
