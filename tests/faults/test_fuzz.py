"""200 mutations of each kind of foreign file; `fuzz.py` reads any number of them, and says what counts as wrong."""

from __future__ import annotations

import pytest

from tests.faults.fuzz import READERS, run

pytestmark = pytest.mark.drill
CASES = 200


@pytest.mark.timeout(300)
@pytest.mark.parametrize("reader", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(reader, tmp_path):
    """Nothing is executed or written outside, memory stays bounded, and nothing else comes out."""
    found = run(reader, range(CASES), tmp_path)
    assert not found.wrong
    assert found.ends.total() == CASES
    assert found.ends["refused"] > CASES / 20, "mutations that no reader minds test nothing"
