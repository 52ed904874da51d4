"""Weights are fetched whole or not at all, whatever the server does."""

import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from common.distributed import Runtime
from common.download import RECORD, DownloadConfig, check, fetch, file_facts, files_of, part_of, run
from common.files import read_json


class Alone(Runtime):
    """A process of several that waits for no other one."""

    def gather(self, value):
        return [value]


class Server(ThreadingHTTPServer):
    """Serves one file as `behaviour` says, and remembers the ranges asked for."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.behaviour, self.ranges = content, "good", []
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pt"

    def handle_error(self, *_):
        """A client that gives up is no event."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        behaviour = server.behaviour.pop(0) if isinstance(server.behaviour, list) else server.behaviour
        content = b"<html>sign in first</html>" if behaviour == "garbage" else server.content
        start = int(asked[6:-1]) if asked and behaviour != "no ranges" else 0
        if behaviour == "missing" or start > len(content):
            self.send_error(404 if behaviour == "missing" else 416)
            return
        self.send_response(206 if start else 200)
        if behaviour != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start:]
        self.wfile.write(part[: len(part) // 2] if behaviour in ("truncate", "stall") else part)
        if behaviour == "stall":
            self.wfile.flush()
            time.sleep(1.5)

    def log_message(self, *_):
        """Silence."""


@pytest.fixture
def server(tmp_path):
    torch.save({"model": {"weight": torch.arange(5000.0)}}, tmp_path / "original.pt")
    server = Server((tmp_path / "original.pt").read_bytes())
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def entry(server):
    return {"url": server.url}


def settings(tmp_path, **more):
    return DownloadConfig("x", folder=tmp_path / "models", timeout=0.5, tries=3, **more)


def got(tmp_path):
    return (tmp_path / "models" / "weights.pt").read_bytes()


@pytest.mark.parametrize("behaviour", [
    "good", ["truncate", "good"], ["stall", "good"], ["truncate", "no ranges"], ["no length"],
    ["garbage", "good"], ["truncate", "truncate", "good"]], ids=str)
def test_whole_file_comes_through_a_bad_connection(server, entry, tmp_path, behaviour):
    server.behaviour = behaviour
    fetch("weights.pt", entry, settings(tmp_path))
    assert got(tmp_path) == server.content
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"weights.pt", RECORD}


def test_broken_download_continues_where_it_stopped(server, entry, tmp_path):
    server.behaviour = ["truncate", "good"]
    fetch("weights.pt", entry, settings(tmp_path))
    assert server.ranges == [None, f"bytes={len(server.content) // 2}-"]


@pytest.mark.parametrize("behaviour", ["truncate", "garbage", "missing"])
def test_nothing_but_the_whole_file_is_ever_used(server, entry, tmp_path, behaviour):
    server.behaviour = behaviour
    with pytest.raises(ValueError, match="download failed"):
        fetch("weights.pt", entry, settings(tmp_path))
    assert not (tmp_path / "models" / "weights.pt").exists()


def test_second_download_must_be_the_file_of_the_first(server, entry, tmp_path):
    fetch("weights.pt", entry, settings(tmp_path))
    path, first = tmp_path / "models" / "weights.pt", server.content
    assert read_json(tmp_path / "models" / RECORD) == {"weights.pt": file_facts(path)}
    path.unlink()
    torch.save({"model": {"weight": torch.zeros(5000)}}, tmp_path / "original.pt")
    server.content = (tmp_path / "original.pt").read_bytes()
    with pytest.raises(ValueError, match=r"download failed .*of the first download it was"):
        fetch("weights.pt", entry, settings(tmp_path))
    assert not path.exists()
    server.content = first
    fetch("weights.pt", entry, settings(tmp_path))
    assert got(tmp_path) == first


def test_file_that_has_changed_since_its_download_is_not_taken_for_it(server, entry, tmp_path, runtime):
    fetch("vq_ds16_c2i.pt", entry, settings(tmp_path))
    config = DownloadConfig("vq_ds16_c2i.pt", folder=tmp_path / "models")
    run(config, runtime)
    with open(tmp_path / "models" / "vq_ds16_c2i.pt", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"vq_ds16_c2i.pt: has changed since its download"):
        run(config, runtime)


def test_file_must_be_readable(tmp_path):
    part = tmp_path / ".partial-weights.pt"
    part.write_bytes(b"PK" + bytes(100))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        check(part, None)
    assert not part.exists()


def test_first_download_is_looked_at_to_its_last_byte(tmp_path):
    """A byte of the weights that the server's disk or a changed file has spoilt is in no header."""
    part = tmp_path / ".partial-weights.pt"
    torch.save({"model": {"weight": torch.zeros(5000)}}, part)
    facts = check(part, None)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        check(part, None)
    assert not part.exists() and facts["bytes"] == len(content)


def test_stale_beginning_of_another_file_is_thrown_away(server, entry, tmp_path):
    (tmp_path / "models").mkdir()
    part_of(tmp_path / "models" / "weights.pt", server.url).write_bytes(bytes(2 * len(server.content)))
    fetch("weights.pt", entry, settings(tmp_path))
    assert got(tmp_path) == server.content


def test_download_from_elsewhere_begins_anew_and_leaves_no_parts(server, entry, tmp_path):
    server.behaviour = "truncate"
    with pytest.raises(ValueError, match="download failed"):
        fetch("weights.pt", entry, settings(tmp_path))
    server.behaviour, server.ranges = "good", []
    fetch("weights.pt", {"url": f"{server.url}?mirror"}, settings(tmp_path))
    assert server.ranges == [None] and got(tmp_path) == server.content
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"weights.pt", RECORD}


def test_other_processes_download_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("common.download.fetch", lambda *_: pytest.fail("the main process does"))
    run(DownloadConfig("vq_ds16_c2i.pt", folder=tmp_path), Alone(rank=1, world_size=2))


def test_mirror_and_local_folder_go_first(server, entry, tmp_path):
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "weights.pt").write_bytes(server.content)
    fetch("weights.pt", entry, settings(tmp_path, source=(str(tmp_path / "none"), str(tmp_path / "usb"))))
    assert got(tmp_path) == server.content and server.ranges == []
    (tmp_path / "models" / "weights.pt").unlink()
    mirror = server.url.rsplit("/", 1)[0]
    nowhere = {**entry, "url": "http://127.0.0.1:9/weights.pt"}
    fetch("weights.pt", nowhere, settings(tmp_path, source=(mirror,)))
    assert got(tmp_path) == server.content


def test_model_brings_its_tokenizer_and_wrong_names_are_refused(tmp_path, runtime, capsys):
    assert files_of("hyperkvasir") == ["vq_ds16_c2i.pt", "hyperkvasir_model_0054236.pt"]
    assert files_of("vq_ds16_c2i.pt") == ["vq_ds16_c2i.pt"]
    for name in ("nonsense", "phantom"):
        with pytest.raises(ValueError, match="choose from llamagen, hyperkvasir, surgvisdom"):
            files_of(name)
    for file in files_of("surgvisdom"):
        (tmp_path / file).touch()
    run(DownloadConfig("surgvisdom", folder=tmp_path), runtime)
    assert capsys.readouterr().out.count("there already") == 2


def test_two_at_once_fetch_a_file_once(server, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr("common.download.files_of", lambda name: ["weights.pt"])
    monkeypatch.setattr("common.download.registry", lambda: {"weights.pt": {"url": server.url}})
    with ThreadPoolExecutor() as pool:
        for job in [pool.submit(run, settings(tmp_path), runtime) for _ in range(2)]:
            job.result()
    assert got(tmp_path) == server.content
    assert server.ranges == [None]
