"""LPIPS (Zhang et al. 2018): how different two pictures look to AlexNet or VGG-16.

Its own weights come with the lpips package; those of the network are torchvision's and have to be given as a
file: nothing is fetched on the way.
"""

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.weights import load_checkpoint, load_strict

NETWORKS = {"alex": "AlexNet", "vgg": "VGG-16"}


class Perceptual(nn.Module):
    """Mean LPIPS distance of pictures (B, 3, H, W) in [-1, 1]; gradients flow to both."""

    def __init__(self, network: Literal["alex", "vgg"], weights: Path, flag: str):
        """Raises: `InputError` naming the flag and the file if that is not torchvision's of this network."""
        super().__init__()
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips uses arguments of torchvision that are deprecated
            self.distance = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        layers = {f"features.{key.split('.', 1)[1]}": key for key in self.distance.net.state_dict()}
        state = {layers[key]: value for key, value in load_checkpoint(weights).items() if key in layers}
        try:
            load_strict(self.distance.net, state, str(weights))
        except InputError:
            raise InputError(f"{flag} {weights}: holds no {NETWORKS[network]} of torchvision") from None
        self.requires_grad_(False).eval()

    def forward(self, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
        with torch.autocast(a_B3HW.device.type, enabled=False):
            return self.distance(a_B3HW.float(), b_B3HW.float()).mean()
