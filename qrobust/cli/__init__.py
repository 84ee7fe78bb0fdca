"""The command line."""

from qrobust.cli import bits as bits
from qrobust.cli import blame as blame
from qrobust.cli import bnn as bnn
from qrobust.cli import logic as logic
from qrobust.cli import plots as plots
from qrobust.cli import schemes as schemes
from qrobust.cli import signoff as signoff
from qrobust.cli.commands import main

__all__ = ["main"]
