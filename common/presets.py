"""The named experiments, from which the stages take their defaults.

The HyperKvasir and SurgVisDom releases fix class names, grid and frame size but no frame rate. "43 long
videos, 100 clips each" of 16 frames fits consecutive frames of recordings of at least 1,600 frames, so these
presets take every frame; 25 fps is nominal, the most common rate of HyperKvasir.
"""

from dataclasses import dataclass
from typing import Any

from common.errors import InputError


@dataclass(frozen=True)
class Preset:
    """The settings of an experiment; explicit flags override them."""

    class_names: tuple[str, ...]
    """Alphabetical: the position is the class id in released checkpoints."""
    rows: int = 4
    cols: int = 4
    frame_size: int = 128
    """Pixels of a frame's side."""
    fps: float = 25.0
    """Frames per second of the clips; recordings are resampled to it if `frame_stride` is None."""
    frame_stride: int | None = 1
    """Every n-th frame of a recording is taken, whatever its rate."""
    clip_stride: int = 16
    """Sampled frames from the start of one clip to the start of the next."""
    clips_per_recording: int = 100
    within: str | None = None
    """A folder above the class folders, by which the data set's archive tells them from others so named."""

    def facts(self) -> dict[str, Any]:
        """The facts that a data set of this experiment passes on to later stages, as JSON values."""
        return {"class_names": list(self.class_names), "rows": self.rows, "cols": self.cols,
                "frame_size": self.frame_size, "fps": self.fps, "frame_stride": self.frame_stride}


HYPERKVASIR = ("barretts", "cancer", "esophagitis", "gastric-antral-vascular-ectasia",
               "gastric-banding-perforated", "polyps", "ulcer", "varices")
PHANTOM = ("bleeding", "clear_lumen", "diverticulum", "instrument", "pedunculated_polyp", "sessile_polyp",
           "ulcer", "varices")
SURGVISDOM = ("Dissection", "Knot_Tying", "Needle_Driving")

PRESETS = {
    "hyperkvasir16": Preset(HYPERKVASIR, within="upper-gi-tract"),
    "hyperkvasir64": Preset(HYPERKVASIR, rows=8, cols=8, within="upper-gi-tract"),
    "phantom": Preset(PHANTOM, fps=12.0, frame_stride=None),
    "surgvisdom16": Preset(SURGVISDOM),
}


def find_preset(name: str) -> Preset:
    """The experiment called `name`; `InputError` lists the names there are."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: unknown, choose from {', '.join(PRESETS)}")
    return PRESETS[name]
