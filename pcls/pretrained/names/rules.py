"""How a library names the tensors of a family of models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A regular expression over a path of pcls, such as `stages/0/1/conv1/kernel`, and what stands there instead.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# torch has one name for what is multiplied, and another for running statistics.
_LEAVES: Sequence[Rule] = (
    (r"/(kernel|scale)$", r"/weight"),
    (r"/mean$", r"/running_mean"),
    (r"/var$", r"/running_var"),
)


@dataclass(frozen=True)
class Names:
    """One library's names for a family.

    Attributes:
      rules: applied one after the other to a path of pcls; then leaves get torch's names, and `/` becomes `.`.
      pointwise: the keys of tensors that the library holds with a height and a width of 1 (dense kernels as 1 x 1
        convolutions, scales that a map is multiplied by); None: none.
    """

    rules: Sequence[Rule]
    pointwise: str | None = None

    def key(self, path: str) -> str:
        """Of a parameter or statistic; `stages/0/1/conv1/kernel` is `layer1.1.conv1.weight`."""
        for pattern, replacement in (*self.rules, *_LEAVES):
            path = re.sub(pattern, replacement, path)
        return path.replace("/", ".")

    def is_pointwise(self, key: str) -> bool:
        """Whether the library holds this tensor with a height and a width of 1."""
        return self.pointwise is not None and re.search(self.pointwise, key) is not None


def counted(name: str, first: int) -> Callable[[re.Match[str]], str]:
    """Replaces a number by a name and that number, counted from `first`."""
    return lambda match: f"{name}{int(match[1]) + first}/"
