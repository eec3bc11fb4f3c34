"""What all targets need to know of a job: the recipe, the environment, where runs are kept, and the limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pcls.config.load import load_recipe
from pcls.errors import UserError
from pcls.launch.names import NAME, PATH, VARIABLE, Rule, check, check_printable
from pcls.launch.policy import Policy
from pcls.parallel.shares import check_batch_size

# Machines of a cluster do not all come at once.
JOIN_TIMEOUT = 900
# A value under such a name would be printed by a dry run, and stand in a file or in the list of processes.
SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class Secret:
    """A secret by reference: the variable that shall hold it, and where the target finds it."""

    variable: str
    reference: str


@dataclass(frozen=True)
class Volume:
    """Storage that outlives the job: what it is called outside, and its path inside."""

    source: str
    path: str


@dataclass(frozen=True)
class Job:
    """A recipe to be trained elsewhere.

    Attributes:
      name: of the job.
      recipe: a name, or a path that is the same there.
      overrides: key=value.
      env: names and values.
      secrets, volumes: by reference.
      policy: limits on restarts.

    Raises:
      UserError: one line that names the option and the rule which it breaks.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    secrets: tuple[Secret, ...] = ()
    volumes: tuple[Volume, ...] = ()
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        check("--name", self.name, NAME)
        for text in (self.recipe, *self.overrides):
            check_printable("the argument", text)
        for variable, value in self.env:
            check("--env", variable, VARIABLE)
            check_printable(f"--env {variable}", value)
            if SECRET_NAME.search(variable):
                raise UserError(
                    f"--env {variable}: looks like a secret, whose value must not be written down; see --secret"
                )
        for secret in self.secrets:
            check("--secret", secret.variable, VARIABLE)
        for volume in self.volumes:
            check("--volume", volume.path, PATH)
        names = [name for name, _ in self.env] + [secret.variable for secret in self.secrets]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"--env and --secret: {', '.join(sorted(twice))} is set twice")

    @property
    def train(self) -> tuple[str, ...]:
        """`pcls` arguments that start the run, go on with it, or find it finished."""
        # What follows `--` is no option, whatever it looks like.
        return ("train", "--resume", "--", self.recipe, *self.overrides)

    def check_secrets(self, rule: Rule) -> None:
        """UserError where a reference is none of the target's."""
        for secret in self.secrets:
            check(f"--secret {secret.variable}=", secret.reference, rule)

    def check_volumes(self, rule: Rule) -> None:
        """UserError where a source is none of the target's."""
        for volume in self.volumes:
            check("--volume", volume.source, rule)


def make_job(
    recipe: str,
    overrides: Sequence[str],
    policy: Policy,
    *,
    name: str = "",
    env: Sequence[str] = (),
    secrets: Sequence[str] = (),
    volumes: Sequence[str] = (),
) -> Job:
    """Reads what the command line has, and checks the recipe, before anything is started anywhere.

    Args:
      recipe, overrides: as `pcls train` takes them.
      policy: limits on restarts.
      name: of the job; empty: the recipe's.
      env: `NAME=VALUE`.
      secrets: `NAME=REFERENCE`.
      volumes: `SOURCE:PATH`.

    Raises:
      UserError: the recipe is wrong, or as `Job`.
    """
    load_recipe(recipe, overrides)
    return Job(
        name or default_name(recipe),
        recipe,
        tuple(overrides),
        tuple(_split(text, "=", "--env", "NAME=VALUE") for text in env),
        tuple(Secret(*_split(text, "=", "--secret", "NAME=REFERENCE")) for text in secrets),
        tuple(Volume(*_split(text, ":", "--volume", "SOURCE:PATH")) for text in volumes),
        policy,
    )


def default_name(recipe: str) -> str:
    """A recipe's name as all targets allow it: `digits_cnn` is `digits-cnn`."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(recipe).stem.lower())
    return re.sub(r"^[^a-z]+", "", words)[:40].strip("-") or "pcls"


def run_folder(recipe: str, overrides: Sequence[str]) -> Path:
    """The folder that the run will have."""
    return Path(load_recipe(recipe, overrides).run.dir)


def check_shared(recipe: str, overrides: Sequence[str], tasks: int) -> str:
    """What can be told of a recipe that tasks, each with a device or more, train together.

    Args:
      recipe, overrides: as `pcls train` takes them.
      tasks: of all nodes.

    Returns:
      A remark for a person; empty: none.

    Raises:
      UserError: a batch does not divide by the devices.
    """
    found = load_recipe(recipe, overrides)
    # Along mesh.model devices see the same images. More devices a task are a multiple of these.
    shards = tasks // found.mesh.model if tasks % found.mesh.model == 0 else 1
    sizes = {"train.batch_size": found.train.batch_size, "evaluate.batch_size": found.evaluation_batch_size}
    for key, size in sizes.items():
        check_batch_size(key, size, shards)
    if Path(found.run.dir).is_absolute():
        return ""
    return (
        f"run.dir is {found.run.dir}, in the folder that the job starts in; all nodes must share it, or write "
        "run.dir=/shared/FOLDER"
    )


def _split(text: str, separator: str, option: str, form: str) -> tuple[str, str]:
    # The last colon: a bucket's URL has one of its own.
    first, found, second = text.rpartition(separator) if separator == ":" else text.partition(separator)
    if not (found and first and second):
        shown = text if separator == ":" else text.partition(separator)[0] + "..."
        raise UserError(f"{option} {shown!r}: {form} is needed")
    return first, second
