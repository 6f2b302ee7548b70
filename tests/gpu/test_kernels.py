"""The Triton kernels compile for the cards that people have, ahead of time, and fit into their registers."""

import pytest

pytest.importorskip("triton", reason="Triton has no package for this system")

from benchmarks import kernels


@pytest.mark.parametrize("card", kernels.CARDS)
def test_no_kernel_spills(card):
    """With the most channels; `benchmarks/kernels.py` has the others."""
    norms, gates = kernels.channels_in_use()
    for dtype in kernels.DTYPES:
        for name, channels, kernel in kernels.sources(card, dtype, norms[-1:], gates[-1:]):
            usage = kernels.compile_for(card, kernel)
            assert usage.spilled == 0 and usage.registers > 0, (name, channels, dtype, usage)
