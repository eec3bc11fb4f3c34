"""Names in Sequencer2D."""

from __future__ import annotations

import re

from pcls.pretrained.names.rules import Names

# Of torch's LSTM.
_PARTS = {"kernel": "weight_ih", "recurrent": "weight_hh", "bias": "bias_ih", "recurrent_bias": "bias_hh"}


def _direction(match: re.Match[str]) -> str:
    axis, backward, part = match.groups()
    return f"/rnn_{axis[0]}/{_PARTS[part]}_l0{'_reverse' if backward == '1' else ''}"


SEQUENCER = Names(
    (
        (r"^stem/", r"stem/proj/"),
        (r"/downsample/", r"/downsample/down/"),
        (r"/mix/", r"/rnn_tokens/"),
        (r"/union/", r"/fc/"),
        (r"/(vertical|horizontal)/([01])/(\w+)$", _direction),
        (r"/expand/", r"/mlp_channels/fc1/"),
        (r"/project/", r"/mlp_channels/fc2/"),
        (r"^head/", r"head/fc/"),
    )
)
