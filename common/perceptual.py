"""How different two pictures look to a network: LPIPS (Zhang et al. 2018), and the same without its weights.

Shapes: B pictures of H x W pixels in [-1, 1].
"""

import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from common.hub import local_file
from common.networks import VGG16, Lite0
from common.weights import load_checkpoint, load_strict

NETWORKS = {"alex": "AlexNet", "vgg": "VGG-16"}


class LPIPSDistance(nn.Module):
    """Mean LPIPS distance of pictures (B, 3, H, W); gradients flow to both.

    The weights of its layers come with the lpips package. Those of the network are torchvision's and have to
    be given as a file.
    """

    def __init__(self, network: Literal["alex", "vgg"], weights: Path, flag: str):
        """Raises: `InputError` naming the flag and the file if that is not torchvision's of this network."""
        super().__init__()
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips uses arguments of torchvision that are deprecated
            self.distance = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        layers = {f"features.{key.split('.', 1)[1]}": key for key in self.distance.net.state_dict()}
        state = {layers[key]: value for key, value in load_checkpoint(local_file(weights)).items()
                 if key in layers}
        try:
            load_strict(self.distance.net, state, str(weights))
        except InputError:
            raise InputError(f"{flag} {weights}: holds no {NETWORKS[network]} of torchvision") from None
        self.requires_grad_(False).eval()

    def forward(self, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
        with torch.autocast(a_B3HW.device.type, enabled=False):
            return self.distance(a_B3HW.float(), b_B3HW.float()).mean()


class FeatureDistance(nn.Module):
    """Squared difference of unit feature vectors, mean over pixels and stages of a network, from 0 to 4.

    That is LPIPS (Zhang et al. 2018, eq. 1) with all weights one. Gradients flow to both pictures.
    """

    def __init__(self, network: Lite0 | VGG16):
        super().__init__()
        self.network = network

    def forward(self, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
        with torch.autocast(a_B3HW.device.type, enabled=False):
            pairs = zip(*(self.network.stages(side.float()) for side in (a_B3HW, b_B3HW)), strict=True)
            distances = [(F.normalize(a, eps=1e-6) - F.normalize(b, eps=1e-6)).square().sum(1).mean()
                         for a, b in pairs]
            return torch.stack(distances).mean()


def perceptual_loss(kind: Literal["none", "lite0", "vgg", "lpips"], vgg_weights: Path | None,
                    flag: str) -> nn.Module | None:
    """The distance of this name, `flag` that of `vgg_weights`.

    Raises: `InputError` if a file is needed and not given, or not what it should be.
    """
    if kind == "none":
        return None
    if kind == "lite0":
        return FeatureDistance(Lite0())
    if vgg_weights is None:
        raise InputError(f"--perceptual {kind}: needs {flag}")
    if kind == "lpips":
        return LPIPSDistance("vgg", vgg_weights, flag)
    return FeatureDistance(VGG16(vgg_weights, flag))
