"""`pcls`, and a line in a log for each life's first step and each step's records: `python killed.py LOG ARGUMENTS`."""

import json
import os
import sys

from pcls.cli import main
from pcls.run import session

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
place, train = session.Session.place, session.Session.train


def tell(value):
    # One write call: a killed process leaves whole lines.
    os.write(log, (json.dumps(value) + "\n").encode())


def placed(self, batch):
    for records in batch.record.reshape(-1, batch.record.shape[-1]):
        tell(records.tolist())
    return place(self, batch)


def trained(self, state, first):
    tell(first)
    return train(self, state, first)


session.Session.place, session.Session.train = placed, trained
sys.exit(main(sys.argv[2:]))
