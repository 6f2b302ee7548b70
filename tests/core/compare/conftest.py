import pytest

from dcae_core import metrics
from dcae_core.compare.run import Cell, Column, Comparison, Row


@pytest.fixture
def one_result() -> Comparison:
    """A picture and one result, and one more model that failed; names that HTML has to escape."""
    from tests.core.compare.vaes import photograph  # imports diffusers

    picture = photograph(96, 200)
    result = (picture + 0.03).clamp(0, 1)
    kept = metrics.scores(picture, result)
    cell = Cell(kept, 1.25, 2.5, 3 << 30, (32, 4, 7), 1792, 0.75, result=result)
    failed = Column("<u>broken", error="it <i>broke")
    return Comparison([Row("a", 200, 96, picture=picture)], [Column("<b>bold", cells=[cell]), failed], ["<s>note"])
