"""The command line."""

from qrobust.cli.commands import main

__all__ = ["main"]
