"""A real SD.Next for tests, on the CPU, with this pack among its extensions. Tests use its API.

As a program (`nox -s sdnext`) it starts one to try by hand. Its sources are those of $SDNEXT_PATH,
its Python that of $DCAE_SDNEXT_ENV.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from tests.servers import PACK, HostServer, python_of
from tests.signals import end_once

MODEL = "tiny_sana_diffusers"
OPTIONS = {
    "offline_mode": True,
    "samples_format": "png",
    "samples_save": False,
    "sd_model_checkpoint": f"Diffusers/{MODEL}",
    "sd_checkpoint_autoload": True,
    "diffusers_offload_mode": "none",
    "show_progress_type": "None",
    "cuda_dtype": "FP32",
}


class RequestFailed(Exception):
    """SD.Next answered a request with an error. The text is its answer."""


class Server(HostServer):
    """One SD.Next, from `start()` to `stop()` or as a context manager.

    data: its data folder; None is a temporary one, which `stop()` deletes. options: settings to write before it starts.
    pack: the folder to link into its extensions as `pack_name`; None is a stock SD.Next.
    """

    name = "SD.Next"

    def __init__(
        self,
        *,
        sources: Path | None = None,
        env: Path | None = None,
        data: Path | None = None,
        pack: Path | None = PACK,
        pack_name: str = "dcae",
        port: int = 0,
        options: Mapping[str, Any] | None = None,
    ):
        self.sources = sources or Path(os.environ["SDNEXT_PATH"])
        super().__init__(env or Path(os.environ["DCAE_SDNEXT_ENV"]), data, port, "console.log")
        self.data = self.base
        self.pack, self.pack_name = pack, pack_name
        self.options = {**OPTIONS, **(options or {})}
        self.vae_folder = self.data / "models" / "VAE"
        self.model_folder = self.data / "models" / "Diffusers" / MODEL
        self.prepare()

    def prepare(self) -> None:
        """Make the data folder, with the tiny models in it."""
        (self.data / "extensions").mkdir(parents=True, exist_ok=True)
        self.vae_folder.mkdir(parents=True, exist_ok=True)
        link = self.data / "extensions" / self.pack_name
        if self.pack and not link.exists():
            link.symlink_to(self.pack, target_is_directory=True)
        if not (self.model_folder / "model_index.json").exists():
            self.model_folder.parent.mkdir(parents=True, exist_ok=True)
            script = PACK / "tests" / "tiny_models.py"
            command = [python_of(self.env), script, self.model_folder.parent, self.vae_folder]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"The tiny models could not be made:\n{result.stderr[-3000:]}")
        (self.data / "config.json").write_text(json.dumps(self.options))

    def start(self, timeout: float = 300) -> Server:
        """Start it and wait until it answers and has its model. Raises RuntimeError with the end of its log."""
        command = [python_of(self.env), "launch.py", "--skip-all", "--server-name", "127.0.0.1", "--port", self.port]
        command += ["--data-dir", self.data, "--theme", "standard/black-teal", "--log", self.data / "sdnext.log"]
        fixed = {"TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        caches = {"HF_HOME": str(self.data / "hf"), "DCAE_HOME": str(self.data / "dcae")}
        self.launch(command, self.sources, {**fixed, **caches}, timeout)
        return self

    def is_ready(self) -> bool:
        return requests.get(f"{self.url}/sdapi/v1/options", timeout=10).ok and "Startup time" in self.log()

    def get(self, path: str) -> Any:
        """GET a path and return its JSON. Raises RequestFailed."""
        return json_of(requests.get(self.url + path, timeout=300))

    def post(self, path: str, body: Any = None) -> Any:
        """POST JSON to a path and return its JSON. Raises RequestFailed."""
        return json_of(requests.post(self.url + path, json=body, timeout=600))

    def set(self, **options: Any) -> dict[str, bool]:
        """Change settings. Return {name: whether it changed}, as SD.Next reports it."""
        updated = self.post("/sdapi/v1/options", options)["updated"]
        return {name: changed for entry in updated for name, changed in entry.items()}

    def vaes(self) -> dict[str, str]:
        """Return the VAE list as {name: path}."""
        self.post("/sdapi/v1/refresh-vae")
        return {entry["model_name"]: entry["filename"] for entry in self.get("/sdapi/v1/sd-vae")}

    def status(self) -> dict[str, Any]:
        """Return the pack's status of the VAE in use."""
        return self.get("/dcae/v1/vae")

    def txt2img(self, **body: Any) -> tuple[list[Image.Image], str]:
        """Return pictures and the infotext of the first. Raises RequestFailed."""
        return self._pictures("/sdapi/v1/txt2img", body)

    def img2img(self, image: Image.Image, **body: Any) -> tuple[list[Image.Image], str]:
        """Return pictures that start from `image`, and the infotext of the first. Raises RequestFailed."""
        png = io.BytesIO()
        image.save(png, "png")
        return self._pictures("/sdapi/v1/img2img", {"init_images": [base64.b64encode(png.getvalue()).decode()], **body})

    def _pictures(self, path: str, body: Mapping[str, Any]) -> tuple[list[Image.Image], str]:
        defaults = {"prompt": "a red house", "seed": 7, "steps": 4, "width": 256, "height": 128}
        response = self.post(path, defaults | dict(body))
        pictures = [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in response["images"]]
        info = json.loads(response["info"]) if response.get("info") else {}
        return pictures, (info.get("infotexts") or [""])[0]


def json_of(response: requests.Response) -> Any:
    if not response.ok:
        raise RequestFailed(f"{response.status_code}: {response.text}")
    return response.json() if response.content else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--data", type=Path, help="data folder to keep; without one a temporary one is used")
    parser.add_argument("--stock", action="store_true", help="without this pack")
    arguments = parser.parse_args()
    end_once()
    pack = None if arguments.stock else PACK
    with contextlib.suppress(KeyboardInterrupt), Server(port=arguments.port, data=arguments.data, pack=pack) as server:
        print(f"SD.Next: {server.url}, its log: {server.log_file}", flush=True)
        server.process.wait()


if __name__ == "__main__":
    main()
