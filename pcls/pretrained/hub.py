"""Files of the Hugging Face hub, through its own library and cache."""

from __future__ import annotations

import logging
from pathlib import Path

from pcls.errors import UserError, first_line

PREFIX = "hf-hub:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def fetch_repository(repository: str, *, revision: str = "", offline: bool = False) -> tuple[Path, str]:
    """Brings the configuration and the weights of a repository into the hub's cache.

    Args:
      repository: `owner/name`.
      revision: branch, tag or commit; empty: the main branch.
      offline: take them from the cache alone, as the variable HF_HUB_OFFLINE asks too.

    Returns:
      The folder that holds both, and the commit that they are of.

    Raises:
      UserError: the library is not installed, the hub cannot be reached, or it has no such files.
    """
    try:
        from httpx2 import HTTPError
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise UserError("weights by name need the hub's library: pip install 'pcls[hub]'") from error

    # What it says of each try again would bury the one line that says what to do.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def fetch(file: str, wanted: str | None) -> Path:
        return Path(hf_hub_download(repository, file, revision=wanted, local_files_only=offline, library_name="pcls"))

    try:
        config = fetch(CONFIG, revision or None)
        # The cache has a folder for each commit. The weights are of the same one, whatever is pushed meanwhile.
        commit = config.parent.name
        return fetch(WEIGHTS, commit).parent, commit
    except HFValidationError as error:
        raise UserError(f"{repository!r} is no name of a repository on the hub: write owner/name") from error
    except GatedRepoError as error:
        raise UserError(
            f"{repository}: its owner lets only some have it; ask on https://huggingface.co/{repository}, then log in "
            "with: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{repository}: the hub has no such repository, or it is private") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repository}: the hub has no revision {revision!r} of it") from error
    except LocalEntryNotFoundError as error:
        raise UserError(_unreachable(repository, offline)) from error
    except EntryNotFoundError as error:
        raise UserError(f"{repository}: has no {CONFIG} with {WEIGHTS}, which pcls reads") from error
    except (OSError, HTTPError) as error:
        raise UserError(f"{repository}: could not be fetched ({first_line(error)}); try again") from error


def _unreachable(repository: str, offline: bool) -> str:
    from huggingface_hub import constants

    place = f"the cache {constants.HF_HUB_CACHE} has no {repository}"
    if offline or constants.HF_HUB_OFFLINE:
        return f"{place}; leave out --offline (or HF_HUB_OFFLINE), or copy the cache of a machine that has it (HF_HOME)"
    return (
        f"{constants.ENDPOINT} cannot be reached, and {place}; fetch it where there is a network, copy that cache here "
        "(HF_HOME), and say --offline or HF_HUB_OFFLINE=1; or name a folder with config.json and model.safetensors"
    )
