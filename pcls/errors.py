"""Typed failures and the exit codes that they end a process with.

0 done, 1 a bug in pcls, 2 the user's input, 42 please restart me, 43 training diverged. Launchers and
supervisors act on these numbers, so a code never changes its meaning.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of what another library says, cut to a length that fits into a message."""
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


class PclsError(Exception):
    """A failure that pcls understands; its text is one line that says what, where, and what to do next."""

    exit_code = 1

    def __init__(self, message: str):
        # Names of files and keys come from outside: a newline in one must not break the line, nor a control character
        # reach the terminal.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class UserError(PclsError):
    """The input is at fault: a recipe, a path, a file, an option."""

    exit_code = 2


class RestartRequested(PclsError):
    """The run stopped in good order (preempted, interrupted) and can be resumed."""

    exit_code = 42


class Diverged(PclsError):
    """Training left the finite numbers and would not come back by going on."""

    exit_code = 43
