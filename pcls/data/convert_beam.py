"""Conversion by Apache Beam, for sets that outgrow a machine: the same shards, written by all the machines there are.

Every worker opens the source itself, and writes to the folder of the set: both must be on a file system that all of
them see under the same path.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import lru_cache, partial

from pcls.config.data import DataSection
from pcls.data.convert import Runner
from pcls.data.dataset import open_kept
from pcls.data.shards import Task, write_shard
from pcls.data.sources.source import Source
from pcls.data.workers import usable_cores
from pcls.errors import UserError

# What a worker raised, out of the text that Beam makes of it.
WORKER_ERROR = re.compile(r"UserError: (.+?)(?: \[while running|\\n|\n|$)")


def beam_runner(section: DataSection, workers: int = 0, options: Sequence[str] = ()) -> Runner:
    """A runner for `convert`.

    Args:
      section: names the source, so that workers can open it.
      workers: processes of the DirectRunner; 0: one a core.
      options: Beam's own, as in `--runner=FlinkRunner`; they go before `workers`.

    Raises:
      UserError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("--runner beam needs Apache Beam: pip install 'pcls[beam]'") from error
    # Two dozen lines about channels opened and closed tell nobody anything.
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    local = [f"--direct_num_workers={workers or usable_cores()}", "--direct_running_mode=multi_processing"]
    chosen = PipelineOptions([*local, "--default_sdk_harness_log_level=ERROR", *options])
    write = partial(_write, section.model_dump_json())

    def run(tasks: Sequence[Task]) -> None:
        """Has Beam's workers write them."""
        # Without the shuffle one worker gets them all: steps that need none are run in one go.
        texts = [task.model_dump_json() for task in tasks]
        try:
            with beam.Pipeline(options=chosen) as pipeline:
                pipeline | beam.Create(texts) | beam.Reshuffle() | beam.Map(write)
        except RuntimeError as error:
            if told := WORKER_ERROR.search(str(error)):
                raise UserError(told[1]) from error
            raise

    return run


def _write(section: str, task: str) -> None:
    todo = Task.model_validate_json(task)
    write_shard(_sources(section)[todo.part], todo)


@lru_cache(maxsize=1)
def _sources(section: str) -> dict[str, Source]:
    train, evaluation = open_kept(DataSection.model_validate_json(section))
    return {"train": train} | ({"evaluation": evaluation} if evaluation is not None else {})
