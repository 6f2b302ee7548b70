"""DC-AE in SD.Next: a DC-AE can be chosen as the VAE. `install()` is called when SD.Next loads scripts."""

from __future__ import annotations

from . import host

__all__ = ["install"]


def install() -> None:
    """Install the hooks into SD.Next. If SD.Next lacks a symbol they need, log an error and change nothing."""
    absent = host.absent()
    if absent:
        host.log.error(
            f"DC-AE: this version of SD.Next has no {', '.join(absent)}, so the extension is off and VAEs work as "
            "without it. Look for a newer version of the extension."
        )
        return
    from . import hooks  # only now: these modules use what `absent` looked for

    hooks.install()
