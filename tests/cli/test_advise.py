"""`pcls advise`."""

import pytest

from pcls.cli.advise import budget_seconds
from pcls.errors import UserError


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5 h", 5400), ("2d", 172800)])
def test_a_budget_is_a_number_and_a_unit(text, seconds):
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "0h", "-1h", "3 weeks", "nan h", ""])
def test_any_other_budget_is_refused(text):
    with pytest.raises(UserError, match="a number and a unit are needed"):
        budget_seconds(text)
