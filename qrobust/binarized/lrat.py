"""Proofs that clauses have no solution, and the checker of them: unit propagation along named clauses, and nothing else.

A proof is text in LRAT, the clauses numbered from 1. A step "9 1 -4 0 3 7 0" says that [1, -4] follows from clauses 3 and 7: if
1 is false and 4 true, all but one literal of clause 3 are false, so that the last is true, and then all of clause 7 are. It is
clause 9 from there on. The last step is the empty clause.

Property  sound: what is accepted has no solution, whoever wrote the proof. Steps by resolution asymmetric tautology, which keep
          satisfiability alone, are refused: solvers need them for techniques that the ones here do not use
Source    Cruz-Filipe et al. 2017, arXiv 1612.02353 (LRAT); Heule et al., drat-trim (DRAT)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

Step = tuple[int, list[int], list[int]]  # its number, its clause, and the clauses that it follows from


def refutation_fault(clauses: Sequence[Sequence[int]], proof: Iterable[str]) -> str | None:
    """Return why a proof does not show that clauses have no solution, or None if it does."""
    known = dict(enumerate(clauses, start=1))
    for line in proof:
        try:
            number, clause, hints = _parsed(line)
        except ValueError:
            return f"the line {line[:60]!r} is no step of LRAT"
        if number in known:
            return f"step {number} has the number of another clause"
        fault = _step_fault(known, clause, hints)
        if fault is not None:
            return f"step {number}: {fault}"
        if not clause:
            return None
        known[number] = clause
    return "the proof ends before the empty clause"


def _step_fault(known: Mapping[int, Sequence[int]], clause: list[int], hints: list[int]) -> str | None:
    false = set(clause)
    for hint in hints:
        if hint not in known:
            return f"there is no clause {hint}"
        left = {literal for literal in known[hint] if literal not in false}
        if not left:
            return None
        if len(left) > 1:
            return f"clause {hint} says nothing there"
        false.add(-left.pop())
    return "it does not follow from the clauses that it names"


def _parsed(line: str) -> Step:
    """Return a line's step. Raises ValueError."""
    number, *rest = map(int, line.split())
    end = rest.index(0)
    if rest.pop() != 0 or 0 in rest[end + 1 :] or end == len(rest):
        raise ValueError(line)
    return number, rest[:end], rest[end + 1 :]


def trimmed(proof: Iterable[str], count: int) -> list[str]:
    """Return a solver's proof without what its last step does not need, the clauses given to the solver numbered from 1.

    A solver that simplifies a clause as it is given numbers the simpler one among the `count` given; these are told apart by
    being steps. It also says which clauses it no longer needs, which is left out.
    """
    steps = [_parsed(line) for line in proof if line.split()[1] != "d"]
    made, own, number = {step[0] for step in steps}, dict[int, int](), 0
    for place in range(1, count + 1):
        number += 1
        while number in made:
            number += 1
        own[number] = place
    needed, kept = {number for number, clause, _ in steps if not clause}, list[Step]()
    for step in reversed(steps):
        if step[0] in needed:
            needed.update(step[2])
            kept.append(step)
    own |= {step[0]: place for place, step in enumerate(reversed(kept), start=count + 1)}
    return [
        " ".join(map(str, [own[number], *clause, 0, *(own[hint] for hint in hints), 0]))
        for number, clause, hints in reversed(kept)
    ]


def drat(proof: Iterable[str]) -> Iterator[str]:
    """Yield a proof's lines in DRAT, which says clauses alone, for checkers that find out what each follows from."""
    for line in proof:
        yield " ".join(map(str, [*_parsed(line)[1], 0]))
