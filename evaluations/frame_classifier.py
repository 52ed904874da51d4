"""A classifier of clips from a network of the package timm, which sees one frame at a time."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError
from common.layouts import model_state
from common.networks import Lite0
from common.weights import load_checkpoint, load_strict

PACKAGED = "tf_efficientnet_lite0"  # its ImageNet weights come with the requirements


class FrameClassifier(nn.Module):
    """A timm network on every frame, the mean over frames, and one linear layer.

    So the logits of a clip are the mean of those of its frames. Shapes: B clips, T frames, D features, K
    classes.
    """

    def __init__(self, name: str, num_classes: int, size: int | None = None):
        """`size`: side of the frames in pixels that the network works on; default its own.

        Raises: `InputError` naming --network or --size.
        """
        import timm

        super().__init__()
        if not timm.is_model(name):
            raise InputError(f"--network {name}: timm {timm.__version__} has none of this name, see "
                             "timm.list_models()")
        self.network = timm.create_model(name, num_classes=0)
        if name == PACKAGED:  # trains twice as fast; some networks of timm cannot have this layout
            self.network.to(memory_format=torch.channels_last)
        known = self.network.pretrained_cfg
        self.size = size or known["input_size"][-1]
        if known.get("fixed_input_size") and self.size != known["input_size"][-1]:
            raise InputError(f"--size {size}: {name} takes frames of {known['input_size'][-1]} px only")
        width = getattr(self.network, "head_hidden_size", self.network.num_features)
        self.head = nn.Linear(width, num_classes)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(known[name])[:, None, None], persistent=False)

    def load(self, weights: str) -> None:
        """Load ImageNet weights, without their classifier: "package", or a file in timm's layout.

        Raises: `InputError` naming --weights.
        """
        if weights == "package":
            if (name := self.network.pretrained_cfg["architecture"]) != PACKAGED:
                raise InputError(f"--weights package: of {PACKAGED} only, not of {name}; give a file or none")
            state = Lite0().network.state_dict()
        else:
            state = model_state(load_checkpoint(Path(weights)))
        own = self.network.pretrained_cfg["classifier"]  # one name, or several
        load_strict(self.network, state, f"--weights {weights}", (own,) if isinstance(own, str) else own)

    def features(self, clips_BT3HW: Tensor) -> Tensor:
        """Clips of any size in [-1, 1] -> (B, D)."""
        pixels_N3HW = clips_BT3HW.flatten(0, 1)
        if pixels_N3HW.shape[-1] != self.size:
            pixels_N3HW = F.interpolate(pixels_N3HW, (self.size, self.size), mode="bilinear", antialias=True)
        features_ND = self.network(((pixels_N3HW + 1) / 2 - self.mean) / self.std)
        return features_ND.unflatten(0, clips_BT3HW.shape[:2]).mean(1)

    def classify(self, features_BD: Tensor) -> Tensor:
        """Features -> logits (B, K)."""
        return self.head(features_BD)

    def forward(self, clips_BT3HW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.classify(self.features(clips_BT3HW))
