"""Downloads from the hub, against a server on this machine that speaks the routes which huggingface_hub
needs.

HEAD and GET of /OWNER/NAME/resolve/REVISION/FILE fetch a file; GET of /api/models/OWNER/NAME/tree/REVISION
lists a repository. The library reads its environment when it is imported, hence the subprocesses.
"""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors import safe_open

from convert import hub
from fastvggt_jax.errors import FailedError
from tests import make_checkpoint

pytest.importorskip("huggingface_hub")

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "golden" / "vggt_tiny.config.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repositories are folders OWNER/NAME below `root`; those named *gated* ask for a log-in."""

    root: Path

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/\w+/([\w.-]+)", path):
            repository, file = match.groups()
            listing = False
        elif match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/\w+", path):
            repository, file = match[1], ""
            listing = True
        else:
            return self.reply(404, b"", body)
        folder = self.root / repository
        if match := re.search(r"answers-(\d+)", repository):
            return self.reply(int(match[1]), b"", body)
        if "gated" in repository:
            return self.reply(403, b"", body, {"X-Error-Code": "GatedRepo"})
        if not folder.is_dir():
            return self.reply(401, b"", body, {"X-Error-Code": "RepoNotFound"})
        if listing:
            files = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                for f in folder.iterdir()
            ]
            return self.reply(200, json.dumps(files).encode(), body, {"Content-Type": "application/json"})
        if not (folder / file).is_file():
            return self.reply(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        data = (folder / file).read_bytes()
        return self.reply(200, data, body, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    def reply(self, status, data, body, headers=None):
        self.send_response(status)
        for name, value in {
            "X-Repo-Commit": COMMIT,
            **(headers or {}),
            "Content-Length": str(len(data)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    vggt = root / "facebook" / "VGGT-1B"
    vggt.mkdir(parents=True)
    manifest = make_checkpoint.load_manifest(TINY.with_name("vggt_tiny.manifest.json"))
    manifest["tensors"] = [
        t for t in manifest["tensors"] if t["key"].startswith(("aggregator.", "camera_head."))
    ]
    make_checkpoint.write_checkpoint(manifest, vggt / "model.safetensors")
    for name, files in {
        "one-pt": ["weights.pt"],
        "two-pt": ["a.pt", "b.pt"],
        "model-pt": ["a.pt", "model.pt"],
        "no": [],
    }.items():
        (root / "somebody" / name).mkdir(parents=True)
        for file in [*files, "README.md"]:
            (root / "somebody" / name / file).write_bytes(b"not weights")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"root": root}))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def python(arguments, home, **environment):
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("HF_") and k.lower() not in ("http_proxy", "https_proxy", "all_proxy")
    }
    env = clean | {"HF_HOME": str(home), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100
    )


def refusal(done):
    """The one sentence on standard error, below what huggingface_hub itself may say."""
    assert done.returncode in (1, 2), done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_download_then_offline_from_the_cache(server, tmp_path):
    out = tmp_path / "native.safetensors"
    command = ["-m", "convert.convert_weights", "facebook/VGGT-1B", out, "--config", TINY, "--overwrite"]
    done = python(command, tmp_path / "home", HF_ENDPOINT=server)
    assert done.returncode == 0, done.stderr
    assert "licence   of the weights: CC BY-NC 4.0 (non-commercial use only)" in done.stdout
    with safe_open(out, "np") as f:
        metadata = f.metadata()
    assert metadata["source"] == "facebook/VGGT-1B/model.safetensors"
    assert metadata["license"] == "CC BY-NC 4.0 (non-commercial use only)"
    written = out.read_bytes()

    done = python(command, tmp_path / "home", HF_ENDPOINT=server, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == written


def test_offline_without_a_cache(tmp_path):
    command = ["-m", "convert.convert_weights", "facebook/VGGT-1B", tmp_path / "native.safetensors"]
    assert refusal(python(command, tmp_path / "home", HF_HUB_OFFLINE="1")) == (
        "error facebook/VGGT-1B is neither a file here nor in the hub's cache, and HF_HUB_OFFLINE is set: "
        "download it or give a file"
    )
    assert not (tmp_path / "native.safetensors").exists()


AT_ONCE = """
import sys, time
waited = []
time.sleep = waited.append
from convert.convert_weights import main
code = main(sys.argv[1:])
sys.exit(f"waited {waited}" if sum(waited) > MOST else code)
"""
LONG, SHORT = AT_ONCE.replace("MOST", "60"), AT_ONCE.replace("MOST", "3")


@pytest.mark.parametrize("status", [403, pytest.param(500, marks=pytest.mark.slow)])
def test_a_hub_that_refuses_has_answered(server, status, tmp_path):
    name = f"somebody/answers-{status}"
    command = ["-c", LONG, name, tmp_path / "native.safetensors"]
    error = refusal(python(command, tmp_path / "home", HF_ENDPOINT=server))
    assert error.startswith(f"error {name}") and str(status) in error and "did not answer" not in error


def test_no_network(tmp_path):
    with socket.socket() as s:  # a port where nobody answers
        s.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{s.getsockname()[1]}"
        command = ["-c", SHORT, "facebook/VGGT-1B", tmp_path / "native.safetensors"]
        error = refusal(python(command, tmp_path / "home", HF_ENDPOINT=nobody))
    assert error == (
        f"error facebook/VGGT-1B is neither a file here nor in the hub's cache, and {nobody} did not answer: "
        "download it or give a file"
    )


def test_a_hub_is_asked_again_before_it_counts_as_gone(monkeypatch, tmp_path):
    """... and once if it is connected to, but slow: then huggingface_hub has its own patience."""
    import huggingface_hub
    from huggingface_hub import constants

    waited, answers = [], []

    def metadata(url):
        raise type(answers.pop(0), (OSError,), {})(url)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *of, **how: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *of, **how: tmp_path / "found")
    monkeypatch.setattr(hub.time, "sleep", waited.append)
    for answers[:], pauses in (
        (["ConnectError", "HfHubHTTPError"], [1]),
        (["ConnectTimeout", "ConnectError", "ReadTimeout"], [1, 2]),
        (["ReadTimeout"], []),
    ):
        waited.clear()
        assert hub.fetch("facebook/VGGT-1B") == tmp_path / "found"
        assert waited == pauses and not answers
    answers[:] = ["ConnectTimeout"] * 3
    with pytest.raises(FailedError, match=r"nor in the hub's cache, and .* did not answer: download it"):
        hub.fetch("facebook/VGGT-1B")


FETCH = """
import sys
from convert import hub, sources
hub.require_torch = lambda path: None  # what is told apart here is which file is taken, not what it holds
for repository in sys.argv[1:]:
    try:
        print(hub.fetch(repository).name)
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_which_file_of_a_repository(server, tmp_path):
    repositories = [
        "somebody/one-pt",
        "somebody/model-pt",
        "somebody/two-pt",
        "somebody/no",
        "some/gated",
        "some/none",
    ]
    done = python(["-c", FETCH, *repositories], tmp_path / "home", HF_ENDPOINT=server)
    assert done.stdout.splitlines() == [
        "weights.pt",
        "model.pt",
        "MissingError somebody/two-pt on the hub holds several .pt files (a.pt, b.pt): "
        "download one and give its path",
        "MissingError somebody/no on the hub holds neither model.safetensors nor a .pt file",
        "FileError some/gated is gated: accept its terms at huggingface.co/some/gated, "
        "then set HF_TOKEN or log in",
        "MissingError some/none is neither a file here nor a repository on the hub",
    ], done.stderr


def test_pt_is_not_downloaded_where_it_cannot_be_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"facebook/VGGT_tracker_fixed/model_tracker_fixed_e20\.pt is a PyTorch file"
    ):
        hub.fetch("facebook/VGGT_tracker_fixed")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError, match=r"facebook/VGGT-1B is no file here; .* needs the extra hub \(pip install"
    ):
        hub.fetch("facebook/VGGT-1B")


def test_names_of_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    Path("weights/here").write_bytes(b"")
    assert hub.is_repository("facebook/VGGT-1B")
    for name in ("weights/here", "weights/none.safetensors", "a/b/c", "vggt", "../vggt", "./vggt", "-a/b"):
        assert not hub.is_repository(name), name
    with pytest.raises(OSError, match=r"a--b/c is neither a file here nor a repository on the hub"):
        hub.fetch("a--b/c")  # which the hub's client refuses to ask for
    assert "see huggingface.co/facebook/VGGT-1B-Commercial" in hub.licence_of("facebook/VGGT-1B-Commercial")
    assert hub.licence_of("somebody/VGGT") == hub.licence_of(None) == "unknown, see the source"
