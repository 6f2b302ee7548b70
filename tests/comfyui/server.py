"""A real ComfyUI for tests: started headless on the CPU, with this pack linked into it, and talked to as users do.

Run as a program (`nox -s comfyui`) it starts one to try by hand.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import struct
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from tests.servers import LOADED, PACK, HostServer, python_of
from tests.signals import end_once

# Tests expect the numbers of fp32, which "auto" is on most CPUs, but not on those with instructions for bf16.
FP32 = ("--fp32-vae",)
PREVIEW_IMAGE = 1  # what a binary message of ComfyUI's begins with


class Rejected(Exception):
    """ComfyUI refused a workflow before running any of it (HTTP 400).

    `node_errors` maps node ids to what is wrong there, as the server said it; it is empty when no single node is at
    fault, as in a workflow without outputs.
    """

    def __init__(self, answer: Mapping[str, Any]):
        self.node_errors: dict[str, Any] = dict(answer.get("node_errors") or {})
        super().__init__(json.dumps(answer, indent=2))


@dataclass(frozen=True)
class NodeError:
    """What a node raised while a workflow ran."""

    message: str
    type: str
    node_id: str
    node_type: str
    traceback: str


@dataclass
class Result:
    """What became of a workflow.

    `outputs` maps node ids to what those nodes showed; `images` are the files among it, in the order of node ids.
    `events` are the server's messages while it ran, as (name, data): progress and the order of nodes are in there.
    `previews` are the pictures that samplers showed meanwhile.
    """

    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: list[Path] = field(default_factory=list)
    error: NodeError | None = None
    interrupted: bool = False
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)

    @property
    def lines(self) -> dict[str, str]:
        """What our nodes said of their runs in the page, by node ids."""
        return {data["node"]: data["text"] for name, data in self.events if name == "dcae.line"}


class Server(HostServer):
    """One ComfyUI, from `start()` to `stop()` or as a context manager.

    The pack is linked into `custom_nodes` as `pack_name`: by default a name that is no Python identifier, as people
    have them; `others` are more folders of custom nodes, each under its own name. `base` holds models, input, output,
    temp and user; without one a temporary folder does, and goes at `stop()`. `args` are further arguments of ComfyUI's
    command line, `environ` further environment variables.
    """

    name = "ComfyUI"

    def __init__(
        self,
        *,
        env: Path | None = None,
        base: Path | None = None,
        pack: Path | None = LOADED,
        pack_name: str = "My-DCAE_pack",
        others: Sequence[Path] = (),
        port: int = 0,
        args: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ):
        super().__init__(env or default_env(), base, port, "comfyui.log")
        self.packs = {pack_name: pack} if pack else {}
        self.packs |= {path.name: path for path in others}
        self.pack_name = pack_name
        self.args, self.environ = list(args), dict(environ or {})
        self.startup_log = ""

    def start(self, timeout: float = 240) -> Server:
        """Start it and wait until it answers; RuntimeError with the end of its log if it does not."""
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                self.stop()
                raise RuntimeError(f"Something else listens on port {self.port}.")
        for folder in ("custom_nodes", "models/vae", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, pack in self.packs.items():
            link = self.base / "custom_nodes" / name
            if not link.exists():
                link.symlink_to(pack, target_is_directory=True)
        command = [python_of(self.env), comfyui_of(self.env) / "main.py", "--cpu", "--base-directory", self.base]
        command += ["--listen", "127.0.0.1", "--port", self.port, "--disable-auto-launch", "--disable-api-nodes"]
        command += ["--database-url", "sqlite:///:memory:", *self.args]
        self.launch(command, self.base, self.environ, timeout)
        self.startup_log = self.log()
        return self

    def is_ready(self) -> bool:
        return requests.get(f"{self.url}/system_stats", timeout=10).ok

    def get(self, path: str) -> requests.Response:
        """GET a path such as `/extensions`; a status that means failure is an exception."""
        answer = requests.get(self.url + path, timeout=60)
        answer.raise_for_status()
        return answer

    def object_info(self, node_id: str) -> dict[str, Any]:
        """What the server tells of a node: inputs, outputs, category. KeyError if it does not know the node."""
        return self.get(f"/object_info/{node_id}").json()[node_id]

    def upload_image(self, path: Path) -> str:
        """Put an image file where LoadImage finds it; returns the name to give LoadImage."""
        with open(path, "rb") as file:
            answer = requests.post(f"{self.url}/upload/image", files={"image": file}, timeout=60)
        answer.raise_for_status()
        return answer.json()["name"]

    def interrupt(self) -> None:
        """Ask the workflow that runs now to stop."""
        requests.post(f"{self.url}/interrupt", timeout=60).raise_for_status()

    def run(self, prompt: Mapping[str, Any], timeout: float = 600, reported=None) -> Result:
        """Run a workflow in API format to its end; `Rejected` if the server refuses it.

        What a node raises is no exception here: it is in `Result.error`. TimeoutError after `timeout` seconds.
        `reported(name, data)` is called with each of its messages as it comes.
        """
        import websocket  # here: ComfyUI's own environment, which starts this file as a program, has none

        client, deadline, result = uuid.uuid4().hex, time.monotonic() + timeout, Result()
        socket_ = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=60)
        try:
            answer = requests.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": client}, timeout=60)
            if answer.status_code == 400:
                raise Rejected(answer.json())
            answer.raise_for_status()
            prompt_id = answer.json()["prompt_id"]
            for name, data in self._events(socket_, deadline):
                if name == "preview":
                    result.previews.append(data["picture"])
                if data.get("prompt_id") != prompt_id:
                    continue
                result.events.append((name, data))
                if reported:
                    reported(name, data)
                if name == "execution_error":
                    result.error = NodeError(
                        message=data["exception_message"],
                        type=data["exception_type"],
                        node_id=data["node_id"],
                        node_type=data["node_type"],
                        traceback="".join(data["traceback"]),
                    )
                elif name == "execution_interrupted":
                    result.interrupted = True
                elif name == "executing" and data["node"] is None:
                    break
        finally:
            socket_.close()
        result.outputs = self.get(f"/history/{prompt_id}").json()[prompt_id]["outputs"]
        result.images = [
            self.base / image["type"] / image["subfolder"] / image["filename"]
            for _, shown in sorted(result.outputs.items(), key=lambda item: (len(item[0]), item[0]))
            for image in shown.get("images", [])
        ]
        return result

    def _events(self, socket_: Any, deadline: float):
        """The server's messages, as they come; a preview is ("preview", {"picture": ...})."""
        import websocket

        while True:
            socket_.settimeout(5)
            try:
                message = socket_.recv()
            except websocket.WebSocketTimeoutException:
                message = None
            except websocket.WebSocketConnectionClosedException:
                raise RuntimeError(f"ComfyUI closed the connection. {self.tail()}") from None
            if isinstance(message, str) and message:
                event = json.loads(message)
                yield event["type"], event["data"]
            elif isinstance(message, bytes) and struct.unpack_from(">I", message) == (PREVIEW_IMAGE,):
                # Then the format (JPEG or PNG) as a number, then the file.
                yield "preview", {"picture": Image.open(io.BytesIO(message[8:])).convert("RGB")}
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while it ran a workflow. {self.tail()}")
            if time.monotonic() > deadline:
                self.interrupt()
                raise TimeoutError(f"The workflow did not end in time. {self.tail()}")


def default_env() -> Path:
    """Where nox has put ComfyUI's environment."""
    return Path(os.environ.get("DCAE_COMFYUI_ENV") or PACK / ".nox" / "comfyui-env")


def comfyui_of(env: Path) -> Path:
    """The folder of the ComfyUI that runs in an environment: $DCAE_COMFYUI_PATH names another than its own."""
    return Path(os.environ.get("DCAE_COMFYUI_PATH") or env / "comfyui").resolve()


def main() -> None:
    """Start a ComfyUI, say where it is, and show its log until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="nox -s comfyui --", description="Start a ComfyUI with this pack in it.")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--base", type=Path, help="folder of models, input and output; kept (default: a temporary one)")
    options, others = parser.parse_known_args()
    end_once()
    server = Server(port=options.port, base=options.base, args=others)
    print(f"ComfyUI starts in {server.base} ...", flush=True)
    try:
        server.start()
        print(f"{server.startup_log}\nReady: {server.url}   (Ctrl-C ends it)", flush=True)
        with server.log_file.open(errors="replace") as log:
            log.seek(len(server.startup_log.encode()))
            while server.process.poll() is None:
                print(log.read(), end="", flush=True)
                time.sleep(0.5)
    except KeyboardInterrupt:
        pass
    except RuntimeError as error:
        sys.exit(str(error))
    finally:
        server.stop()


if __name__ == "__main__":
    main()
