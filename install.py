"""What ComfyUI-Manager and SD.Next run after fetching this pack (SD.Next at every start).

Standard library only. Does nothing, quickly, if everything in requirements.txt is there; else asks pip for what is
missing. Never touches torch: the host brings its own.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path


def requirements() -> list[str]:
    """The lines of requirements.txt that name a package."""
    text = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def missing(wanted: list[str]) -> list[str]:
    """Those of `wanted` that are not installed, in any version."""

    def installed(requirement: str) -> bool:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    return [requirement for requirement in wanted if not installed(requirement)]


def main() -> int:
    """Returns pip's exit code; 0 if there was nothing to do."""
    wanted = missing(requirements())
    if not wanted:
        return 0
    print(f"DC-AE: installing {', '.join(wanted)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "pip", "install", *wanted], check=False).returncode
    if code:
        print(f"DC-AE: pip could not install {', '.join(wanted)}: install them by hand.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
