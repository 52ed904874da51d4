"""A server on this machine that speaks as much of the Hugging Face Hub's protocol as the library needs."""

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class FakeHub(ThreadingHTTPServer):
    """`commits[repository]` are the states of a repository, {name: content}, the newest last.

    A repository is "models/owner/name" or "datasets/owner/name". `behaviour` is "good", or how it fails:
    "truncate", "corrupt" (downloads), "refuse" (401 to all), "refuse uploads" (403 to commits).
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits, self.stored, self.created = {}, {}, {}
        self.behaviour, self.asked = "good", []

    def put(self, repository, files):
        """Add a commit that changes these files -> its hash."""
        states = self.commits.setdefault(repository, [{}])
        states.append({**states[-1], **files})
        return self.commit(repository, len(states) - 1)

    def commit(self, repository, place=-1):
        place %= len(self.commits[repository])
        return hashlib.sha1(f"{repository} {place}".encode()).hexdigest()

    def state(self, repository, revision):
        """(files, commit) of a revision: main, or a commit; (None, "") if there is none."""
        for place, files in enumerate(self.commits[repository]):
            if revision == self.commit(repository, place):
                return files, revision
        return (self.commits[repository][-1], self.commit(repository)) if revision == "main" else (None, "")

    def handle_error(self, *_):
        """A client that gives up is no event."""


def is_large(name):
    """True for what is stored as LFS."""
    return name.endswith((".safetensors", ".tar", ".webp", ".pt"))


def etag(name, content):
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(*self.read())

    do_HEAD = do_POST = do_PUT = do_GET

    def read(self):
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, "/".join(words)))
        return words, body

    def answer(self, words, body):
        hub = self.server
        if hub.behaviour == "refuse":
            return self.send(401, {"error": "Invalid username or password."})
        if words == ["api", "repos", "create"]:
            facts = json.loads(body)
            repository = f"{facts['type']}s/{facts['organization']}/{facts['name']}"
            hub.created[repository] = facts.get("visibility")
            hub.commits.setdefault(repository, [{}])
            return self.send(200, {"url": f"{hub.url}/{repository.removeprefix('models/')}"})
        if words == ["api", "validate-yaml"]:
            return self.send(200, {"errors": [], "warnings": []})
        if words[0] == "stored":
            hub.stored[words[1]] = body
            return self.send(200, {})
        words = words[words[0] == "api":]
        kind, owner, name, *rest = words if words[0] in ("models", "datasets") else ["models", *words]
        repository = f"{kind}/{owner}/{name.removesuffix('.git')}"
        if repository not in hub.commits:
            return self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if name.endswith(".git"):
            return self.batch(json.loads(body))
        verb, revision, *path = rest or ["revision", "main"]
        files, commit = hub.state(repository, revision)
        if files is None:
            return self.send(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        return getattr(self, f"do_{verb}")(repository, files, commit, "/".join(path), body)

    def do_revision(self, repository, files, commit, _path, _body):
        self.send(200, {"id": repository.split("/", 1)[1], "sha": commit,
                        "siblings": [{"rfilename": name} for name in files]})

    def do_tree(self, _repository, files, _commit, _path, _body):
        self.send(200, [{"type": "file", "path": name, "size": len(content), "oid": etag("", content),
                         **({"lfs": {"oid": etag(name, content), "size": len(content), "pointerSize": 130}}
                            if is_large(name) else {})} for name, content in files.items()])

    def do_resolve(self, _repository, files, commit, path, _body):
        if path not in files:
            return self.send(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[path]
        head = {"X-Repo-Commit": commit, "ETag": f'"{etag(path, content)}"',
                "X-Linked-Size": str(len(content))}
        if self.command == "GET":
            behaviour = self.server.behaviour
            content = content[:-1] if behaviour == "truncate" else content
            content = content[:-1] + b"\xff" if behaviour == "corrupt" else content
        return self.send(200, content, head)

    def do_preupload(self, _repository, _files, _commit, _path, body):
        self.send(200, {"files": [
            {"path": file["path"], "uploadMode": "lfs" if is_large(file["path"]) else "regular",
             "shouldIgnore": False} for file in json.loads(body)["files"]]})

    def batch(self, asked):
        self.send(200, {"transfer": "basic", "objects": [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/stored/{one['oid']}"}}}
            for one in asked["objects"]]})

    def do_commit(self, repository, files, _commit, _path, body):
        if self.server.behaviour == "refuse uploads":
            return self.send(403, {"error": "read-only token"})
        files = dict(files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.commits[repository].append(files)
        commit = self.server.commit(repository)
        page = f"{self.server.url}/{repository.removeprefix('models/')}/commit/{commit}"
        return self.send(200, {"commitUrl": page, "commitOid": commit})

    def send(self, status, content, head=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(head or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Silence."""


@contextmanager
def running_hub():
    hub = FakeHub()
    Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
