"""Extractors: networks that turn clips into features, behind one protocol.

Shapes: B clips, T frames, H x W pixels, R feature vectors of a clip (one, or one per frame), D dimensions.
"""

import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from common.files import file_hash
from common.layouts import model_state
from common.networks import Lite0
from common.weights import load_checkpoint, load_strict
from evaluations import i3d, videomae
from evaluations.weight_files import INCEPTION, STYLEGANV_I3D, VIDEOGPT_I3D, VIDEOMAE

POOLED = 2048  # of Inception's features; the logits follow them
LITE0_SIDE = 224  # pixels
LITE0_FRAMES = 4  # at once on a CPU: what 32 leave in its caches is half as fast
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Extractor(Protocol):
    """A frozen network, or any other function of a clip's pixels."""

    name: str
    weights: dict[str, Any]
    """Facts of the weight file: file, sha256, verified. Empty if there is none."""
    min_frames: int
    """Fewest frames of a clip."""
    preprocessing: str
    """What happens to the frames, in words; cached features of another wording are not used."""

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """uint8 RGB frames on the network's device -> float32 (B, R, D), each clip independent of the others.
        """


class StyleGANVI3D:
    """The TorchScript I3D of StyleGAN-V, used for most published FVD numbers."""

    name, min_frames = "i3d-styleganv", i3d.MIN_FRAMES
    preprocessing = "uint8 range; rescaled and resized to 224 px by the TorchScript file"

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = STYLEGANV_I3D.find(path, unverified)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
                self.network = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise InputError(f"--i3d-weights {path}: not a TorchScript file ({str(error)[:80]})") from None

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, 1, 400): the values before the softmax."""
        pixels_B3THW = frames_BT3HW.transpose(1, 2).float().contiguous()
        return self.network(x=pixels_B3THW, rescale=True, resize=True, return_features=True)[:, None]


class VideoGPTI3D:
    """The I3D of VideoGPT, also a baseline of CD-FVD; the network is `evaluations.i3d`."""

    name, min_frames = "i3d-videogpt", i3d.MIN_FRAMES
    preprocessing = "short side bilinear to 224 px, middle square, [-1, 1]"

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = VIDEOGPT_I3D.find(path, unverified)
        network = i3d.I3D()
        counters = [key for key in network.state_dict() if key.endswith("num_batches_tracked")]
        load_strict(network, model_state(load_checkpoint(path)), f"--i3d-weights {path}", reinit=counters)
        # channels last is 1.6 times as fast on a CPU; not measured on a GPU
        layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
        self.network = network.to(device, memory_format=layout).eval()

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, 1, 400) logits."""
        return self.network(square_pixels(frames_BT3HW, i3d.SIDE))[:, None]


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
        load_checkpoint(path)  # refuses files with code in them, which torch-fidelity would run
        try:
            network: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--inception-weights {path}: not Inception weights ({reason})") from None
        self.network = network.to(device, memory_format=torch.channels_last)

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, T, 2048 + 1008); the network resizes the frames itself."""
        flat_N3HW = frames_BT3HW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return torch.cat(self.network(flat_N3HW), 1).unflatten(0, frames_BT3HW.shape[:2])


class Lite0Frames:
    """EfficientNet-Lite0 of ImageNet, frame by frame; its weights come with the requirements."""

    name, min_frames = "lite0", 1
    preprocessing = f"short side bilinear to {LITE0_SIDE} px, middle square; (x - 127) / 128"

    def __init__(self, device: torch.device):
        network = Lite0()
        digest = file_hash(network.path)
        self.weights: dict[str, Any] = {"file": network.path.name, "sha256": digest,
                                        "verified": digest == LITE0_SHA256}
        self.network = network.to(device, memory_format=torch.channels_last)

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, T, 1280)."""
        pixels_N3SS = square_pixels(frames_BT3HW, LITE0_SIDE).flatten(0, 1)
        count = LITE0_FRAMES if pixels_N3SS.device.type == "cpu" else len(pixels_N3SS)
        features_ND = torch.cat([self.network(part.contiguous(memory_format=torch.channels_last))
                                 for part in pixels_N3SS.split(count)])
        return features_ND.unflatten(0, frames_BT3HW.shape[:2])


class VideoMAE:
    """VideoMAE v2 fine-tuned on Something-Something v2: more sensitive to motion than I3D."""

    name, min_frames = "videomae", videomae.FRAMES
    preprocessing = "every frame bilinear to 224 x 224 px, [0, 1]"

    def __init__(self, path: Path | None, unverified: bool, device: torch.device):
        path, self.weights = VIDEOMAE.find(path, unverified)
        state = {key: value for key, value in model_state(load_checkpoint(path)).items()
                 if not key.startswith("head.")}  # the classifier comes after the features
        try:
            network = videomae.network_for(state)
        except (KeyError, ValueError):
            raise InputError(f"--videomae-weights {path}: not weights of a VideoMAE encoder") from None
        load_strict(network, state, f"--videomae-weights {path}")
        self.network = network.to(device).eval()

    def features(self, frames_BT3HW: Tensor) -> Tensor:
        """-> (B, 1, D)."""
        shape, needed, size = frames_BT3HW.shape[:2], videomae.FRAMES, (videomae.SIDE, videomae.SIDE)
        if shape[1] != needed:
            raise InputError(f"--features videomae: needs clips of {needed} frames, these have {shape[1]}; "
                             f"--protocol stylegan-v takes {needed} frames of longer ones")
        pixels_N3HW = frames_BT3HW.flatten(0, 1).float() / 255
        pixels_N3SS = F.interpolate(pixels_N3HW, size, mode="bilinear", align_corners=False)
        return self.network(pixels_N3SS.unflatten(0, shape).transpose(1, 2))[:, None]
