"""What the extension remembers between calls from SD.Next, apart from the VAE itself (see `hosted`)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["extension_state"]


@dataclass
class ExtensionState:
    """The state of the one extension in this process.

    tolerated_choice: a VAE name that was refused when a model loaded and is still in the settings. It is not an error
    each time SD.Next looks at it. restoring: whether the next choice is SD.Next putting a setting back after a request,
    which must not fail. last_problem: the last refusal or failure, until a choice succeeds.
    """

    tolerated_choice: str | None = None
    restoring: bool = False
    last_problem: str | None = None


extension_state = ExtensionState()
