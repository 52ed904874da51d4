"""The published weight files of the metrics' networks: found and checked, with no fallback."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import file_hash
from common.hub import is_hub, local_file
from common.registry import MODELS_FOLDER


@dataclass(frozen=True)
class WeightFile:
    """A published file of network weights."""

    name: str
    flag: str
    """The flag that gives its path."""
    url: str
    sha256: str = ""
    """Its hash, or the beginning of it; empty if no trustworthy hash is known."""

    def find(self, path: Path | None, unverified: bool) -> tuple[Path, dict[str, Any]]:
        """The file at `path`, by default in pretrained_models/, and its facts: name, sha256, verified.

        Raises: `InputError` if it is missing, or if its hash differs and `unverified` is false or it is on
        the Hub.
        """
        path = Path(path or MODELS_FOLDER / self.name)
        strict = is_hub(path) or not unverified  # a TorchScript file is code
        path = local_file(path)
        if not path.is_file():
            raise InputError(f"{self.flag}: {path} is missing; download it with "
                             f"curl -L --create-dirs -o '{path}' '{self.url}'")
        digest = file_hash(path)
        verified = bool(self.sha256) and digest.startswith(self.sha256)
        if self.sha256 and not verified and strict:
            raise InputError(f"{self.flag} {path}: its sha256 {digest[:16]}... is not that of {self.name}, "
                             f"{self.sha256[:16]}...; --unverified-weights accepts a file of this machine")
        return path, {"file": path.name, "sha256": digest, "verified": verified}


STYLEGANV_I3D = WeightFile(
    "i3d_torchscript.pt", "--i3d-weights",
    "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
    "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2")
VIDEOGPT_I3D = WeightFile(
    "i3d_pretrained_400.pt", "--i3d-weights",
    "https://huggingface.co/spaces/LanguageBind/Open-Sora-Plan-v1.0.0/resolve/"
    "810fa8c4bdb3a4c8eec9bd57375c29bde6fb46de/opensora/eval/fvd/videogpt/i3d_pretrained_400.pt")
INCEPTION = WeightFile(
    "pt_inception-2015-12-05-6726825d.pth", "--inception-weights",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2")
VIDEOMAE = WeightFile(
    "vit_g_hybrid_pt_1200e_ssv2_ft.pth", "--videomae-weights",
    "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/internvideo/videomaev2/"
    "vit_g_hybrid_pt_1200e_ssv2_ft.pth")
ALEXNET = WeightFile(
    "alexnet-owt-7be5be79.pth", "--lpips-weights",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79")
