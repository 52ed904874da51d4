"""Speed and memory of the feature pass of FVD:  python -m benchmarks.bench_features [flags]

The plain way reads one clip after another with PIL, keeps pixels channels first and shows the network one
clip at a time; ours is what evaluations.fvd does. Both use the same I3D with random weights on the same grid
pictures, in processes of their own that take turns (A B A B); medians over rounds are printed. Loading of the
weights, once per evaluation, is timed by itself. The second part shows peak memory against the number of
clips. Run it on an otherwise idle machine, after `source scripts/env.sh`, as every entry point does.
"""

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import nn

from common.distributed import Runtime
from dataset.manifest import Clip, Manifest
from evaluations.clips import ClipSet
from evaluations.extractor import Extractor, VideoGPTI3D
from evaluations.features import Extraction
from evaluations.i3d import I3D, SIDE
from evaluations.temporal import FrameDifferences

GRID, SIZE = 4, 128  # frames per side, pixels per frame: the released layout


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure the feature pass."""

    clips: int = 64
    """Clips of a timed pass."""
    memory_clips: tuple[int, ...] = (200, 2000)
    """Numbers of clips whose peak memory is compared."""
    rounds: int = 3
    """Processes per variant."""
    batch_size: int = 1
    """Clips at once, ours; the default of evaluations.fvd on a CPU."""
    threads: int = 2
    """Threads on the CPU."""
    device: str = "auto"
    """auto, cpu or cuda: the plain way runs there too."""
    child: str = ""
    """Set by the program itself: what this process measures."""
    folder: Path = Path()
    """Set by the program itself: where the clips are."""


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


def load_network(kind: str, weights: Path, device: torch.device) -> nn.Module | Extractor:
    """What this process measures with, its weights in memory."""
    if kind == "plain":
        network = I3D()
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network.to(device).eval()
    return FrameDifferences() if kind == "memory" else VideoGPTI3D(weights, True, device)


def measure(config: BenchmarkConfig) -> dict[str, float]:
    """Seconds and processor seconds per clip, seconds to load, peak memory in MB, mean feature."""
    torch.set_num_threads(config.threads)
    runtime, loading = Runtime(), process_time()
    device, clips = runtime.device(config.device), ClipSet.read(config.folder / "clips", "clips")
    network = load_network(config.child, config.folder / "i3d.pt", device)
    start, processor_start = perf_counter(), process_time()
    if config.child == "plain":
        features_nD = plain_pass(clips, network, device)
    else:
        with TemporaryDirectory() as cache:
            extraction = Extraction(network, device, Path(cache), config.batch_size)
            features_nD = extraction.run(clips, runtime, config.child).vectors()
    seconds, processor = perf_counter() - start, process_time() - processor_start
    return {"seconds": seconds / len(clips.entries), "processor_seconds": processor / len(clips.entries),
            "loading": processor_start - loading,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "mean_feature": float(features_nD.mean())}


def run_child(config: BenchmarkConfig, child: str, folder: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    flags = ["--child", child, "--folder", folder, "--threads", config.threads, "--batch-size",
             config.batch_size, "--device", config.device]
    command = [sys.executable, "-m", "benchmarks.bench_features", *map(str, flags)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(config: BenchmarkConfig) -> None:
    """Measure, print a table and a JSON line; as a child only the JSON line."""
    if config.child:
        print(json.dumps(measure(config)))
        return
    results = {"config": {key: str(value) for key, value in asdict(config).items()}}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_clips(folder / "clips", config.clips)
        torch.save(I3D().state_dict(), folder / "i3d.pt")
        rounds = [{name: run_child(config, name, folder) for name in ("plain", "ours")}
                  for _ in range(config.rounds)]
        for name in ("plain", "ours"):
            own = [each[name] for each in rounds]
            results[name] = {key: median(record[key] for record in own) for key in own[0]}
            print("{:6} {seconds:.3f} s a clip, processor {processor_seconds:.3f} s, load {loading:.2f} s, "
                  "peak {peak_mb:.0f} MB, mean {mean_feature:.6g}".format(name, **results[name]), flush=True)
        for key in ("seconds", "processor_seconds"):
            ratio = median(each["plain"][key] / each["ours"][key] for each in rounds)
            results[f"ratio of {key}"] = ratio
            print(f"ratio of {key}: {ratio:.2f} (median of {config.rounds} rounds)", flush=True)
    for count in config.memory_clips:
        with TemporaryDirectory() as temporary:
            write_clips(Path(temporary) / "clips", count)
            results[f"memory {count}"] = run_child(config, "memory", Path(temporary))
        print(f"{count:6} clips, no network: peak {results[f'memory {count}']['peak_mb']:.0f} MB", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
