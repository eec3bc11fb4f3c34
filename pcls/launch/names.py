"""What names and other words may look like, by the rules of whatever reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pcls.errors import UserError


@dataclass(frozen=True)
class Rule:
    """What a word may be.

    Attributes:
      pattern: it matches all of the word.
      longest: characters.
      words: the rule as a person is told it.
    """

    pattern: str
    longest: int
    words: str


# RFC 1035: Kubernetes wants it of a JobSet whose pods have host names, and Google Cloud of a TPU. 40 as XPK has it: the
# names of pods append up to 23 characters (`-workers-10-1000-abcde`) and may have 63.
NAME = Rule(
    r"[a-z]([-a-z0-9]*[a-z0-9])?",
    40,
    "lower-case letters, digits and hyphens, a letter first and no hyphen last (RFC 1035)",
)
DNS_LABEL = Rule(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", 63, "lower-case letters, digits and hyphens (a DNS-1123 label)")
DNS_SUBDOMAIN = Rule(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    253,
    "lower-case letters, digits, hyphens and dots (a DNS-1123 subdomain)",
)
PROJECT = Rule(r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", 80, "the id of a Google Cloud project, as in my-project")
ZONE = Rule(r"[a-z]+-[a-z]+\d+-[a-z]", 40, "a zone, as in us-east5-b")
IMAGE = Rule(
    r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(:\d{1,5})?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?",
    512,
    "a container image, as in registry.example/team/pcls:1.0 or with @sha256:...",
)
# Enroot's names have a # between registry and image; a squashfs file goes by its path.
PYXIS = Rule(
    r"[A-Za-z0-9/][A-Za-z0-9._/@:#+-]*",
    512,
    "an image of pyxis, as in registry.example#team/pcls:1 or /shared/pcls.sqsh",
)
# Of sbatch, which reads them by rules of its own: no quotes are needed for these.
SLURM = Rule(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", 128, "letters, digits and _ . + -")
SLURM_TIME = Rule(r"(\d+-)?\d+(:\d\d){0,2}", 20, "a time of Slurm, as in 12:00:00 or 2-00:00:00")
HOST = Rule(
    r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", 255, "a host, as in node1 or me@node1"
)
VARIABLE = Rule(r"[A-Za-z_][A-Za-z0-9_]*", 128, "the name of an environment variable")
ACCELERATOR = Rule(r"[A-Za-z0-9][A-Za-z0-9_.-]*(:\d{1,4})?", 80, "an accelerator, as in H100:8 or tpu-v6e-16")
GPU = Rule(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", 63, "a GPU as GKE labels its nodes, as in nvidia-h100-80gb")
INFRA = Rule(
    r"[a-z0-9]+(/[A-Za-z0-9_*-]+){0,2}", 120, "where SkyPilot looks, as in gcp, gcp/us-central1 or aws/*/us-west-2a"
)
VERSION = Rule(r"[a-z0-9][a-z0-9.-]*", 80, "a TPU software version, as in v2-alpha-tpuv6e")
SECRET_ID = Rule(r"[A-Za-z0-9_-]+", 255, "a secret of Secret Manager, by name")
BUCKET = Rule(r"(gs|s3|r2)://[a-z0-9][a-z0-9._/-]*", 255, "a bucket, as in gs://my-bucket")
# Separators of --volume and --container-mounts do not fit into them.
PATH = Rule(r"/[^:,]*", 1024, "an absolute path without colons and commas")


def check(what: str, value: str, rule: Rule) -> None:
    """UserError where a word breaks a rule. `what` names the option."""
    if re.fullmatch(rule.pattern, value) is None or not value.isprintable() or len(value) > rule.longest:
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise UserError(f"{what} {shown!r}: {rule.words} is needed, of at most {rule.longest} characters")


def check_printable(what: str, value: str) -> None:
    """UserError where a text has a line break or another control character, which no target passes on unharmed."""
    if not value.isprintable():
        raise UserError(f"{what} {value!r}: has a line break or another character that cannot be printed; leave it out")
