"""A list of hosts that ssh reaches, one process each, supervised from here.

Written for OpenSSH 8.4 and newer, and hosts with bash.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pcls.errors import UserError
from pcls.launch.job import JOIN_TIMEOUT, Job
from pcls.launch.names import HOST, PATH, check, check_printable
from pcls.launch.shell import exports
from pcls.launch.supervisor import Command

# A host that has gone is noticed after a minute; ssh itself never asks a login question.
OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")


@dataclass(frozen=True)
class Ssh:
    """A job on hosts.

    Attributes:
      job: to run; secrets are files of the hosts.
      hosts: the first has process 0.
      port: of the first, where all meet.
      folder: of the hosts, where `pcls` is called; empty: the home folder.
      pcls: the program there.
    """

    job: Job
    hosts: tuple[str, ...]
    port: int
    folder: str = ""
    pcls: str = "pcls"

    def __post_init__(self) -> None:
        if not self.hosts:
            raise UserError("--hosts: one or more are needed, as in node1,node2")
        for host in self.hosts:
            check("--hosts", host, HOST)
        check_printable("--pcls", self.pcls)
        if self.folder:
            check("--folder", self.folder, PATH)
        self.job.check_secrets(PATH)


def ssh_commands(target: Ssh) -> list[tuple[str, ...]]:
    """One ssh a host. Each asks its process to stop when its standard input ends."""
    return [
        ("ssh", *OPTIONS, "--", host, f"exec bash -c {shlex.quote(_remote_script(target, index))}")
        for index, host in enumerate(target.hosts)
    ]


def ssh_text(target: Ssh) -> str:
    """The commands to be read, or pasted into bash: without an end of their input, and all at once."""
    return "".join(f"sleep infinity | {shlex.join(command)} &\n" for command in ssh_commands(target)) + "wait\n"


def supervised(target: Ssh, logs: Path) -> Callable[[], list[Command]]:
    """What the supervisor starts."""
    return lambda: [
        Command(command, logs / f"process-{index}.log", stops_at_eof=True)
        for index, command in enumerate(ssh_commands(target))
    ]


def _remote_script(target: Ssh, index: int) -> str:
    first = target.hosts[0].rpartition("@")[2]
    joining = (
        "--coordinator",
        f"{first}:{target.port}",
        "--processes",
        str(len(target.hosts)),
        "--process",
        str(index),
    )
    alone = len(target.hosts) == 1
    command = (target.pcls, *(() if alone else (*joining, "--join-timeout", str(JOIN_TIMEOUT))), *target.job.train)
    lines = [
        *([f"cd {shlex.quote(target.folder)} || exit {UserError.exit_code}"] if target.folder else []),
        *exports(target.job),
        f"{shlex.join(command)} < /dev/null &",
        "child=$!",
        # ssh carries no signal, and one that is ended leaves its process behind: the end of standard input says stop.
        "exec 3<&0",
        f'{{ while read -r _; do :; done <&3; kill -TERM "$child"; sleep {target.job.policy.grace:g}; '
        'kill -KILL "$child"; } > /dev/null 2>&1 &',
        "watch=$!",
        'wait "$child"; code=$?',
        'kill "$watch" 2> /dev/null',
        'exit "$code"',
    ]
    return "\n".join(lines)
