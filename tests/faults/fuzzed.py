"""Feeds a parser changed files, with memory and time capped: `python fuzzed.py hypothesis|atheris PARSER COUNT FOLDER`.

Prints what became of them as JSON. Ends by an exception, a signal, or the alarm clock where a parser does what it must
not; FOLDER/input is the file that did it.
"""

import json
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

# More than any of these files is worth. Seconds of the processor, so that a busy machine is no hang; and of the clock.
MEMORY, SECONDS, CLOCK_SECONDS = 512 << 20, 5, 120

how, name, count, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
sys.path.insert(0, str(Path(__file__).parent))
counts: Counter[str] = Counter()
slowest = 0.0
before = 0


def cap_memory() -> None:
    """What the process may map beyond what its libraries have taken already."""
    global before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))


def tell() -> None:
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(json.dumps({"counts": counts, "slowest": round(slowest, 3), "mebibytes": grown}), flush=True)


def fed(feed, data: bytes) -> None:
    global slowest
    (folder / "input").write_bytes(data)
    started = time.process_time()
    counts[feed(data)] += 1
    slowest = max(slowest, time.process_time() - started)


def by_hypothesis() -> None:
    from random import Random

    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis.strategies import integers
    from mutations import changed_bytes
    from parsers import PARSERS

    parser = PARSERS[name](folder)
    for valid in parser.seeds:
        fed(parser.feed, valid)
    assert counts == {"read": len(parser.seeds)}, counts
    counts.clear()
    # The default action of both ends the process, also inside a library.
    for alarm in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(alarm, signal.SIG_DFL)

    @seed(0)
    @settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(integers(0, 2**32 - 1))
    def never_fails(number: int) -> None:
        dice = Random(number)
        change = changed_bytes if dice.random() < 0.25 else parser.change
        data = change(dice.choice(parser.seeds), dice)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)
        fed(parser.feed, data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)

    cap_memory()
    never_fails()
    tell()


def by_atheris() -> None:
    import atheris

    with atheris.instrument_imports(include=["pcls"]):
        from parsers import PARSERS
    parser = PARSERS[name](folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, valid in enumerate(parser.seeds):
        (corpus / str(number)).write_bytes(valid)

    def feed(data: bytes) -> None:
        fed(parser.feed, data)
        if sum(counts.values()) == count:
            tell()

    options = [
        f"-runs={count}",
        "-seed=1",
        f"-timeout={CLOCK_SECONDS}",
        "-rss_limit_mb=0",
        "-max_len=65536",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(corpus)], feed)
    cap_memory()
    atheris.Fuzz()


{"hypothesis": by_hypothesis, "atheris": by_atheris}[how]()
