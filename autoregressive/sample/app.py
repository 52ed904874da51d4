"""A page to play with: choose a class, see a clip, or an endless one. Needs Gradio: scripts/app.sh.

The page needs no internet: no analytics, no fonts or scripts from elsewhere. Clips travel in its messages, so
the server keeps no files but uploads, for ten minutes.
"""

import base64
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from autoregressive.sample.sampler import Models
from autoregressive.sample.session import Link, Session, Wish
from common.command import require_at_least, run_command
from common.distributed import Runtime
from common.errors import InputError
from common.files import write_json
from common.names import as_name, told_apart
from dataset.video import write_frames, write_mp4

if TYPE_CHECKING:
    import gradio as gr

Item = TypeVar("Item")
HERE = Path(__file__).parent
WAITING = 16  # visitors in the queue at most
KEPT = 600  # seconds that an upload is kept
PAUSE = 0.25  # seconds between messages to a page
SEED = "The same seed gives the same clip."
GUIDANCE = "Higher: more typical of the class, less varied."
TEMPERATURE = "Higher: more varied, less sure."
NO_CLASS = ("none", "")


@dataclass(frozen=True, kw_only=True)
class AppConfig:
    """Serve a page that makes clips."""

    gpt_ckpt: tuple[Path, ...] = ()
    """Checkpoints or run folders to choose from."""
    model: tuple[str, ...] = ()
    """Names of models in pretrained_models/registry.json to choose from (default, without --gpt-ckpt: the
    first downloaded model, else the bundled phantom)."""
    preset: str | None = None
    """Data set of checkpoints that hold weights only, as in sample_c2i."""
    vq_ckpt: Path | None = None
    """Tokenizer of all models (default: the one named by each checkpoint)."""
    host: str = "127.0.0.1"
    """Address to listen at. 0.0.0.0: also for other machines; whoever reaches it may use it."""
    port: int | None = None
    """Port to listen at (default: the first free one from 7860)."""
    upload_mb: int = 50
    """Largest upload in MB."""
    device: str = "auto"
    """auto, cuda, xpu, mps or cpu."""

    def __post_init__(self) -> None:
        require_at_least(self, upload_mb=1)


def load_sessions(config: AppConfig, runtime: Runtime) -> dict[str, Session]:
    """The models to choose from, under names that show no folder; equal names are numbered."""
    asked = [(path, None) for path in config.gpt_ckpt] + [(None, name) for name in config.model]
    found: list[tuple[str, Models]] = []
    for path, name in asked or [(None, None)]:
        models = Models.load(path, name, config.preset, config.vq_ckpt, runtime)
        found.append((name or models.entry.get("name") or Path(path).resolve().name, models))
    titles = told_apart(title for title, _ in found)
    return {title: Session(models, runtime.device(config.device))
            for title, (_, models) in zip(titles, found, strict=True)}


class Stopped(Exception):
    """Nobody waits for the result any more."""


def streamed(work: Callable[[Callable[[Item], None]], Item]) -> Iterator[Item]:
    """What `work(report)` reports from its own thread, and its result.

    Once this is closed, the next report ends `work`; nobody waits for that.
    """
    reports: SimpleQueue[Item | None] = SimpleQueue()
    stopped = Event()

    def report(item: Item) -> None:
        if stopped.is_set():
            raise Stopped
        reports.put(item)

    thread = ThreadPoolExecutor(1)
    result = thread.submit(work, report)
    result.add_done_callback(lambda _: reports.put(None))
    try:
        while (item := reports.get()) is not None:
            yield item
        yield result.result()
    finally:
        stopped.set()
        thread.shutdown(wait=False)


def data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def moving_picture(frames_THWC: np.ndarray, fps: float) -> str:
    """Frames as the address of a WebP that loops."""
    first, *rest = map(Image.fromarray, frames_THWC)
    file = BytesIO()
    first.save(file, "webp", save_all=True, append_images=rest, loop=0, duration=round(1000 / fps))
    return data_address("image/webp", file.getvalue())


def clip_message(session: Session, model: str, wish: Wish, link: Link) -> dict[str, Any]:
    """What the page needs to play a clip, and to save it as mp4, or as a zip of frames with clip.json."""
    fps = session.dataset["fps"]
    mixed = f" with {wish.blend:.0%} of {wish.blend_with}" if wish.blend_with and wish.blend else ""
    part = f", part {link.number + 1}" if link.number else ""
    caption = (f"{wish.class_name}{mixed}, seed {wish.seed}{part}; "
               f"guidance {wish.cfg_scale:g}, temperature {wish.temperature:g}; model {model}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mp4(folder / "clip.mp4", link.frames_THWC, fps)
        write_frames(folder / "all" / "frames", link.frames_THWC)
        write_json(folder / "all" / "clip.json", session.record(wish, link))
        archive = shutil.make_archive(str(folder / "clip"), "zip", folder / "all")
        files = {"video": data_address("video/mp4", (folder / "clip.mp4").read_bytes()),
                 "frames": data_address("application/zip", Path(archive).read_bytes())}
    return {"state": "clip", **files, "name": as_name(f"{model}_{wish.class_name}_{wish.seed}_{link.number}"),
            "caption": caption, "notice": session.notice(link), "link": link.number, "fps": fps,
            "count": len(link.frames_THWC)}


def make(sessions: dict[str, Session], chain: tuple[str, Link] | None, start: tuple[str, Tensor] | None,
         model: str, class_name: str, seed: int | None, *settings: Any) -> Iterator[tuple]:
    """Messages for the page while a clip is made, each with the last clip of the chain and its model's name.

    The clip follows the one in `chain`, else it begins with the tokens in `start`, if any. Both count only if
    they are of the model chosen now.
    """
    session, wish = sessions[model], Wish(class_name, seed or 0, *settings)
    before = chain[1] if chain and chain[0] == model else None
    start_N = start[1] if start and start[0] == model else None
    message = {"state": "making", "link": before.number + 1 if before else 0}
    shown, sent = 0, time.monotonic()
    try:
        for item in streamed(lambda report: session.link(wish, before, start_N, lambda *done: report(done))):
            if isinstance(item, Link):
                yield clip_message(session, model, wish, item), (model, item)
            elif time.monotonic() > sent + PAUSE:
                message["part"], frames_THWC = item
                if frames_THWC is not None and len(frames_THWC) > shown:
                    shown = len(frames_THWC)
                    message["preview"] = moving_picture(frames_THWC, session.dataset["fps"])
                yield dict(message), chain  # Gradio sends what differs from the last one
                sent = time.monotonic()
    except Exception as error:
        yield {"state": "failed"}, chain
        if not isinstance(error, InputError):
            raise
        import gradio as gr

        raise gr.Error(str(error), print_exception=False) from None


def take(sessions: dict[str, Session], model: str, upload: str | None
         ) -> tuple[tuple[str, Tensor] | None, str]:
    """What clips begin with after an upload, and what to say of it."""
    if upload is None:
        return None, ""
    try:
        return (model, sessions[model].start(Path(upload))), "Clips begin with the end of this file."
    except InputError as error:
        return None, f"**{error}**"


def command(state: str, endless: bool) -> tuple[dict[str, Any], None]:
    """What the player does next, and no chain; on "begin" it orders a clip. Equal messages would be lost."""
    return {"state": state, "endless": endless, "id": time.time_ns()}, None


def choose(sessions: dict[str, Session], model: str) -> tuple:
    """Classes and settings of another model, and no upload."""
    import gradio as gr

    best, names = sessions[model].models.best_settings, sessions[model].dataset["class_names"]
    return (gr.update(choices=names, value=names[0]), best["cfg_scale"], best["temperature"],
            gr.update(choices=[NO_CLASS, *names], value=""), None, None, "")


def build(sessions: dict[str, Session]) -> "gr.Blocks":
    """The layout of the page, and what its buttons do."""
    import gradio as gr

    first, session = next(iter(sessions.items()))
    best, names = session.models.best_settings, session.dataset["class_names"]
    html, css, js = ((HERE / f"player.{part}").read_text(encoding="utf-8") for part in ("html", "css", "js"))
    with gr.Blocks(analytics_enabled=False, title="EndoGen", delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown("# EndoGen\nA model makes short endoscopic videos of the class that you choose.")
        chain, start = gr.State(), gr.State()
        with gr.Row():
            with gr.Column(min_width=300):
                model = gr.Dropdown(list(sessions), value=first, label="Model")
                name = gr.Dropdown(names, value=names[0], label="Class")
                seed = gr.Number(0, label="Seed", info=SEED, precision=0, minimum=0)
                with gr.Row():
                    once = gr.Button("Make a clip", variant="primary", min_width=120)
                    other = gr.Button("Next seed", min_width=120)
                    ever = gr.Button("Endless", min_width=120)
                    stop = gr.Button("Stop", variant="stop", min_width=120)
                with gr.Accordion("More settings", open=False):
                    guidance = gr.Slider(1, 10, best["cfg_scale"], step=0.5, label="Guidance", info=GUIDANCE)
                    temperature = gr.Slider(0, 1.5, best["temperature"], step=0.05, label="Temperature",
                                            info=TEMPERATURE)
                    blend_with = gr.Dropdown([NO_CLASS, *names], value="", label="Blend with another class")
                    blend = gr.Slider(0, 1, 0.5, step=0.05, label="Share of the other class")
                    upload = gr.File(label="Continue your own picture or short video", height=150)
                    note = gr.Markdown(elem_id="note")
            with gr.Column(min_width=300):
                stage = gr.HTML({}, html_template=html, css_template=css, js_on_load=js, elem_id="player")
        inputs = [chain, start, model, name, seed, guidance, temperature, blend_with, blend]
        one = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        now = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        model.input(partial(choose, sessions), model,
                    [name, guidance, temperature, blend_with, upload, start, note], **now)
        gr.on([upload.upload, upload.clear], partial(take, sessions), [model, upload], [start, note], **one)
        clip = stage.submit(partial(make, sessions), inputs, [stage, chain], show_progress="hidden",
                            trigger_mode="multiple", **one)  # ordered while the one before still ends
        next_seed = other.click(lambda seed: (seed or 0) + 1, seed, seed, **now)
        for press, *message in ((once.click, "begin", False), (next_seed.then, "begin", False),
                                (ever.click, "begin", True), (stop.click, "stopped", False)):
            press(partial(command, *message), None, [stage, chain], cancels=[clip], **now)
    return page.queue(max_size=WAITING)


def run(config: AppConfig, runtime: Runtime) -> None:
    """Serve the page until it is interrupted."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio as gr
    except ModuleNotFoundError:
        raise InputError("Gradio is not installed: start the page with bash scripts/app.sh") from None
    sessions = load_sessions(config, runtime)
    for title, session in sessions.items():
        print(f"model {title}: {session.notice()}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed then too
    with tempfile.TemporaryDirectory(prefix="endogen-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = build(sessions)
        _, address, _ = page.launch(
            server_name=config.host, server_port=config.port, max_file_size=f"{config.upload_mb}mb",
            share=False, ssr_mode=False, quiet=True, prevent_thread_lock=True, footer_links=[],
            state_session_capacity=100,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]))
        print(f"open {address} in a browser; Ctrl-C ends", flush=True)
        page.block_thread()


if __name__ == "__main__":
    run_command(AppConfig, run)
