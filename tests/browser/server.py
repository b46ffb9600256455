"""Servers for the browser tests: started on a folder of their own, with settings, runtime files and kernels of their own; and which browser there is."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nbformat
import psutil
from nbformat import sign

ROOT = Path(__file__).parents[2]
TOKEN = "browser-tests"
START_TIMEOUT = 90.0
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-sync"]

Kind = Literal["lab", "notebook", "voila"]
SETTINGS: dict[str, dict[str, Any]] = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # otherwise cells off the screen are not in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


def missing(*modules: str) -> list[str]:
    """What a machine lacks of Chromium and these modules, with how to get each."""
    without = [] if CHROMIUM else ["Chromium (Debian: apt-get install chromium)"]
    return without + [f"{name} (pip install --group browser)" for name in modules if not importlib.util.find_spec(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server."""

    kind: Kind
    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def url(self, notebook: str, *, dark: bool = False) -> str:
        """The address that shows a notebook of the folder."""
        base = f"http://127.0.0.1:{self.port}"
        if self.kind == "voila":
            return f"{base}/voila/render/{notebook}?token={TOKEN}" + ("&theme=dark" if dark else "")
        return f"{base}/{'lab/tree' if self.kind == 'lab' else 'notebooks'}/{notebook}?token={TOKEN}" + (
            "&reset" if self.kind == "lab" else ""
        )

    def tree(self) -> str:
        """The address of Notebook 7's list of files and of what runs."""
        return f"http://127.0.0.1:{self.port}/tree?token={TOKEN}"

    def ask(self, path: str, *, method: str = "GET", data: object = None) -> Any:
        """A request to the server's REST interface."""
        body = None if data is None else json.dumps(data).encode()
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", data=body, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text and answer.headers.get_content_type() == "application/json" else None

    def trust(self, notebook: str, *, signed: bool) -> None:
        """Sign a notebook of the folder, or forget its signature."""
        secret, signatures = self.folder.parent / "data/notebook_secret", self.folder.parent / "data/nbsignatures.db"
        notary = sign.NotebookNotary(secret=secret.read_bytes(), store_factory=lambda: sign.SQLiteSignatureStore(str(signatures)))
        content = nbformat.read(self.folder / notebook, as_version=4)
        (notary.sign if signed else notary.unsign)(content)
        notary.store.close()

    def theme(self, *, dark: bool) -> None:
        """Choose JupyterLab's theme for the pages that are opened from now on."""
        if self.kind != "voila":
            wanted = {"raw": json.dumps({"theme": "JupyterLab Dark" if dark else "JupyterLab Light"})}
            self.ask("lab/api/settings/@jupyterlab/apputils-extension:themes", method="PUT", data=wanted)

    def end_kernels(self) -> None:
        """Shut down every kernel, as a user does at the end of the day."""
        if self.kind != "voila":
            for kernel in self.ask("api/kernels"):
                self.ask(f"api/kernels/{kernel['id']}", method="DELETE")
            return
        for child in psutil.Process(self.process.pid).children():  # Voilà has no list of kernels
            with contextlib.suppress(psutil.NoSuchProcess, urllib.error.HTTPError):  # it ends a kernel by itself when the page is left
                if found := re.search(r"kernel-([-0-9a-f]{36})\.json", " ".join(child.cmdline())):
                    self.ask(f"voila/api/shutdown/{found[1]}", method="POST", data={})


def _environment(home: Path) -> dict[str, str]:
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    lab = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    own = {name: str(home / place) for name, place in {**places, **lab}.items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own["NBPROCS_STATE_DIR"] = str(home / "state")
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}  # curses believes them
    return {**inherited, **own, "PATH": path, "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}


def _command(kind: Kind, folder: Path, port: int) -> list[str]:
    if kind == "voila":
        options = [f"--port={port}", "--Voila.ip=127.0.0.1", "--no-browser", "--show_tracebacks=True"]
        return [sys.executable, "-m", "voila", str(folder), *options, f"--token={TOKEN}"]
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}"]
    options += (
        ["--LabApp.news_url=", "--LabApp.expose_app_in_browser=True"]
        if kind == "lab"
        else ["--JupyterNotebookApp.expose_app_in_browser=True"]
    )
    return [sys.executable, "-m", "jupyter", kind, *options, f"--ServerApp.root_dir={folder}"]


def _add_panel(home: Path) -> None:
    """The panel's extension of this tree, as an installation would put it there."""
    (home / "data" / "labextensions").mkdir(parents=True)
    (home / "data" / "labextensions" / "nbprocs").symlink_to(ROOT / "nbprocs" / "lab" / "labextension")
    (home / "config" / "jupyter_server_config.d").mkdir(parents=True)
    shutil.copy(ROOT / "nbprocs" / "server" / "nbprocs.json", home / "config" / "jupyter_server_config.d")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(kind: Kind, home: Path) -> Iterator[Server]:
    """Start a server below a folder, wait until it answers, and end it with all its kernels."""
    folder = home / "notebooks"
    folder.mkdir()
    for name, value in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    _add_panel(home)
    port, log = _free_port(), home / "server.log"
    with log.open("wb") as out:
        command = _command(kind, folder, port)
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(home), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    server = Server(kind=kind, folder=folder, port=port, process=process, log=log)
    try:
        _wait_until_up(server)
        yield server
    finally:
        with contextlib.suppress(OSError):
            server.end_kernels()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        with contextlib.suppress(OSError):
            server.ask("" if server.kind == "voila" else "api/kernels")  # Voilà has no list of kernels
            return
        if server.process.poll() is not None or time.monotonic() > deadline:
            message = f"{server.kind} did not start:\n{server.log.read_text(errors='replace')[-3000:]}"
            raise RuntimeError(message)
        time.sleep(0.1)
