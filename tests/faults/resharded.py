"""`pcls`, and a log of what it goes on with: `python resharded.py LOG ARGUMENTS`.

The first line is the digest over all leaves of the state as training begins, which `pcls checkpoints verify --digest`
prints of a step on disk; then the records of each step, those of this process.
"""

import json
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from pcls.checkpoint.manifest import leaf_of, state_digest
from pcls.checkpoint.store import named_leaves
from pcls.cli import main
from pcls.run import session

place, train = session.Session.place, session.Session.train


def tell(value):
    os.write(log, (json.dumps(value) + "\n").encode())


def whole(leaf):
    """The array, gathered from all processes."""
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def placed(self, batch):
    for records in batch.record.reshape(-1, batch.record.shape[-1]):
        tell(records.tolist())
    return place(self, batch)


def trained(self, state, first):
    leaves = {name: leaf_of(whole(leaf)) for name, leaf in named_leaves(state).items()}
    tell({"digest": state_digest(leaves), "devices": len(jax.devices()), "processes": jax.process_count()})
    return train(self, state, first)


# Processes that read images import this file once more.
if __name__ == "__main__":
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    session.Session.place, session.Session.train = placed, trained
    sys.exit(main(sys.argv[2:]))
