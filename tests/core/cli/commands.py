"""What tests of the command line share."""

from dcae_core.cli import main
from dcae_core.files import ASSETS

EXAMPLE = ASSETS / "example.jpg"
CPU = ["--device", "cpu", "--dtype", "fp32"]


def fails(arguments: list[str], capsys) -> str:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("dcae: ")
    assert "Traceback" not in error
    return error
