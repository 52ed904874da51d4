"""The page's session without its page: links, reports, cancelling, uploads, and what a result carries."""

import base64
import dataclasses
import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Event

import av
import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive.sample import app
from autoregressive.sample import session as session_module
from autoregressive.sample.app import AppConfig, Stopped, load_sessions, make, streamed, take
from autoregressive.sample.clip_files import ClipJob
from autoregressive.sample.gallery import RESEARCH, STARTED
from autoregressive.sample.sampler import Models
from autoregressive.sample.session import Session, Wish
from common.errors import InputError
from dataset.masks import shown_frames

RED, BLUE = Wish("red wall", seed=3), Wish("blue wall", seed=3)


def silent(part, frames_THWC):
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def session(gpt_file, runtime):
    return Session(Models.load(gpt_file, None, None, None, runtime), torch.device("cpu"))


@pytest.fixture(scope="module")
def made(session):
    """A clip, and what was reported of it."""
    reports = []
    return session.link(RED, None, None, lambda *done: reports.append(done)), reports


def test_links_are_those_of_a_chain_of_the_sampler(session, made):
    sampler, first = dataclasses.replace(session.sampler, links=2), made[0]
    [pictures] = sampler([ClipJob("red wall", 1, 3)])
    later = []
    second = session.link(RED, first, None, lambda *done: later.append(done))
    assert np.array_equal(first.frames_THWC, shown_frames(pictures[0], session.dataset))
    assert np.array_equal(second.frames_THWC, shown_frames(pictures[1], session.dataset)[2:])
    assert (first.number, second.number) == (0, 1)
    assert later[-1][0] > 0.9 and all(frames is None for _, frames in later)


def test_reports_grow_and_show_the_first_row_of_frames_early(made):
    parts = [part for part, _ in made[1]]
    assert parts == sorted(parts) and 0 < parts[0] < 0.1 and parts[-1] < 1
    frames = next(frames for part, frames in made[1] if part >= 0.5)
    assert frames.shape == (2, 32, 32, 3) and all(frames is None for part, frames in made[1] if part < 0.5)


def test_clips_of_visitors_at_once_are_their_own_and_blends_reach_the_other_class(session, made):
    wishes = RED, BLUE, Wish("red wall", seed=3, blend_with="blue wall", blend=1.0)
    with ThreadPoolExecutor(3) as visitors:
        links = list(visitors.map(lambda wish: session.link(wish, None, None, silent), wishes))
    red, blue, blended = (link.tokens_1N for link in links)
    assert torch.equal(red, made[0].tokens_1N) and torch.equal(blue, blended) and not torch.equal(red, blue)


def test_sampling_ends_soon_after_nobody_waits_and_leaves_nothing_behind(session, made):
    def work(report):
        return session.link(RED, None, None, lambda *done: report(done))

    reports = streamed(work)
    [part, _] = next(reports)
    assert part < 0.1
    reports.close()
    assert session.lock.acquire(timeout=10)
    session.lock.release()
    *_, again = streamed(work)
    assert torch.equal(again.tokens_1N, made[0].tokens_1N)

    def stop(part, frames_THWC):
        raise Stopped

    with pytest.raises(Stopped):
        session.link(RED, None, None, stop)


def test_whoever_stops_does_not_wait_for_the_pass():
    passed = Event()

    def work(report):
        report("begun")
        passed.wait(10)
        report("a pass")

    reports = streamed(work)
    assert next(reports) == "begun"
    started = time.monotonic()
    reports.close()
    assert time.monotonic() < started + 5
    passed.set()


def test_wrong_wishes_are_named(session):
    for wrong in (Wish("green"), Wish("red wall", blend_with="green"), Wish("red wall", temperature=-1)):
        with pytest.raises(InputError):
            session.link(wrong, None, None, silent)


def test_clip_goes_on_from_the_end_of_an_upload(session, grids, tmp_path, monkeypatch):
    start_N = session.start(next(grids.glob("*/*.png")))
    link = session.link(RED, None, start_N, silent)
    given, following = start_N >= 0, session.link(RED, link, None, silent)
    assert given.sum() == 128 and torch.equal(link.tokens_1N[0, given], start_N[given])  # a row of frames
    records = [session.record(RED, link), session.record(RED, following)]
    for record in records:
        assert record["start"] == records[0]["start"] and record["notice"] == STARTED
    Image.new("RGB", (120, 90), (90, 60, 60)).save(tmp_path / "photo.jpg")
    assert (session.start(tmp_path / "photo.jpg") >= 0).sum() == 64  # one frame
    for name, content in (("secret.png", b"nothing"), ("secret.mp4", b"nothing"), ("secret", b"")):
        (tmp_path / name).write_bytes(content)
        taken, said = take({"m": session}, "m", str(tmp_path / name))
        assert taken is None and "no picture or short video" in said and "secret" not in said
    monkeypatch.setattr(session_module, "MOST_BYTES", 1000)
    assert take({"m": session}, "m", str(tmp_path / "photo.jpg"))[0] is None


def test_clips_of_one_row_of_frames_have_no_continuation(session, made, monkeypatch):
    monkeypatch.setitem(session.dataset, "rows", 1)
    with pytest.raises(InputError, match="one row of frames"):
        session.link(RED, made[0], None, silent)


def test_messages_of_a_clip_carry_files_and_notice(session, monkeypatch):
    models = dataclasses.replace(session.models, entry={"notice": "PHANTOM: rendered."})
    phantom, wish = Session(models, session.device), ("red wall", 3, 1.0, 1.0, "", 0.5)
    messages = list(make({"m": phantom}, None, None, "m", *wish))
    clip, (model, link) = messages[-1]
    assert model == "m" and clip["count"] == 4 and clip["name"] == "m_red wall_3_0"
    assert clip["notice"] == f"PHANTOM: rendered. {RESEARCH}" and "seed 3" in clip["caption"]
    video, archive = (BytesIO(base64.b64decode(clip[name].partition(",")[2])) for name in ("video", "frames"))
    with av.open(video) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 4
    with zipfile.ZipFile(archive) as files:
        assert sum(name.endswith(".png") for name in files.namelist()) == 4
        record = json.loads(files.read("clip.json"))
        assert np.array_equal(Image.open(files.open("frames/00001.png")), link.frames_THWC[1])
    assert record["notice"] == clip["notice"] and record["seed"] == 3 and "/" not in str(record["checkpoint"])
    [*_, (following, _)] = make({"m": phantom}, (model, link), None, "m", *wish)
    assert following["link"] == 1 and following["count"] == 2
    monkeypatch.setattr(app, "PAUSE", 0)
    other = next(make({"n": phantom}, (model, link), None, "n", *wish))[0]
    assert other["state"] == "making" and other["link"] == 0  # a chain does not go on with another model


def test_page_is_told_that_no_clip_comes(session, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(session, "link", fail)
    messages = make({"m": session}, None, None, "m", "red wall", 3)
    assert next(messages) == ({"state": "failed"}, None)
    with pytest.raises(MemoryError):
        next(messages)


def test_models_have_names_without_folders(gpt_file, runtime):
    sessions = load_sessions(AppConfig(gpt_ckpt=(gpt_file, gpt_file), device="cpu"), runtime)
    assert list(sessions) == ["gpt.pt", "gpt.pt (2)"]
    with pytest.raises(InputError, match="--model nobody"):
        load_sessions(AppConfig(model=("nobody",)), runtime)
