"""DC-AE in SD.Next: choosing one as the VAE, and what goes with it. `install()` is called when scripts are loaded."""

from __future__ import annotations

from . import host

__all__ = ["install"]


def install() -> None:
    """Hooks into SD.Next; where this SD.Next lacks something that is needed, says so in the log and leaves it alone."""
    absent = host.absent()
    if absent:
        host.log.error(
            f"DC-AE: this version of SD.Next has no {', '.join(absent)}, so the extension is off and VAEs work as "
            "without it. Look for a newer version of the extension."
        )
        return
    from . import hooks  # only now: these modules use what `absent` looked for

    hooks.install()
