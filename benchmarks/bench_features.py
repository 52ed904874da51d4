"""Speed and memory of the feature pass of FVD:  python -m benchmarks.bench_features [flags]

The plain way reads one clip after another with PIL, keeps pixels channels first and shows the network one
clip at a time; ours is what evaluations.fvd does. Both use the same I3D with random weights on the same grid
pictures. Loading of the weights, once per evaluation, is timed by itself. The cases named memory show peak
memory against the number of clips, without a network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from benchmarks.harness import BenchmarkConfig, main, timed
from common.distributed import Runtime
from dataset.manifest import Clip, Manifest
from evaluations.clips import ClipSet
from evaluations.extractor import VideoGPTI3D
from evaluations.features import Extraction
from evaluations.i3d import I3D, SIDE
from evaluations.temporal import FrameDifferences

GRID, SIZE = 4, 128  # frames per side, pixels per frame: the released layout


@dataclass(frozen=True, kw_only=True)
class FeaturesBenchmark(BenchmarkConfig):
    """Measure the feature pass."""

    clips: int = 64
    """Clips of a timed pass."""
    memory_clips: tuple[int, ...] = (200, 2000)
    """Numbers of clips whose peak memory is compared."""
    batch_size: int = 1
    """Clips at once, ours; the default of evaluations.fvd on a CPU."""

    def cases(self) -> list[Sequence[str]]:
        return [["plain", "ours"], [f"memory:{count}" for count in self.memory_clips]]

    def prepare(self, folder: Path) -> None:
        torch.save(I3D().state_dict(), folder / "i3d.pt")
        for count in {self.clips, *self.memory_clips}:
            write_clips(folder / str(count), count)

    def measure(self, case: str) -> dict[str, float]:
        """Times per clip, processor seconds to load the weights, memory, mean feature."""
        kind, _, count = case.partition(":")
        runtime, weights, started = Runtime(), self.folder / "i3d.pt", process_time()
        device = runtime.device(self.device)
        clips, passes = ClipSet.read(self.folder / (count or str(self.clips)), "clips"), []
        with TemporaryDirectory() as cache:
            if kind == "plain":
                network = I3D()
                network.load_state_dict(torch.load(weights, weights_only=True))
                network = network.to(device).eval()
                work = partial(plain_pass, clips, network, device)
            else:
                extractor = FrameDifferences() if kind == "memory" else VideoGPTI3D(weights, True, device)
                extraction = Extraction(extractor, device, Path(cache), self.batch_size)
                work = partial(extraction.run, clips, runtime, kind)
            loading = process_time() - started
            found = timed(lambda: passes.append(work()), device)
            features_nD = passes[0] if kind == "plain" else passes[0].vectors()
        per_clip = {name: found[name] / len(clips.entries) for name in ("s", "processor_s")}
        return {**found, **per_clip, "loading_s": loading, "mean_feature": float(features_nD.mean())}


def write_clips(folder: Path, count: int) -> None:
    """A prepared data set of `count` grid pictures, 16 of them different: smooth noise."""
    random = np.random.RandomState(0)
    (folder / "a").mkdir(parents=True)
    side, names = GRID * SIZE, [f"a/{index:06d}.png" for index in range(count)]
    for index, name in enumerate(names):
        if index < 16:
            coarse = random.randint(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(folder / name)
        else:
            (folder / name).hardlink_to(folder / names[index % 16])
    clips = tuple(Clip(name, 0, name, "train", 0.0) for name in names)
    Manifest(("a",), GRID, GRID, SIZE, 25.0, 1, {"a": "recording"}, clips).write(folder)


@torch.inference_mode()
def plain_pass(clips: ClipSet, network: nn.Module, device: torch.device) -> np.ndarray:
    """Features (n, 400), one clip after another, channels first."""
    features = []
    for entry in clips.entries:
        picture_HWC = np.array(Image.open(clips.folder / entry.name).convert("RGB"))
        frames = [picture_HWC[r * SIZE : (r + 1) * SIZE, c * SIZE : (c + 1) * SIZE]
                  for r in range(GRID) for c in range(GRID)]
        pixels_T3HW = torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        pixels_T3HW = F.interpolate(pixels_T3HW, (SIDE, SIDE), mode="bilinear").contiguous()
        features.append(network(pixels_T3HW[None]).cpu())
    return torch.cat(features).numpy()


if __name__ == "__main__":
    main(FeaturesBenchmark)
