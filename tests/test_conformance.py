"""Does every backend, and the front door, agree with every golden case? `cases` says who must decide which."""

from __future__ import annotations

import numpy as np
import pytest

from qrobust.answers import Answer, Estimate, Verdict
from qrobust.backends.base import Backend
from qrobust.errors import UnsupportedError
from qrobust.queries import GreatestDelta, Query
from qrobust.search import Budget
from qrobust.solve import DELTA_ENOUGH, ENOUGH, Session, all_backends
from tests.cases import ALL, CASES, Case

BACKENDS = {backend.name: backend for backend in all_backends()}
AMPLE = Budget(seconds=30)
SHORT = Budget(seconds=1, boxes=5_000)  # for those who may give up
BY_NAME = {case.name: case for case in CASES}
IDS = [case.name for case in CASES]


def ask(session: Session, case: Case, backend: str, budget: Budget) -> Answer | Estimate:
    if isinstance(case.query, Query) and case.verdict is not None:
        return session.check(case.query, backend=backend, budget=budget)
    return session.estimate(case.query, backend=backend, budget=budget)


def fault(case: Case, result: Answer | Estimate, must: bool) -> str | None:
    """Return what is wrong with a result, or None."""
    if isinstance(result, Answer):
        if result.verdict is case.verdict or (result.verdict is Verdict.UNKNOWN and not must):
            return None
        example = result.counterexample.to_json() if result.counterexample else None
        return f"expected {case.verdict}, got {result}, counterexample {example}"
    if case.is_below(result.lower) or case.is_above(result.upper):
        witness = result.witness.to_json() if result.witness else None
        return f"the value on paper is not in [{result.lower!r}, {result.upper!r}], witness {witness}"
    enough = DELTA_ENOUGH * result.upper if isinstance(case.query, GreatestDelta) else ENOUGH
    if must and not result.gap <= enough:
        return f"the ends {result.lower!r} and {result.upper!r} are too far apart: {result.reason}"
    return None


def installed(name: str) -> Backend:
    backend = BACKENDS[name]
    if not backend.available():
        pytest.skip(f"the solver of the {name} backend is not installed")
    return backend


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_agrees_with_the_paper(name: str, case: Case) -> None:
    session = Session([installed(name)])
    if name in case.cannot:
        with pytest.raises(UnsupportedError, match=f"{name} cannot answer this"):
            ask(session, case, name, SHORT)
        return
    must = name in case.by
    try:
        result = ask(session, case, name, AMPLE if must else SHORT)
    except UnsupportedError:
        assert name not in ALL, f"{name} refuses a case that it is not listed as refusing"
        return
    assert fault(case, result, must) is None
    assert result.backend == name


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_front_door_decides_every_case(case: Case) -> None:
    result = ask(Session(list(BACKENDS.values())), case, "auto", AMPLE)
    assert fault(case, result, must=True) is None


def test_the_required_backends_are_there() -> None:
    assert set(ALL) <= set(BACKENDS)
    for name in ALL:
        assert BACKENDS[name].available()


def test_every_case_is_well_formed() -> None:
    assert len(BY_NAME) == len(CASES)
    for case in CASES:
        assert case.by, case.name
        assert not set(case.by) & set(case.cannot), case.name
        assert set(case.by + case.cannot) <= set(ALL), case.name
        assert (case.verdict is not None) == hasattr(case.query, "epsilon") or not isinstance(case.query, GreatestDelta)


@pytest.mark.parametrize("name", ALL)
def test_every_required_backend_meets_all_verdicts(name: str) -> None:
    """Else a backend that always answers the same would pass."""
    own = [case for case in CASES if name in case.by]
    assert {case.verdict for case in own} == {Verdict.ROBUST, Verdict.VIOLATED, None}
    assert any(case.is_above(0.0) for case in own if case.verdict is None)


def test_a_wrong_answer_would_be_seen() -> None:
    flip, kept = BY_NAME["1 to 0"], BY_NAME["1 stays 1"]
    swapped = ask(Session(), kept, "auto", AMPLE)
    assert fault(flip, swapped, must=False) is not None
    eps, other = BY_NAME["eps at a point"], BY_NAME["ramp's eps"]
    assert fault(eps, ask(Session(), other, "auto", AMPLE), must=False) is not None
    assert not eps.is_above(np.inf)
    assert eps.is_below(np.inf)
