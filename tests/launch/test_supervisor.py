"""Real processes, supervised: restarts by exit code, signals, and nothing left behind."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pcls.errors import PclsError, UserError
from pcls.launch.policy import Policy
from pcls.launch.supervisor import Command, free_port, supervise

QUICK = Policy(max_restarts=3, first_delay=0.01, longest_delay=0.02, grace=20.0)


@pytest.fixture
def run(tmp_path):
    """A function that supervises commands and returns the code and what was said."""

    def supervised(*commands, policy=QUICK, progress=lambda: 0, alone=False):
        said = []
        code = supervise(lambda: commands, policy, progress, alone=alone, say=said.append, rng=random.Random(0))
        return code, said

    return supervised


def starts(path: Path) -> int:
    return len(path.with_suffix(".starts").read_text().splitlines())


def after_a(folder: Path) -> dict[str, str]:
    """The environment of a process that waits until process a hears signals."""
    return {"WAIT_FOR": str(folder / "a.ready")}


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_all_done_at_once_is_0_without_a_restart(run, stub, tmp_path):
    code, said = run(stub("a", "exit:0"), stub("b", "exit:0"))
    assert code == 0
    assert said == [f"[0] {tmp_path / 'a'} says exit 0"]
    assert (starts(tmp_path / "a"), starts(tmp_path / "b")) == (1, 1)


def test_after_42_all_start_again_and_the_logs_go_on(run, stub, tmp_path):
    code, said = run(stub("a", "exit:42", "exit:0"), stub("b", "exit:42", "exit:0"))
    assert code == 0
    assert (starts(tmp_path / "a"), starts(tmp_path / "b")) == (2, 2)
    assert "process 0 ended with exit code 42; starting all again in 0.0 s (1 of 3)" in said
    name = tmp_path / "b"
    assert (tmp_path / "logs" / "b.log").read_text().splitlines() == [
        "== start 1",
        f"{name} says exit 42",
        "== start 2",
        f"{name} says exit 0",
    ]
    assert not any("b says" in line for line in said)


def test_a_killed_process_ends_the_others_and_all_start_again(run, stub, tmp_path):
    code, said = run(stub("a", "obey:0", "exit:0"), stub("b", "kill:9", "exit:0", env=after_a(tmp_path)))
    assert code == 0
    assert (starts(tmp_path / "a"), starts(tmp_path / "b")) == (2, 2)
    assert any(line.startswith("process 1 was ended by SIGKILL; starting all again") for line in said)


def test_a_process_that_hangs_when_another_died_is_killed_after_the_grace_period(run, stub, tmp_path):
    began = time.monotonic()
    policy = Policy(max_restarts=3, first_delay=0.01, longest_delay=0.01, grace=0.5)
    code, _ = run(stub("a", "ignore:", "exit:0"), stub("b", "kill:9", "exit:0", env=after_a(tmp_path)), policy=policy)
    assert code == 0
    assert 0.5 <= time.monotonic() - began < 10
    assert starts(tmp_path / "a") == 2


@pytest.mark.parametrize("final", [2, 43])
def test_the_users_mistake_and_divergence_end_all_without_a_restart(run, stub, tmp_path, final):
    code, said = run(stub("a", "obey:42"), stub("b", f"exit:{final}", env=after_a(tmp_path)))
    assert code == final
    assert (starts(tmp_path / "a"), starts(tmp_path / "b")) == (1, 1)
    assert said[-1] == f"process 1 ended with exit code {final}; not started again"


def test_a_bug_is_final_for_a_process_alone_and_a_lost_peer_for_several(run, stub, tmp_path):
    assert run(stub("a", "exit:1", "exit:0"), alone=True)[0] == 1
    assert starts(tmp_path / "a") == 1
    env = {"WAIT_FOR": str(tmp_path / "c.ready")}
    assert run(stub("b", "exit:1", "exit:0", env=env), stub("c", "obey:0", "exit:0"))[0] == 0
    assert starts(tmp_path / "b") == 2


def test_restarts_without_progress_have_an_end(run, stub, tmp_path):
    with pytest.raises(PclsError) as caught:
        run(stub("a", "exit:42"), alone=True)
    assert caught.value.exit_code == 1
    assert str(caught.value) == (
        "process 0 ended with exit code 42; given up after 3 restarts without a new checkpoint; "
        f"see {tmp_path / 'logs' / 'a.log'}"
    )
    assert starts(tmp_path / "a") == 4


def test_restarts_after_progress_are_not_counted_together(run, stub, tmp_path):
    steps = itertools.chain([-1, 10, 20, 20, 30, 40, 40, 40], itertools.repeat(40))
    with pytest.raises(PclsError, match="given up after 3 restarts"):
        run(stub("a", "kill:9"), alone=True, progress=lambda: next(steps))
    # Saved: 10, 20, 20 (1 in a row more), 30, 40, then three starts in vain.
    assert starts(tmp_path / "a") == 8


def test_delays_grow_and_come_from_the_given_chance(run, stub):
    policy = Policy(max_restarts=2, first_delay=0.2, longest_delay=10.0, grace=5.0)
    began = time.monotonic()
    with pytest.raises(PclsError):
        run(stub("a", "exit:42"), alone=True, policy=policy)
    rng = random.Random(0)
    assert time.monotonic() - began >= policy.delay(1, rng) + policy.delay(2, rng)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_the_code_of_the_processes_returned(run, stub, tmp_path, number):
    def ask():
        wait_until(lambda: (tmp_path / "a.ready").exists() and (tmp_path / "b.ready").exists())
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask)
    thread.start()
    code, said = run(stub("a", "obey:42"), stub("b", "obey:42"))
    thread.join()
    assert code == 42
    assert (tmp_path / "a.signals").read_text() == (tmp_path / "b.signals").read_text() == f"{number.name}\n"
    assert (starts(tmp_path / "a"), starts(tmp_path / "b")) == (1, 1)
    assert said[-1].endswith("not started again")


def test_who_does_not_listen_is_killed_after_the_grace_period(run, stub, tmp_path):
    def ask():
        wait_until((tmp_path / "a.ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    code, _ = run(stub("a", "ignore:"), alone=True, policy=Policy(grace=0.3))
    thread.join()
    assert code == 137
    assert (tmp_path / "a.signals").read_text() == "SIGTERM\n"


def test_a_second_signal_kills_at_once(run, stub, tmp_path):
    def ask():
        wait_until((tmp_path / "a.ready").exists)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until((tmp_path / "a.signals").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=ask)
    thread.start()
    began = time.monotonic()
    code, _ = run(stub("a", "ignore:"), alone=True, policy=Policy(grace=600.0))
    thread.join()
    assert code == 137
    assert time.monotonic() - began < 30


def test_a_signal_during_the_delay_ends_the_waiting(run, stub, tmp_path):
    def ask():
        wait_until((tmp_path / "a.starts").exists)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    began = time.monotonic()
    code, _ = run(stub("a", "exit:42"), alone=True, policy=Policy(first_delay=600.0, longest_delay=600.0))
    thread.join()
    assert code == 42
    assert time.monotonic() - began < 30
    assert starts(tmp_path / "a") == 1


def test_signal_handlers_are_as_they_were(run, stub):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    run(stub("a", "exit:0"), alone=True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_what_a_process_left_running_is_ended(run, stub, tmp_path):
    assert run(stub("a", "child:0"), alone=True)[0] == 0
    pid = int((tmp_path / "a.child").read_text())
    wait_until(lambda: gone(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="the tie to the parent is Linux's")
def test_no_process_outlives_a_supervisor_that_was_killed(stub, tmp_path):
    command = stub("a", "ignore:")
    program = (
        "import random, sys\n"
        "from pathlib import Path\n"
        "from pcls.launch.policy import Policy\n"
        "from pcls.launch.supervisor import Command, supervise\n"
        f"command = Command({command.argv!r}, Path({str(command.log)!r}))\n"
        "supervise(lambda: [command], Policy(), lambda: 0, alone=True, say=print, rng=random.Random())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL) as supervisor:
        try:
            wait_until((tmp_path / "a.ready").exists)
            pid = int((tmp_path / "a.starts").read_text())
            assert not gone(pid)
        finally:
            supervisor.kill()
    wait_until(lambda: gone(pid))


def test_a_program_that_is_missing_is_named_and_nobody_is_left(run, stub, tmp_path):
    missing = Command((str(tmp_path / "no-such-program"),), tmp_path / "logs" / "b.log")
    with pytest.raises(UserError, match="no-such-program: cannot be started"):
        run(stub("a", "ignore:"), missing)
    wait_until(lambda: not (tmp_path / "a.starts").exists() or gone(int((tmp_path / "a.starts").read_text())))


def test_what_stops_at_the_end_of_its_input_gets_no_signal(run, tmp_path):
    script = 'touch ready; trap "echo SIGTERM" TERM; cat > /dev/null; echo ended; exit 42'
    command = Command(("bash", "-c", f"cd {tmp_path}; {script}"), tmp_path / "a.log", stops_at_eof=True)

    def ask():
        wait_until((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    code, said = run(command, alone=True)
    thread.join()
    assert code == 42
    assert said[:-1] == ["[0] ended"]


def test_a_free_port_is_free_and_another_each_time():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1
    assert all(1024 <= port <= 65535 for port in ports)
