"""The command line."""

from qrobust.cli import bnn as bnn
from qrobust.cli import schemes as schemes
from qrobust.cli.commands import main

__all__ = ["main"]
