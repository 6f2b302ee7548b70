"""How a process of the tests ends."""

import signal


def end_once() -> None:
    """Let SIGTERM end this process as Ctrl-C does, and neither disturb an end that the other began."""

    def end(*_: object) -> None:
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, signal.SIG_IGN)
        raise KeyboardInterrupt

    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, end)
