"""The whole chain under an unusual locale, home folder and working directory, with unusual names of files and
hidden files everywhere, and every folder moved before the next stage reads it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked import ready_python
from synthetic import write_class_videos

from common.files import read_json

ROOT = Path(__file__).parent.parent
CLASSES = ["-a b", "Übel '日本\" $HOME `x` %d"]
SHAPE = ["--ch", 32, "--ch-mult", 1, 1, 1, "--z-channels", 32, "--num-res-blocks", 1, "--codebook-size", 64]
STEPS = ["--global-batch-size", 2, "--log-every", 1, "--eval-every", 0]
HIDDEN = (".DS_Store", "._0.mp4", "._0.png", "._9.pt", "._9.npy", "._0.json")


class Place:
    """A working folder of an awkward name, in which scripts run by a relative path through a link."""

    def __init__(self, folder: Path):
        self.folder = folder / "Wörk 'a\" $HOME `x`; *"
        self.folder.mkdir()
        (self.folder / "Projekt ü").symlink_to(ROOT)
        (self.folder / "random.py").write_text("raise SystemExit('of the working folder')\n")
        usual = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "XDG_"))}
        self.env = {**usual, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
                    "HOME": "/proc/nobody", "PYTHONIOENCODING": "ascii", "CDPATH": ".",
                    "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run(self, script: str, *flags: object, python: str = "") -> str:
        """The output of a script that ends well; `python` is the folder of another environment."""
        env = {**self.env, "ENDOGEN_VENV": python or str(self.ready)}
        done = subprocess.run(["bash", f"Projekt ü/scripts/{script}.sh", *map(str, flags)], cwd=self.folder,
                              env=env, capture_output=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="backslashreplace")
        assert b"warning" not in done.stderr and b"Matplotlib" not in done.stderr
        text = done.stdout.decode("ascii")
        assert script == "export" or re.search(r"\Anext: bash scripts/|open ", text.splitlines()[-1])
        return text

    def move(self, old: str, new: str) -> None:
        """Rename a folder, after a file manager has looked at all that is in it."""
        below = (path for path in (self.folder / old).rglob("*") if path.is_dir())
        for folder in [self.folder / old, *below]:
            for name in HIDDEN:
                (folder / name).write_bytes(b"\0junk")
        (self.folder / new).parent.mkdir(exist_ok=True)
        shutil.move(self.folder / old, self.folder / new)


@pytest.fixture
def place(tmp_path):
    """Its stages run in Python's UTF-8 mode, in which they start again by themselves: `understand_names`."""
    place = Place(tmp_path)
    with ready_python({**place.env, "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)}) as place.ready:
        yield place


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_chain_goes_on_wherever_and_under_whatever_names_things_lie(place):
    at = place.folder
    videos = write_class_videos(at / "-vidéos", CLASSES, recordings=2, frames=8, size=32)
    for video, name in zip(videos, ("-x.mp4", "ä 日 1:2.mp4", "q'\"$(x)%d.mp4", "--flip.mp4"), strict=True):
        video.rename(video.with_name(name))
    place.move("-vidéos", "-вид")
    place.run("prepare", "--video-path", "-вид", "--data-path", "-grids", "--rows", 2, "--cols", 2,
              "--frame-size", 16, "--workers", 1, python=sys.prefix)
    manifest = read_json(at / "-grids" / "dataset.json")
    assert manifest["class_names"] == CLASSES and len(manifest["clips"]) == 8

    place.move("-grids", "-gitter ü")
    train_vq = ["train_vq", *SHAPE, *STEPS, "--sample-every", 0]
    place.run(*train_vq, "--data-path", "-gitter ü", "--results-dir", "-vq", "--max-steps", 2)
    place.move("-gitter ü", "grids: 3")
    place.move("-vq", "läufe/vq: 1")
    continued = place.run(*train_vq, "--data-path", "grids: 3", "--results-dir", "läufe/vq: 1",
                          "--max-steps", 3)
    assert "continuing at step 2 of 3" in continued
    place.run("extract_codes", "--data-path", "grids: 3", "--code-path", "-codes", "--vq-ckpt", "läufe/vq: 1")

    place.move("-codes", "läufe/'codes'")
    place.move("läufe/vq: 1", "läufe/%d")  # found beside the codes
    train_c2i = ["train_c2i", "--gpt-model", "GPT-XS", *STEPS]
    place.run(*train_c2i, "--code-path", "läufe/'codes'", "--results-dir", "-gpt", "--max-steps", 2)
    place.move("läufe/'codes'", "läufe/codes")
    place.move("läufe/%d", "läufe/vq")
    place.move("-gpt", "läufe/-gpt ж")
    continued = place.run(*train_c2i, "--code-path", "läufe/codes", "--results-dir", "läufe/-gpt ж",
                          "--max-steps", 3)
    assert "continuing at step 2 of 3" in continued

    place.move("läufe", "-umgezogen")  # the tokenizer is found beside the GPT
    sample = ["sample_c2i", "--gpt-ckpt", "-umgezogen/-gpt ж", "--save-folder"]
    place.run(*sample, "http:s", "--classes", CLASSES[0])
    first = (at / "http:s" / "grids" / CLASSES[0] / "000000.png").stat().st_mtime_ns
    place.move("http:s", "-samples ß")
    place.run(*sample, "-samples ß")
    samples = read_json(at / "-samples ß" / "samples.json")
    assert [clip["class"] for clip in samples["clips"]] == CLASSES
    assert (at / "-samples ß" / "grids" / CLASSES[0] / "000000.png").stat().st_mtime_ns == first

    place.run("export", "--ckpt", "-umgezogen/-gpt ж", "--output", "-ñ.safetensors")
    place.run("reconstruct", "--data-path", "grids: 3", "--vq-ckpt", "-umgezogen/vq", "--save-path", "-ø")
    place.move("-samples ß", "-s")
    compared = place.run("evaluate", "--data-path", "grids: 3", "--sample-path", "-s",
                         "--metrics", "temporal", "--reconstruction-path", "-ø")
    assert "motion_ratio" in compared and not list(at.glob("-s/evaluation/.*"))
