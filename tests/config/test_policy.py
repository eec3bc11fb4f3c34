"""timm's names of policies, and what the augment section refuses."""

import math
import re
from pathlib import Path

import pytest
import yaml

from pcls.config import Recipe, with_overrides
from pcls.config.policy import AugMix, RandAugment, TrivialAugment, parse_policy
from pcls.errors import UserError


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("rand", RandAugment()),
        ("rand-m9-mstd0.5", RandAugment(9, deviation=0.5)),
        ("rand-m9-mstd0.5-inc1", RandAugment(9, deviation=0.5, increasing=True)),
        ("rand-m7-mstd0.5-inc1", RandAugment(7, deviation=0.5, increasing=True)),
        ("rand-m6-mstd0.5-inc1", RandAugment(6, deviation=0.5, increasing=True)),
        ("rand-m6-inc1-mstd1.0-n3", RandAugment(6, layers=3, deviation=1.0, increasing=True)),
        ("rand-m5-n2-mstd0.25-inc1", RandAugment(5, layers=2, deviation=0.25, increasing=True)),
        ("rand-m8-inc1-mstd101", RandAugment(8, deviation=math.inf, increasing=True)),
        ("rand-m7-n3-mmax12", RandAugment(7, layers=3, limit=12)),
        ("rand-m15-n2-p0.3", RandAugment(15, probability=0.3)),
        ("rand-mstd1-tweights", RandAugment(deviation=1.0, weighted=True)),
        ("augmix", AugMix()),
        ("augmix-m5-w4-d2", AugMix(5, 4, 2)),
        ("augmix-m3-a0.5-mstd1", AugMix(3, alpha=0.5, deviation=1.0)),
        ("trivial", TrivialAugment()),
    ],
)
def test_a_name_in_timms_spelling_is_a_policy(name, policy):
    assert parse_policy(name) == policy
    assert with_overrides(Recipe(), {"augment.policy": name}).augment.policy == name


RAND = "rand has the parts m, n, p, mstd, mmax, inc1, tweights"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(
            ({"augment.policy": name}, f"augment.policy is '{name}' (text); {reason}")
            for name, reason in [
                ("original", "a policy such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or trivial is needed"),
                ("RAND-m9", "a policy such as rand-m9-mstd0.5-inc1, augmix-m5-w4-d2 or trivial is needed"),
                ("rand-m9-x3", f"'x3' is unknown; {RAND}"),
                ("rand-m9--n2", f"'' is unknown; {RAND}"),
                ("rand-w0", f"'w0' is unknown; {RAND}"),
                ("rand-t3a", f"'t3a' is unknown; {RAND}"),
                ("rand-m9-inc0", f"'inc0' is unknown; {RAND}"),
                ("rand-9", f"'9' is unknown; {RAND}"),
                ("rand-m", "'m' is wrong; m is followed by a whole number from 0 to 100"),
                ("rand-m9.5", "'m9.5' is wrong; m is followed by a whole number from 0 to 100"),
                ("rand-m101", "'m101' is wrong; m is followed by a whole number from 0 to 100"),
                ("rand-n0", "'n0' is wrong; n is followed by a whole number from 1 to 10"),
                ("rand-p1.5", "'p1.5' is wrong; p is followed by a number from 0.01 to 1"),
                ("rand-mstd0..5", "'mstd0..5' is wrong; mstd is followed by a number from 0 to 999"),
                ("rand-m9-m7", "m7 says again what an earlier part said; keep one of them"),
                ("augmix-n2", "'n2' is unknown; augmix has the parts m, w, d, a, mstd"),
                ("augmix-m11", "'m11' is wrong; m is followed by a whole number from 1 to 10"),
                ("augmix-mstd101", "'mstd101' is wrong; mstd is followed by a number from 0 to 100"),
                ("augmix-d-1", "'d' is wrong; d is followed by a whole number from 1 to 10"),
                ("trivial-m9", "'m9' is unknown; trivial has no parts"),
            ]
        ),
        ({"augment.policy": "ra\nnd"}, r"augment.policy is 'ra\nnd' (text); a policy such as"),
        ({"augment.shift_padding": "reflect"}, "augment.shift_padding has no effect without augment.shift"),
        ({"augment.mix_prob": 0.5}, "augment.mix_prob has no effect without augment.mixup or augment.cutmix"),
        (
            {"augment.mixup": 0.2, "augment.switch_prob": 0.5},
            "augment.switch_prob has no effect without both augment.mixup and augment.cutmix",
        ),
        ({"augment.erase_fill": "noise"}, "augment.erase_fill has no effect without augment.erase"),
        ({"augment.erase": 1.5}, "augment.erase is 1.5 (number); a finite number >= 0 and <= 1 is needed"),
        ({"augment.hue": 0.6}, "augment.hue is 0.6 (number); a finite number >= 0 and <= 0.5 is needed"),
        ({"augment.mixup": -1}, "augment.mixup is -1 (number); a finite number >= 0 and <= 100 is needed"),
        ({"augment.shift_padding": "edge"}, 'augment.shift_padding is "edge" (text); one of zero, reflect is needed'),
        ({"evaluate.tta": "flip"}, 'evaluate.tta is "flip" (text); one of none, mirror, shift is needed'),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_what_has_no_meaning_or_no_effect_is_refused_in_a_line_that_says_what_is_allowed(overrides, message):
    with pytest.raises(UserError) as caught:
        with_overrides(Recipe(), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_recipe_of_the_page_about_augmentation_is_one():
    page = (Path(__file__).resolve().parents[2] / "docs" / "augmentation.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    keys = {
        f"{section}.{key}": value for section, values in yaml.safe_load(block).items() for key, value in values.items()
    }
    changed = with_overrides(Recipe(), keys)
    assert changed.augment.mixes and changed.augment.policy and changed.augment.erase
    named = set(re.findall(r"^\| `([a-z_`, ]+)` \|", page, re.MULTILINE))
    assert {key for row in named for key in row.split("`, `")} == set(type(changed.augment).model_fields)
