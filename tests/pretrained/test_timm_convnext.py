"""ConvNeXts beside timm's, to the digit."""

import pytest

pytestmark = pytest.mark.peer


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_nano", "convnext_tiny"])
def test_it_computes_what_timm_does(gate, name):
    gate(name)
