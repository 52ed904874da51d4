"""What turns clips into features. Metrics know extractors by this one protocol only.

Shapes: B clips, T frames, H x W pixels, R feature vectors of a clip (one, or one per frame), D dimensions.
"""

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from common.layouts import model_state
from common.weights import load_checkpoint, load_strict
from evaluations.i3d import I3D, MIN_FRAMES, SIDE
from evaluations.weight_files import INCEPTION, STYLEGANV_I3D, VIDEOGPT_I3D

POOLED = 2048  # of Inception's features; the logits follow them


class Extractor(Protocol):
    """A frozen network, or any other function of a clip's pixels."""

    name: str
    weights: dict[str, Any]
    """Facts of the weight file: file, sha256, verified. Empty if there is none."""
    min_frames: int
    """The fewest frames of a clip that it can work on."""
    preprocessing: str
    """What `preprocess` does, in words; a change of them makes cached features stale."""

    def preprocess(self, frames_BT3HW: Tensor) -> Tensor:
        """uint8 RGB frames, on the device of the network -> what `features` takes."""

    def features(self, pixels: Tensor) -> Tensor:
        """-> float32 (B, R, D). A clip's features do not depend on the rest of the batch."""


class StyleGANVI3D:
    """The TorchScript I3D of StyleGAN-V, on which most published FVD numbers stand."""

    name, min_frames = "i3d-styleganv", MIN_FRAMES
    preprocessing = "uint8 range; rescaled and resized to 224 px by the TorchScript file"

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = STYLEGANV_I3D.find(path, unverified)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what the file is
                self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise InputError(f"--i3d-weights {path}: no TorchScript file ({str(error)[:80]})") from None

    def preprocess(self, frames_BT3HW: Tensor) -> Tensor:
        """-> float32 (B, 3, T, H, W), 0 to 255, contiguous: nothing else is known to suit the file."""
        return frames_BT3HW.transpose(1, 2).float().contiguous()

    def features(self, pixels: Tensor) -> Tensor:
        """-> (B, 1, 400): the values before the softmax."""
        return self.network(x=pixels, rescale=True, resize=True, return_features=True)[:, None]


class VideoGPTI3D:
    """The I3D of VideoGPT and CD-FVD's comparison, as a network of this project."""

    name, min_frames = "i3d-videogpt", MIN_FRAMES
    preprocessing = "short side bilinear to 224 px, middle square, [-1, 1]"

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = VIDEOGPT_I3D.find(path, unverified)
        network = I3D()
        counters = [key for key in network.state_dict() if key.endswith("num_batches_tracked")]
        load_strict(network, model_state(load_checkpoint(path)), f"--i3d-weights {path}", reinit=counters)
        # channels last is 1.6 times as fast on a CPU, and not measured on a GPU
        layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
        self.network = network.to(device, memory_format=layout).eval()

    def preprocess(self, frames_BT3HW: Tensor) -> Tensor:
        """-> float32 (B, T, 3, 224, 224) in [-1, 1]."""
        return square_pixels(frames_BT3HW, SIDE)

    def features(self, pixels: Tensor) -> Tensor:
        """-> (B, 1, 400) logits."""
        return self.network(pixels)[:, None]


def square_pixels(frames_BT3HW: Tensor, side: int) -> Tensor:
    """uint8 frames -> (B, T, 3, side, side) in [-1, 1]: short side resized, middle square cut out."""
    height, width = frames_BT3HW.shape[3:]
    pixels_N3HW = frames_BT3HW.flatten(0, 1).float().div_(127.5).sub_(1)
    scale = side / min(height, width)
    size = [max(round(height * scale), side), max(round(width * scale), side)]
    pixels_N3HW = F.interpolate(pixels_N3HW, size, mode="bilinear", align_corners=False)
    top, left = ((n - side) // 2 for n in size)
    square_N3SS = pixels_N3HW[:, :, top : top + side, left : left + side]
    return square_N3SS.unflatten(0, frames_BT3HW.shape[:2])


class Inception:
    """torch-fidelity's InceptionV3, frame by frame: 2048 pooled features and 1008 logits without bias."""

    name, min_frames = "inception-v3", 1
    preprocessing = "torch-fidelity: TensorFlow's bilinear to 299 px, (x - 128) / 128"

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path, self.weights = INCEPTION.find(path, unverified)
        load_checkpoint(path)  # torch-fidelity would run code from the file
        try:
            network: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--inception-weights {path}: no Inception weights ({reason})") from None
        self.network = network.to(device, memory_format=torch.channels_last)

    def preprocess(self, frames_BT3HW: Tensor) -> Tensor:
        """As they are: the network resizes by itself."""
        return frames_BT3HW

    def features(self, pixels: Tensor) -> Tensor:
        """-> (B, T, 2048 + 1008)."""
        flat_N3HW = pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return torch.cat(self.network(flat_N3HW), 1).unflatten(0, pixels.shape[:2])
