"""What the tests of compression share."""

import pytest

import pcls
from pcls.errors import UserError


@pytest.fixture(scope="package", autouse=True)
def few_measurements():
    """What is tested is not how fast this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcls.compression.latency.ROUNDS", 3)
        patch.setattr("pcls.compression.latency.PART_SECONDS", 0.0)
        yield


@pytest.fixture(scope="package")
def refused():
    """A function to the one line by which a compression is refused, which writes nothing."""

    def refuse(run, **options) -> str:
        before = sorted(run.rglob("*"))
        with pytest.raises(UserError) as caught:
            pcls.compress(run, **{"say": lambda text: None} | options)
        assert sorted(run.rglob("*")) == before, "something was written"
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse
