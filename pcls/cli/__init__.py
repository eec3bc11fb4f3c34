"""The command line: every verb is a thin face of one function of the package."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pcls.cli.advise import advise
from pcls.cli.bench import bench
from pcls.cli.calibrate import calibrate
from pcls.cli.checkpoints import app as checkpoints_app
from pcls.cli.compare import compare
from pcls.cli.compress import compress
from pcls.cli.config import app as config_app
from pcls.cli.data import app as data_app
from pcls.cli.demo import demo
from pcls.cli.evaluate import evaluate
from pcls.cli.export import export
from pcls.cli.finetune import finetune
from pcls.cli.launch import app as launch_app
from pcls.cli.lr import lr
from pcls.cli.models import app as models_app
from pcls.cli.plan import plan
from pcls.cli.predict import predict
from pcls.cli.probe import probe
from pcls.cli.replay import replay
from pcls.cli.report import report
from pcls.cli.resume import resume
from pcls.cli.serve import serve
from pcls.cli.sweep import sweep
from pcls.cli.train import train
from pcls.errors import PclsError, UserError


class Verbs(TyperGroup):
    """The verbs; a value that an option cannot have is one line, as other mistakes are."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the verb that the command line names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("pcls: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader (head, less) has gone; what is left is not written, and that is no fault.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except typer.BadParameter as error:
            # Without a message, a parameter is missing: the usage says which there are.
            if not error.message or error.param is None:
                raise
            option = error.param.get_error_hint().strip("'")
            raise UserError(f"{option}: {error.message.removeprefix('Value error, ').rstrip('.')}") from error


app = typer.Typer(
    name="pcls",
    cls=Verbs,
    help="Pretrain, fine-tune, evaluate and deliver image classifiers with JAX.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("resume")(resume)
app.command("finetune")(finetune)
app.command("advise")(advise)
app.command("probe")(probe)
app.command("lr")(lr)
app.command("sweep")(sweep)
app.command("eval")(evaluate)
app.command("calibrate")(calibrate)
app.command("compare")(compare)
app.command("replay")(replay)
app.command("compress")(compress)
app.command("predict")(predict)
app.command("export")(export)
app.command("serve")(serve)
app.command("report")(report)
app.command("plan")(plan)
app.command("bench")(bench)
app.command("demo")(demo)
app.add_typer(launch_app, name="launch")
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(config_app, name="config")
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    coordinator: Annotated[
        str, typer.Option(help="Join other processes: host:port of process 0, or auto on a cluster that jax detects.")
    ] = "",
    processes: Annotated[int, typer.Option(help="With --coordinator host:port: how many processes.", min=1)] = 1,
    process: Annotated[int, typer.Option(help="With --coordinator host:port: which one this is.", min=0)] = 0,
    join_timeout: Annotated[int, typer.Option(help="Seconds to wait for the other processes.", min=1)] = 300,
    heartbeat: Annotated[
        int, typer.Option(help="Seconds without a sign of life after which the other processes are given up.", min=10)
    ] = 100,
) -> None:
    """Pretrain, fine-tune, evaluate and deliver image classifiers with JAX."""
    if coordinator:
        from pcls.parallel.processes import join

        join(coordinator, processes, process, timeout=join_timeout, heartbeat=heartbeat)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns the exit code; a user's mistake is one line, without a traceback."""
    arguments = sys.argv[1:] if argv is None else argv
    # Libraries log tracebacks of failures that reach the user as one line anyway.
    debug = "--debug" in arguments
    if not debug:
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        sys.unraisablehook = _without_late_callbacks
    try:
        app(arguments, prog_name="pcls")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except PclsError as error:
        if debug:
            traceback.print_exc()
        print(f"pcls: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        return _disk_failure(error, debug)
    return 0


def _without_late_callbacks(report: sys.UnraisableHookArgs) -> None:
    """The usual hook, but for what TensorStore's threads meet after a save that the disk refused was given up."""
    if not (report.exc_type is RuntimeError and str(report.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(report)


def _disk_failure(error: OSError, debug: bool) -> int:
    """A full disk or a missing permission is no bug of ours, wherever it shows."""
    if debug or (error.filename is None and error.strerror is None):
        raise error
    place = f"{error.filename}: " if error.filename else ""
    print(f"pcls: {place}{error.strerror}", file=sys.stderr)
    return UserError.exit_code
