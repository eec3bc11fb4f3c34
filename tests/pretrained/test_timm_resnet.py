"""Residual networks beside timm's, to the digit."""

import pytest

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnet18d", "resnet50d", "resnext50_32x4d", "wide_resnet50_2"]
)
def test_it_computes_what_timm_does(gate, name):
    gate(name)


def test_an_odd_size_too(gate):
    gate("resnet18d", sizes=(65,))
