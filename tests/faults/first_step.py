"""`pcls`, and a line of JSON on the memory of the first step of its training: `python first_step.py ARGUMENTS`.

`state`: bytes of the state that the step is given; `arrays`: of all arrays on the devices as it begins; `left`: of that
state after it; `peak`: the most memory that the process had while it ran.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import jax

from pcls.cli import main
from pcls.run import session

loop = session.train_loop


def peak() -> int:
    """In bytes, since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def size(arrays) -> int:
    """In bytes; arrays that share their memory count once."""
    shards = [shard.data for array in arrays for shard in array.addressable_shards]
    return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())


def measured(state, step_of, *rest):
    def first(given, batch):
        leaves = jax.tree.leaves(given)
        gc.collect()
        told = {"state": size(leaves), "arrays": size(jax.live_arrays())}
        # What the C library has kept of memory that was given back to it depends on what was read before, and how.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        found = jax.block_until_ready(train(given, batch))
        told |= {"left": size(leaf for leaf in leaves if not leaf.is_deleted()), "peak": peak()}
        print(json.dumps(told), flush=True)
        return found

    def measured_first(step, count):
        nonlocal train
        if train is not None:
            return step_of(step, count)
        train = step_of(step, count)
        return first

    train = None
    return loop(state, measured_first, *rest)


session.train_loop = measured
sys.exit(main(sys.argv[1:]))
