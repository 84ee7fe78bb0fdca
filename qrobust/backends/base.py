"""What every backend offers."""

from __future__ import annotations

from typing import Protocol

from qrobust.answers import AnyQuery, Claim, EstimateClaim
from qrobust.queries import EpsilonEstimate, Query, SigmaEstimate
from qrobust.search import Budget


class Backend(Protocol):
    """A way of answering. Encodes, runs, decodes; it does not store, plot or retry, and its claims are checked by `solve`."""

    @property
    def name(self) -> str:
        """The name that `--backend` takes and answers carry."""

    @property
    def proves(self) -> bool:
        """Whether it can ever claim Robust, or a certified upper end."""

    @property
    def refutes(self) -> bool:
        """Whether it can ever claim Violated, or give a witness."""

    def available(self) -> bool:
        """Whether its solver is installed. Cheap: does not import the solver."""

    def why_not(self, query: AnyQuery) -> str | None:
        """Return None if it can express the query, else the reason."""

    def decide(self, query: Query, budget: Budget) -> Claim:
        """Claim an answer to a decision query."""

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> EstimateClaim:
        """Claim two ends of an estimate."""
