"""A server on loopback that speaks the calls of the Hugging Face Hub by which models are fetched and pushed."""

import base64
import contextlib
import dataclasses
import hashlib
import importlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from mvlm_jax.interop import hub

TOKEN = "hf_secret"


@dataclasses.dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict = dataclasses.field(default_factory=dict)  # the files of each, by path
    refs: dict = dataclasses.field(default_factory=dict)  # branches and tags

    def commit(self, files, *, ref="main"):
        """A new commit of these files and those of the one before."""
        held = self.commits.get(self.refs.get(ref), {}) | files
        content = [(path, hashlib.sha1(data).hexdigest()) for path, data in sorted(held.items())]
        sha = hashlib.sha1(repr((ref, content)).encode()).hexdigest()
        self.commits[sha], self.refs[ref] = held, sha
        return sha


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.requests, self.large, self.broken = {}, [], {}, False

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, name, folder, *, ref="main", **more):
        """Commits the files of a folder; `more` are others, with `__` for the point in their names."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        files |= {path.replace("__", "."): data for path, data in more.items()}
        return self.repositories.setdefault(name, Repository()).commit(files, ref=ref)

    def fetched(self):
        """The files whose content was sent, since the last time."""
        sent = [match[1] for method, path in self.requests if (match := re.search("/resolve/[^/]+/(.*)", path))
                and method == "GET"]  # fmt: skip
        self.requests.clear()
        return sorted(sent)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.respond()

    do_HEAD = do_POST = do_PUT = do_GET

    def respond(self):
        body = self.received()
        path, server = urlsplit(self.path).path, self.server
        server.requests.append((self.command, path))
        if server.broken:
            return self.send(503)
        for pattern, answer in ANSWERS:
            if match := re.fullmatch(pattern, path):
                return answer(self, *map(unquote, match.groups()), body)
        self.send(404)

    def received(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def found(self, name, revision):
        """(repository, commit); None after an error was sent."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.knows_token()):
            self.send(401 if repository is None else 404, X_Error_Code="RepoNotFound")
            return None
        if repository.gated and not self.knows_token():
            self.send(401, X_Error_Code="GatedRepo")
            return None
        commit = revision if revision in repository.commits else repository.refs.get(revision)
        if commit is None:
            self.send(404, X_Error_Code="RevisionNotFound")
            return None
        return repository, commit

    def knows_token(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def info(self, name, revision, body):
        if found := self.found(name, revision):
            repository, commit = found
            files = [{"rfilename": path} for path in repository.commits[commit]]
            self.send(200, {"id": name, "sha": commit, "private": repository.private, "siblings": files})

    def tree(self, name, revision, body):
        if found := self.found(name, revision):
            repository, commit = found
            files = repository.commits[commit].items()
            self.send(
                200,
                [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files
                ],
            )

    def file(self, name, revision, path, body):
        if found := self.found(name, revision):
            repository, commit = found
            data = repository.commits[commit].get(path)
            if data is None:
                return self.send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            self.send(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit)

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if not self.knows_token():
            return self.send(401, {"error": "Invalid username or password."})
        if not name.startswith("me/"):
            return self.send(403, {"error": "You don't have the rights to create a model there"})
        known = name in self.server.repositories
        if not known:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.server.repositories[name] = Repository(private=private)
            self.server.repositories[name].commit({".gitattributes": b""})
        self.send(409 if known else 200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})

    def branch(self, name, branch, body):
        refs = self.server.repositories[name].refs
        known = branch in refs
        refs.setdefault(branch, refs["main"])
        self.send(409 if known else 200, {})

    def preupload(self, name, revision, body):
        files = [
            {"path": file["path"], "uploadMode": self.mode(file["path"]), "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self.send(200, {"files": files})

    def mode(self, path):
        return "lfs" if path.endswith(".safetensors") else "regular"

    def large_files(self, name, body):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.address}/large/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid, body):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self.send(200)

    def commit(self, name, revision, body):
        if not self.knows_token():
            return self.send(401, X_Error_Code="RepoNotFound")
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        sha = self.server.repositories[name].commit(files, ref=revision)
        self.send(200, {"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha})


NAME = "([^/]+/[^/]+)"
ANSWERS = (
    (f"/api/models/{NAME}/revision/([^/]+)", Handler.info),
    (f"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    (f"/{NAME}/resolve/([^/]+)/(.+)", Handler.file),
    ("/api/repos/create", Handler.create),
    (f"/api/models/{NAME}/branch/([^/]+)", Handler.branch),
    (f"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    (f"/{NAME}.git/info/lfs/objects/batch", Handler.large_files),
    ("/large/(.+)", Handler.upload),
    (f"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
    ("/api/validate-yaml", lambda handler, body: handler.send(200, {"errors": [], "warnings": []})),
)


def forget():
    """What a new process does not know yet."""
    hub._commit.cache_clear()
    hub._snapshot.cache_clear()


@contextlib.contextmanager
def environment(**values):
    """These variables, as a process that starts with them has them."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in values.items():
                patch.setenv(name, value)
            importlib.reload(constants)
            forget()
            yield
    finally:
        importlib.reload(constants)
        forget()


@contextlib.contextmanager
def serving(home):
    """A server that this process, and those it starts, take for the Hub; their cache is in `home`."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    # The library's other protocol for large files has no server here.
    variables = {"HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    try:
        with environment(**variables):
            yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
