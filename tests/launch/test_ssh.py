"""Hosts by ssh, with a stand-in that runs the remote command here."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# As ssh: the login shell runs the command, its code is ours, and what ends our input ends its.
SSH = 'while [[ $1 == -o ]]; do shift 2; done\n[[ $1 == -- ]] || exit 9\nHOST=$2 exec sh -c "$3"\n'


@pytest.fixture
def launch(tools, tmp_path):
    """A function that starts `pcls launch ssh` on two hosts, where pcls is a bash script."""
    tools("ssh", SSH)

    def start(pcls: str, *options: str) -> subprocess.Popen[str]:
        program = tools("remote-pcls", pcls)
        words = ["launch", "ssh", "digits_cnn", "--hosts", "node1,node2", "--pcls", str(program), "--submit", *options]
        return subprocess.Popen(
            [sys.executable, "-m", "pcls", *words],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_host_joins_at_the_first_with_its_number(launch, tmp_path):
    process = launch('echo "$HOST: $*"\n', "--port", "4242")
    _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    joining = "--coordinator node1:4242 --processes 2 --process {} --join-timeout 900 train --resume -- digits_cnn"
    assert told.splitlines() == [f"[0] node1: {joining.format(0)}"]
    logs = tmp_path / "digits-cnn-logs"
    assert (logs / "process-1.log").read_text().splitlines()[1] == f"node2: {joining.format(1)}"


def test_a_host_that_failed_is_restarted_with_the_others(launch, tmp_path):
    script = f"echo x >> {tmp_path}/starts-$HOST; [ $(wc -l < {tmp_path}/starts-$HOST) -lt 2 ] && exit 42; exit 0\n"
    process = launch(script)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert (tmp_path / "starts-node1").read_text() == (tmp_path / "starts-node2").read_text() == "x\nx\n"


def test_a_final_code_of_a_host_is_the_code_of_all(launch):
    process = launch('[ $HOST = node2 ] && exit 43; trap "exit 42" TERM; while :; do sleep 0.05; done\n')
    _, told = process.communicate(timeout=30)
    assert process.returncode == 43, told
    assert "process 1 ended with exit code 43; not started again" in told


STAYS = 'trap "touch {0}/saved-$HOST; exit 42" TERM; touch {0}/ready-$HOST; while :; do sleep 0.05; done\n'


def test_asked_to_stop_the_hosts_save_and_their_code_is_returned(launch, tmp_path):
    process = launch(STAYS.format(tmp_path))
    wait_for(tmp_path / "ready-node1", tmp_path / "ready-node2")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 42, told
    assert (tmp_path / "saved-node1").exists()
    assert (tmp_path / "saved-node2").exists()


def test_hosts_whose_supervisor_was_killed_save_too(launch, tmp_path):
    process = launch(STAYS.format(tmp_path))
    wait_for(tmp_path / "ready-node1", tmp_path / "ready-node2")
    # As on a host of its own: there the end of ssh does not end what it started.
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    wait_for(tmp_path / "saved-node1", tmp_path / "saved-node2")
