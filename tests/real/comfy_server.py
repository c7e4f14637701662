"""A real ComfyUI as a subprocess with the pack linked in, and what one run of a prompt showed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from tests.real.socket_client import WebSocket

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = REPOSITORY / "workflows"
PROMPTS = sorted((WORKFLOWS / "api").glob("*.json"))
SETTINGS = {  # no tour, nothing over the graph
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
}
PATIENCE = 300.0  # seconds without a message, and until the server answers

Prompt = dict[str, dict[str, Any]]


@dataclass
class Run:
    """Everything that the server said about one prompt.

    Args:
        id: the prompt's.
        status: success, error or interrupted.
        executed: ids of the nodes that ran, in order; a node that was taken from the cache is not among them.
        progress: (node, value, max), in order.
        texts: (node, text, node that ran), in order: what nodes show before they have ended.
        previews: pictures that were sent on the way.
        outputs: what nodes show, by node id.
        error: data of execution_error.
        seconds: from sending to the end.
    """

    id: str
    status: str = ""
    executed: list[str] = field(default_factory=list)
    progress: list[tuple[str, float, float]] = field(default_factory=list)
    texts: list[tuple[str, str, str]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def kinds(self, prompt: Prompt) -> list[str]:
        """Classes of the nodes that ran."""
        return [prompt[node]["class_type"] for node in self.executed]


class RefusedError(Exception):
    """The server refused a prompt before running it; `answer` is what it said."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer))
        self.answer = answer

    def messages(self) -> list[str]:
        """What every bad input was told."""
        errors = [error for node in self.answer["node_errors"].values() for error in node["errors"]]
        return [f"{error['message']}: {error['details']}" for error in errors]


class ComfyServer:
    """ComfyUI on a port of its own, with nothing but the pack and a probe in it.

    Args:
        tree: ComfyUI's folder.
        python: the interpreter with ComfyUI's packages.
        base: an empty folder for models, input, output and everything else that the server writes.
        port: where it listens.
        flags: of ComfyUI's command line, besides those that every test has.
    """

    def __init__(self, tree: Path, python: str, base: Path, port: int, flags: Sequence[str] = ()) -> None:
        self.base, self.port, self.log = base, port, base / "server.log"
        self.said_at_start = ""  # what the log holds when the server first answers
        for folder in ("custom_nodes", "input", "models", "user/default", "out"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes" / "g2tr").symlink_to(REPOSITORY, target_is_directory=True)
        (base / "custom_nodes" / "g2tr_probe").symlink_to(Path(__file__).parent / "probe", target_is_directory=True)
        (base / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS))
        options = ["--cpu", "--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        options += ["--port", str(port), "--base-directory", str(base), "--output-directory", str(base / "out")]
        options += ["--temp-directory", str(base), "--user-directory", str(base / "user"), *flags]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "main.py", *options],
                cwd=tree,  # with the repository as cwd, ComfyUI's own `import nodes` would find ours
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.memory = psutil.Process(self.process.pid)

    def wait_until_ready(self) -> None:
        """Return when the server answers; fail with its log when it dies."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                self.said_at_start = self.log.read_text()
                return
            except OSError:
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def fetch(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """GET, or POST with a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            content: bytes = response.read()
        return content

    def get(self, path: str) -> Any:
        """GET, as JSON."""
        return json.loads(self.fetch(path))

    def image(self, entry: dict[str, str]) -> Image.Image:
        """A picture that a node saved, from its entry in the outputs."""
        query = urllib.parse.urlencode(entry)
        return Image.open(BytesIO(self.fetch(f"/view?{query}"))).convert("RGB")

    def free(self) -> None:
        """What the buttons "unload models" and "free memory" do; returns when it is done, or is not going to be."""
        self.fetch("/free", {"unload_models": True, "free_memory": True})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.probe()["ManagedModel"]:
            time.sleep(0.5)

    def run(self, prompt: Prompt, *, on_progress: Callable[[Run], None] | None = None) -> Run:
        """Run an API prompt to its end, listening.

        Args:
            prompt: what `workflows/api` holds.
            on_progress: called at every progress message, for example to cancel.

        Raises:
            RefusedError: the server did not accept it.
        """
        client = uuid.uuid4().hex
        listener = WebSocket(self.port, f"/ws?clientId={client}", PATIENCE)
        try:
            listener.send(json.dumps({"type": "feature_flags", "data": {}}))
            start = time.monotonic()
            body = {"prompt": prompt, "client_id": client, "extra_data": {"preview_method": "latent2rgb"}}
            try:
                accepted = json.loads(self.fetch("/prompt", body))
            except urllib.error.HTTPError as error:
                raise RefusedError(json.loads(error.read())) from error
            if accepted["node_errors"]:
                raise RefusedError(accepted)
            run = Run(accepted["prompt_id"])
            while not run.status:
                self._note(listener.receive(), run, on_progress)
            run.seconds = time.monotonic() - start
            return run
        finally:
            listener.close()

    def interrupt(self) -> None:
        """Cancel what runs."""
        self.fetch("/interrupt", {})

    def probe(self) -> dict[str, Any]:
        """What is alive inside the server (see `probe/`)."""
        seen: dict[str, Any] = self.get("/g2tr_probe")
        return seen

    def _note(self, message: str | bytes, run: Run, on_progress: Callable[[Run], None] | None) -> None:
        if isinstance(message, bytes):
            run.previews.append(Image.open(BytesIO(message[8:])).convert("RGB"))
            return
        event = json.loads(message)
        kind, data = event["type"], event["data"]
        if data.get("prompt_id") != run.id:
            return
        if kind == "executing" and data["node"] is not None:
            run.executed.append(data["node"])
        elif kind == "execution_cached":
            cached = set(data["nodes"])
            run.executed = [node for node in run.executed if node not in cached]
        elif kind == "progress":
            run.progress.append((data["node"], data["value"], data["max"]))
            if on_progress is not None:
                on_progress(run)
        elif kind == "g2tr_text":
            run.texts.append((data["node"], data["text"], run.executed[-1]))
        elif kind == "executed":
            run.outputs[data["node"]] = data["output"]
        elif kind == "execution_success":
            run.status = "success"
        elif kind == "execution_interrupted":
            run.status = "interrupted"
        elif kind == "execution_error":
            run.status, run.error = "error", data


def python_of(tree: Path) -> str:
    """The interpreter to start ComfyUI with: COMFYUI_PYTHON, the tree's own environment, or this one."""
    own = tree / ".venv" / "bin" / "python"
    return os.environ.get("COMFYUI_PYTHON") or (str(own) if own.exists() else sys.executable)


@contextmanager
def server_of_the_environment(folder: Path, *flags: str) -> Iterator[ComfyServer]:
    """A running ComfyUI of the tree that COMFYUI_PATH names, on a free port; it writes into `folder`."""
    tree = Path(os.environ["COMFYUI_PATH"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = ComfyServer(tree, python_of(tree), folder / "base", port, flags)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()
