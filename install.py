"""Install the missing requirements. ComfyUI-Manager runs this after fetching the pack, SD.Next at every start.

Uses the standard library only. Returns quickly if every package of requirements.txt is installed. Never installs torch,
which the host provides.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path


def requirements() -> list[str]:
    """Return the lines of requirements.txt that name a package."""
    text = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def missing(required: list[str]) -> list[str]:
    """Return those of `required` that are not installed in any version."""

    def installed(requirement: str) -> bool:
        name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    return [requirement for requirement in required if not installed(requirement)]


def main() -> int:
    """Return pip's exit code, or 0 if nothing is missing."""
    packages = missing(requirements())
    if not packages:
        return 0
    print(f"DC-AE: installing {', '.join(packages)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "pip", "install", *packages], check=False).returncode
    if code:
        print(f"DC-AE: pip could not install {', '.join(packages)}: install them by hand.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
