"""Lines of bash that targets share. Every word from outside is quoted by `shlex`."""

from __future__ import annotations

import shlex

from pcls.errors import UserError
from pcls.launch.job import Job


def exports(job: Job) -> list[str]:
    """Lines that set the job's environment; a secret is read from the file that its reference names."""
    values = [f"export {variable}={shlex.quote(value)}" for variable, value in job.env]
    return values + [read_secret(secret.variable, ("cat", "--", secret.reference)) for secret in job.secrets]


def read_secret(variable: str, command: tuple[str, ...]) -> str:
    """A line that sets a variable to what a command prints, or ends the script as the user's mistake."""
    return f'{variable}="$({shlex.join(command)})" && export {variable} || exit {UserError.exit_code}'
