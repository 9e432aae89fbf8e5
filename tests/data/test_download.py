import gc
import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pooch
import pytest

from nnfx.data import download
from nnfx.data.download import File, fetch

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "http://127.0.0.1:9/images.gz"

# pooch leaves the connection of a failed download to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


class Web(http.server.ThreadingHTTPServer):
    """A web server on this machine, where each path serves the content with a fault of its own."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.half_sent = threading.Event()
        self.end = threading.Event()

    def file(self, behaviour):
        return File("kind/images.gz", f"http://127.0.0.1:{self.server_address[1]}/{behaviour}", SHA256)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/absent":
            self.send_error(404)
            return
        content = CONTENT[:-1] + b"?" if self.path == "/wrong" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", len(content))
        self.end_headers()
        self.wfile.write(content if self.path in ("/right", "/wrong") else content[:100_000])
        self.wfile.flush()
        if self.path == "/stalls":
            self.server.half_sent.set()
            self.server.end.wait(60)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.end.set()
        server.shutdown()
        thread.join()
    gc.collect()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NNFX_DATA", str(tmp_path))
    return tmp_path


def all_files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_folder_is_the_variable_s_or_the_platform_s(monkeypatch, tmp_path):
    monkeypatch.setenv("NNFX_DATA", str(tmp_path))
    assert download.folder() == tmp_path
    monkeypatch.setenv("NNFX_DATA", "~/images")
    assert download.folder() == Path.home() / "images"
    for unset in (lambda: monkeypatch.setenv("NNFX_DATA", ""), lambda: monkeypatch.delenv("NNFX_DATA")):
        unset()
        assert download.folder() == Path(pooch.os_cache("nnfx"))


def test_a_file_is_downloaded_once(web, folder):
    for _ in range(2):
        assert fetch(web.file("right")) == folder / "kind" / "images.gz"
    assert web.requests == ["/right"]
    assert [path.read_bytes() for path in all_files(folder)] == [CONTENT]


def test_a_file_that_is_there_needs_neither_network_nor_pooch(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    (folder / "kind").mkdir()
    (folder / "kind" / "images.gz").write_bytes(CONTENT)
    assert fetch(File("kind/images.gz", NOWHERE, SHA256)).read_bytes() == CONTENT


def test_a_download_without_pooch_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nnfx\[datasets\]'"):
        fetch(File("kind/images.gz", NOWHERE, SHA256))


def test_a_corrupt_file_is_named_and_left_alone(web, folder):
    path = folder / "kind" / "images.gz"
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected .* {SHA256}, got {found}; move or"):
        fetch(web.file("right"))
    assert path.read_bytes() == CONTENT[:-1]
    assert not web.requests


def test_wrong_bytes_are_refused(web, folder):
    with pytest.raises(ValueError, match=f"/wrong: expected the known images.gz, .* expected .*{SHA256} but got"):
        fetch(web.file("wrong"))
    assert not all_files(folder)


@pytest.mark.parametrize("behaviour", ["breaks-off", pytest.param("absent", marks=pytest.mark.slow)])
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(web, folder, behaviour):
    file = web.file(behaviour)
    with pytest.raises(OSError, match="could not download the missing file") as error:
        fetch(file)
    for part in (str(folder / "kind" / "images.gz"), file.url, SHA256, "NNFX_DATA"):
        assert part in str(error.value)
    assert not all_files(folder)
    assert fetch(web.file("right")).read_bytes() == CONTENT


def test_without_a_network_the_error_says_where_to_put_what(folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(OSError, match=f"{folder}/kind/images.gz: .*{NOWHERE} .*{SHA256}.* save it there"):
        fetch(File("kind/images.gz", NOWHERE, SHA256))


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NNFX_DATA", str(tmp_path / "file"))
    with pytest.raises(OSError, match="file/kind/images.gz"):
        fetch(File("kind/images.gz", NOWHERE, SHA256))


@pytest.mark.slow
def test_a_download_killed_midway_is_never_taken_for_a_whole_one(web, folder):
    file = web.file("stalls")
    script = f"from nnfx.data.download import File, fetch; fetch({file!r})"
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ, stderr=subprocess.DEVNULL)
    assert web.half_sent.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "kind" / "images.gz").exists()
    assert fetch(web.file("right")).read_bytes() == CONTENT
