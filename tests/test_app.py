"""The page in a real browser; skipped without Gradio (.venv-app has it), Playwright or Chromium."""

import shutil
import subprocess
import sys

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]


SLOW = """
import time
from autoregressive.models.decoding import Passes
from autoregressive.sample.app import AppConfig, run
from common.command import run_command
take = Passes.take
Passes.take = lambda *given: (time.sleep(0.003), take(*given))
run_command(AppConfig, run)
"""


@pytest.fixture(scope="module")
def address(gpt_file, command_env):
    """Of a page whose clips take a second or more, so that there is time to press a button."""
    command = [sys.executable, "-c", SLOW, "--gpt-ckpt", str(gpt_file), "--upload-mb", "1", "--device", "cpu"]
    with subprocess.Popen(command, env=command_env, stdout=subprocess.PIPE, text=True) as server:
        opened = next(line for line in server.stdout if line.startswith("open "))
        yield opened.split()[1]
        server.terminate()


@pytest.fixture
def page(address):
    """The page at the width of a phone; any request to elsewhere fails the test."""
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    elsewhere = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: elsewhere.append(request.url)
                if not request.url.startswith((address, "data:", "blob:")) else None)
        page.goto(address)
        yield page
        browser.close()
    assert not elsewhere


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def played(page, count):
    page.locator(f"[data-played='{count}'] video.on").wait_for(timeout=60_000)
    return page.locator("#player video.on").evaluate("video => [video.videoWidth, video.paused, video.ended]")


def test_class_is_chosen_and_its_clip_plays(page):
    page.get_by_label("Class", exact=True).click()
    page.get_by_role("option", name="red wall").click()
    press(page, "Make a clip")
    assert played(page, 1)[:2] == [32, False]
    assert "red wall, seed 0" in page.locator("#player .caption").inner_text()
    assert "Not a patient" in page.locator("#player .notice").inner_text()
    with page.expect_download() as saved:
        page.get_by_text("Download mp4").click()
    assert saved.value.suggested_filename == "gpt.pt_red wall_0_0.mp4"
    press(page, "Next seed")
    played(page, 2)
    assert "red wall, seed 1" in page.locator("#player .caption").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_endless_video_goes_on_until_it_is_stopped(page):
    press(page, "Endless")
    page.locator("#player .caption", has_text="part 3").wait_for(timeout=60_000)
    assert "frames per second" in page.locator("#player .status").inner_text()
    press(page, "Stop")
    sync_api.expect(page.locator("#player .status")).to_have_text("Stopped.")
    page.wait_for_timeout(1500)  # longer than a link plays
    count = page.locator("#player [data-played]").get_attribute("data-played")
    page.wait_for_timeout(1500)
    assert page.locator("#player [data-played]").get_attribute("data-played") == count
    press(page, "Endless")
    press(page, "Make a clip")  # in its place
    played(page, int(count) + 1)
    assert "part" not in page.locator("#player .caption").inner_text()
    assert page.locator("#player .status").inner_text().startswith("Made in")


def test_clip_can_be_cancelled(page):
    press(page, "Make a clip")
    page.locator("#player .status", has_text="Making the clip").wait_for()
    press(page, "Stop")
    sync_api.expect(page.locator("#player .status")).to_have_text("Stopped.")
    page.wait_for_timeout(1500)
    assert page.locator("#player video.on").count() == 0


def test_wrong_uploads_are_refused_in_one_line(page, tmp_path):
    page.get_by_text("More settings").click()
    for name, content, said in (("secret.png", b"nothing", "This file is no picture or short video"),
                                ("large.png", bytes(2 << 20), "exceed the maximum allowed size")):
        (tmp_path / name).write_bytes(content)
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        page.get_by_text(said).first.wait_for()
        assert str(tmp_path) not in page.content() and "/tmp" not in page.locator("body").inner_text()
        page.reload()
        page.get_by_text("More settings").click()
