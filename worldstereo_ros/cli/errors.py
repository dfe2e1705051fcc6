"""How commands report errors and interruptions: one sentence on stderr, and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from worldstereo_ros.cli.interrupts import describe_interruption, interruption_status, was_interrupted
from worldstereo_ros.utils.errors import WorldStereoError, first_line

DEBUG_VARIABLE = "WORLDSTEREO_DEBUG"  # set to 1 to see tracebacks


class ErrorReportingGroup(TyperGroup):
    """A group of commands that turns exceptions of its commands into one sentence and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command.

        Raises:
            typer.Exit: with status 1 after an error was printed, 130 after Ctrl-C, 143 after SIGTERM; otherwise with
                the command's own status.
        """
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            # An interruption may come out as another error: libraries translate what happens within their calls.
            if isinstance(error, KeyboardInterrupt) or was_interrupted():
                typer.echo(describe_interruption(), err=True)
                raise typer.Exit(interruption_status()) from None
            if _is_handled_by_typer(error):
                raise
            if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
                typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            typer.secho(describe_error(error), err=True, fg=typer.colors.RED)
            raise typer.Exit(1) from None


def describe_error(error: Exception) -> str:
    """The sentence for the user: what went wrong and, for other errors than bad input, what to do next."""
    if isinstance(error, WorldStereoError):
        return f"Error: {error}"
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"Error: {reason}: {error.filename}" if error.filename is not None else f"Error: {reason}"
    if _is_out_of_memory(error):
        reason = first_line(error)
        return (
            f"Error: The device is out of memory ({reason}). Ask for fewer views or smaller images, end other programs "
            "that use the device, or use --device cpu."
        )
    if isinstance(error, ImportError) and not (error.name or "").startswith("worldstereo_ros"):
        return f"Error: {error}. Run `worldstereo doctor` to see what is missing and how to install it."
    name, line = type(error).__name__, first_line(error)
    text = name if line == name else f"{name}: {line}"
    advice = "" if DEBUG_VARIABLE in os.environ else f" Set {DEBUG_VARIABLE}=1 for the traceback."
    return f"Unexpected error: {text}.{advice}"


def _is_handled_by_typer(error: Exception) -> bool:
    """Whether this is an exit, a usage error or a closed pipe (`worldstereo ... | head`), which typer handles."""
    # Typer bundles its own click since 0.27: usage errors are recognised by their exit status, not by a class.
    if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "exit_code"):
        return True
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # where torch is not imported yet, the error is not torch's
    return (torch is not None and isinstance(error, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
