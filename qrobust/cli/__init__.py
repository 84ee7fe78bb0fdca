"""The command line."""

from qrobust.cli import schemes as schemes
from qrobust.cli import signoff as signoff
from qrobust.cli.commands import main

__all__ = ["main"]
