"""LPIPS (Zhang et al. 2018): how different two pictures look to a VGG-16.

Its own weights come with the lpips package; those of VGG-16 are torchvision's `vgg16-397923af.pth`, which has
to be given as a file: nothing is fetched on the way.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.weights import load_checkpoint


class Perceptual(nn.Module):
    """Mean LPIPS distance of pictures in [-1, 1]; gradients flow to both."""

    def __init__(self, vgg: Path):
        super().__init__()
        import lpips

        self.distance = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        state = {key.removeprefix("features."): value for key, value in load_checkpoint(vgg).items()
                 if key.startswith("features.")}
        own = self.distance.net.state_dict()  # slice1.0.weight is features.0.weight
        wanted = {key: state.get(key.split(".", 1)[1]) for key in own}
        for key, value in wanted.items():
            if not isinstance(value, torch.Tensor) or value.shape != own[key].shape:
                raise InputError(f"--lpips-vgg {vgg}: holds no VGG-16 of torchvision (vgg16-397923af.pth)")
        self.distance.net.load_state_dict(wanted)
        self.requires_grad_(False).eval()

    def forward(self, a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
        with torch.autocast(a_B3HW.device.type, enabled=False):
            return self.distance(a_B3HW.float(), b_B3HW.float()).mean()
