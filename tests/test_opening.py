import socket
import zipfile

import numpy as np
import pytest
from PIL import Image
from synthetic import moving_texture
from video_files import encode

from common.errors import InputError
from dataset.opening import can_open
from dataset.video import is_frame_folder, read_frames, write_frames, write_gif, write_mp4

NAMES = ["2024-05-01T12:30/x.mp4", "concat:x.mp4", "http:x.mp4", "http:/x/y.mp4", "file:x.mp4", "pipe:0.mp4",
         "%03d.mp4", "-x.mp4", "a?b#c*d.mp4", "Größe 1.mp4", "x\udcff.mp4", "a|b.mp4", "@x.mp4",
         "subfile,,start,0,end,0,,:x.mp4"]


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return moving_texture(0, 6, 32, 48)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_never_an_address(tmp_path, monkeypatch, frames, name):
    write_mp4(tmp_path / "plain", frames, 10)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "plain").rename(tmp_path / name)
    for path in (name, tmp_path / name):
        assert sum(1 for _ in read_frames(path)) == 6


@pytest.mark.parametrize("name", ["%03d.png", "a:b.png", "-1.png", "[1].png"])
def test_a_picture_is_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), (9, 9, 9)).save("001.png")
    Image.new("RGB", (8, 8), (90, 90, 90)).save(name, format="PNG")
    (frame,) = read_frames(name)
    assert (frame.pixels == 90).all()


def test_no_file_leads_to_another_or_to_the_network(tmp_path, frames):
    encode(tmp_path / "real.ts", "mpeg2video", "yuv420p", frames)
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
    listing = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    contents = {
        "local": listing.format(tmp_path / "real.ts"), "remote": listing.format(address),
        "concat": f"ffconcat version 1.0\nfile '{tmp_path / 'real.ts'}'\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
               "a=rtpmap:96 H264/90000\n",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.mp4").write_text(content)
        assert not can_open(tmp_path / f"{name}.mp4")
        with pytest.raises(InputError, match=rf"{name}\.mp4: not a readable video"):
            list(read_frames(tmp_path / f"{name}.mp4"))
    with server, pytest.raises(TimeoutError):
        server.accept()


@pytest.mark.parametrize(("suffix", "codec", "pixel_format"), [
    ("vob", "mpeg2video", "yuv420p"), ("mpg", "mpeg2video", "yuv420p"), ("m2ts", "libx264", "yuv420p"),
    ("mts", "libx264", "yuv420p"), ("ts", "mpeg2video", "yuv420p"), ("3gp", "mpeg4", "yuv420p"),
    ("flv", "flv", "yuv420p"), ("wmv", "wmv2", "yuv420p"),
    ("h264", "libx264", "yuv420p"), ("mov", "mjpeg", "yuvj420p"), ("webm", "libvpx", "yuv420p"),
])
def test_recordings_are_known_by_their_content(tmp_path, frames, suffix, codec, pixel_format):
    path = tmp_path / f"x.{suffix}"
    big = np.tile(frames, (1, 4, 4, 1))
    encode(path, codec, pixel_format, big)
    for name in (path.name, "x.dat", "x", "x.bin"):
        path = path.rename(tmp_path / name)
        assert can_open(path)
        assert sum(1 for _ in read_frames(path)) == 6


def test_other_files_are_no_recordings(tmp_path, frames):
    (tmp_path / "empty").touch()
    (tmp_path / "text.txt").write_text("words, and more words\n" * 500)
    (tmp_path / "sub.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nwords\n\n" * 30)
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.4\n" + b"1 0 obj stream\n" * 500)
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(100_000))
    np.savez(tmp_path / "x.npz", frames=frames)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("x.txt", "words")
    for suffix in ("png", "jpg", "bmp", "tif", "webp", "gif", "ico", "ppm", "jp2"):
        Image.fromarray(frames[0]).save(tmp_path / f"still.{suffix}")
    assert {path.name for path in tmp_path.iterdir() if can_open(path)} == set()
    assert not can_open(tmp_path / "nowhere")


def test_moving_gif_is_a_recording(tmp_path, frames):
    write_gif(tmp_path / "x.gif", frames, 10)
    assert can_open(tmp_path / "x.gif")


def test_dicom_is_named_with_what_to_do(tmp_path):
    (tmp_path / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(1000))
    assert not can_open(tmp_path / "x.dcm")
    with pytest.raises(InputError, match=r"x\.dcm: a DICOM file, which is not read; convert it"):
        list(read_frames(tmp_path / "x.dcm"))


def test_folder_of_frames_may_hold_data_but_no_video(tmp_path, frames):
    write_frames(tmp_path / "x", frames)
    (tmp_path / "x" / "index.dat").write_text("no video")
    assert is_frame_folder(tmp_path / "x")
    encode(tmp_path / "movie.mpg", "mpeg2video", "yuv420p", frames)
    (tmp_path / "movie.mpg").rename(tmp_path / "x" / "movie.dat")
    assert not is_frame_folder(tmp_path / "x")
