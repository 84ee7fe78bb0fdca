"""A binarized network over few inputs, compiled: one decision diagram for each class, and what can be read off them.

Accepts   boxes of levels; an input of more than two levels takes one variable for each order literal
Gives     exact counts, the robustness of every input at once, prime implicants, monotonicity in a feature, equivalence
Method    each sum is a threshold over diagrams, built from its last literal to its first; the diagrams stand in one table, so
          that equal functions are one node
Property  exact. A limit on the nodes refuses what grows beyond it, with the figure at which it stopped
Source    Bryant 1986; Shih, Darwiche, Choi 2019 (binarized networks to decision diagrams); Coudert and Madre 1992 (primes)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np

from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.queries import Ball, Box, Levels, Norm, Region, ZeroSign, check_pair
from qrobust.binarized.solve import folded
from qrobust.errors import BackendUnavailableError, ResourceError, UnsupportedError
from qrobust.layers import IntArray
from qrobust.logic.labels import class_values, label_rows, size_of
from qrobust.logic.oracles import Deadline, UndecidedError

INSTALL = "compilation needs `pip install qrobust[logic]`"
MOST_NODES = 5_000_000
MOST_PRIMES = 100_000
MOST_VARIABLES = 300  # of listed prime implicants: the recursion is so deep
CACHE = 2**20  # entries of the table of results

Node = Any  # oxidd's BDDFunction
Ranges = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Prime:
    """A prime implicant: within these ranges of levels the class has the label, and no range can be widened.

    Units     ranges: by feature, the least and the greatest level; features that are not named are free
    """

    ranges: Ranges


class Diagram:
    """The label of a network over a region, compiled to binary decision diagrams.

    Raises    BackendUnavailableError, UnsupportedError (a region that is no box), ResourceError (more nodes than allowed,
              or more seconds, all later questions included)
    """

    def __init__(
        self,
        network: BinarizedNetwork,
        region: Region,
        *,
        most: int = MOST_NODES,
        seconds: float = 60.0,
        zero: ZeroSign = ZeroSign.PLUS,
    ) -> None:
        try:
            from oxidd.bdd import BDDManager
            from oxidd.util import DDMemoryError
        except ImportError:
            raise BackendUnavailableError(INSTALL) from None
        if region.norm is not Norm.LINF:
            raise UnsupportedError("decision diagrams are over boxes of levels: take an linf ball or the whole range")
        self.network, self.region, self._most, self._full = network, region, most, DDMemoryError
        self._deadline = Deadline.after(seconds)
        self._rows = label_rows(folded(network, zero), region)
        found = self._rows.constraints
        self.pixels, self.columns = found.pixels.tolist(), found.columns
        self.starts = found.starts.tolist() if found.columns else [0]
        self._manager = BDDManager(most, CACHE, 1)
        self._manager.add_vars(self.columns)
        self._true, self._false = self._manager.true(), self._manager.false()
        with self._limited():
            self.literals: list[Node] = [self._manager.var(number) for number in range(self.columns)]
        self.classes = self._compiled(self._rows)

    def compiled_too(self, other: BinarizedNetwork, zero: ZeroSign = ZeroSign.PLUS) -> list[Node]:
        """Return another network's classes in the same table. Raises ResourceError, and as `check_pair`."""
        check_pair(self.network, other)
        return self._compiled(label_rows(folded(other, zero), self.region))

    def _compiled(self, rows: Any) -> list[Node]:
        with self._limited():
            return self._label_nodes(rows)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Turn a full table, or the deadline, into a ResourceError with the figure."""
        try:
            yield
        except (self._full, UndecidedError) as error:
            why = str(error) if isinstance(error, UndecidedError) else f"its limit is {self._most:,}"
            raise ResourceError(
                f"the decision diagram stopped at {self._manager.num_inner_nodes():,} nodes, {why}: allow more, or take fewer"
                " inputs or a sparser network"
            ) from None

    def _label_nodes(self, rows: Any) -> list[Node]:
        algebra = (lambda node: ~node, self._true, self._false)
        _, takes = class_values(rows, self.literals, self._at_least, algebra)
        found = []
        for own in range(rows.classes):
            parts = [takes[a, own] for a in range(own)] + [~takes[own, b] for b in range(own + 1, rows.classes)]
            found.append(reduce(lambda a, b: a & b, parts, self.valid))
        return found

    def _at_least(self, values: list[Node], least: int) -> Node:
        """Return where at least so many hold, from the last value to the first."""
        after = [self._true] + [self._false] * least  # of the values that follow, how many are still needed
        for value in reversed(values):
            self._deadline.left()
            after = [self._true, *(value.ite(after[k - 1], after[k]) for k in range(1, least + 1))]
        return after[least]

    @cached_property
    def valid(self) -> Node:
        """Where the order literals of every feature stand in order."""
        found = self._true
        for start, end in reversed(list(self._spans())):
            for place in range(end - 1, start, -1):
                found &= self.literals[place].imp(self.literals[place - 1])
        return found

    def _spans(self) -> Any:
        return zip(self.starts, self.starts[1:], strict=False)

    @property
    def nodes(self) -> int:
        """The number of inner nodes of all classes together, shared ones once for each class."""
        return sum(node.node_count() for node in self.classes)

    def count(self, node: Node) -> int:
        """Return how many inputs a function accepts; the function accepts valid literals alone."""
        return int(node.sat_count(self.columns))

    def counts(self) -> list[int]:
        """Return how many inputs have each label. They sum up to the region's size."""
        return [self.count(node) for node in self.classes]

    def code(self, levels: IntArray) -> list[bool]:
        """Return the literals of an input. Shape: levels (inputs,)."""
        states = (levels - self.region.lower)[self.pixels].tolist()
        found: list[bool] = []
        for (start, end), state in zip(self._spans(), states, strict=True):
            found += [place < state for place in range(end - start)]
        return found

    def accepts(self, node: Node, levels: IntArray) -> bool:
        """Whether a function accepts an input. Shape: levels (inputs,)."""
        return bool(node.eval(list(enumerate(self.code(levels)))))

    def one_of(self, node: Node) -> IntArray | None:
        """Return an input that a function accepts, or None. Shape: (inputs,)."""
        cube = (node & self.valid).pick_cube()
        if cube is None:
            return None
        # a literal that is left open is taken for true where one after it is, else for false
        found = self.region.lower.copy()
        for pixel, (start, end) in zip(self.pixels, self._spans(), strict=True):
            found[pixel] += max((place - start + 1 for place in range(start, end) if cube[place]), default=0)
        return found

    def free(self, node: Node, feature: int) -> Node:
        """Return the inputs of which some value of one feature is accepted."""
        if feature not in self.pixels:
            return node
        start, end = list(self._spans())[self.pixels.index(feature)]
        cube = reduce(lambda a, b: a & b, self.literals[start:end])
        return node.exists(cube) & self.valid

    def at_level(self, node: Node, feature: int, state: int) -> Node:
        """Return a function where a feature has its state, counted from 0, as a function of the others."""
        start, end = list(self._spans())[self.pixels.index(feature)]
        values = [self.literals[p] if p - start < state else ~self.literals[p] for p in range(start, end)]
        cube = reduce(lambda a, b: a & b, self.literals[start:end])
        return (node & reduce(lambda a, b: a & b, values)).exists(cube)

    def distances(self) -> list[int]:
        """Return how many inputs lose their label by changing 1, 2, ... features, and no fewer; the rest never do.

        Entry 0 counts those that never do.
        """
        if not self.pixels:
            return [size_of(self.region)]
        with self._limited():
            return self._distances()

    def _distances(self) -> list[int]:
        found = [0] * (len(self.pixels) + 1)
        for node in self.classes:
            reached, left = self.valid & ~node, node
            for flips in range(1, len(self.pixels) + 1):
                self._deadline.left()
                reached = self._nearby(reached)
                found[flips] += self.count(left & reached)
                left &= ~reached
                if not left.satisfiable():
                    break
            found[0] += self.count(left)
        return found

    def least_flips(self, levels: IntArray) -> int | None:
        """Return how many features must change for an input to lose its label, None if it never does. Shape: (inputs,)."""
        own = next(node for node in self.classes if self.accepts(node, levels))
        with self._limited():
            reached = self.valid & ~own
            for flips in range(1, len(self.pixels) + 1):
                self._deadline.left()
                reached = self._nearby(reached)
                if self.accepts(reached, levels):
                    return flips
        return None

    def _nearby(self, node: Node) -> Node:
        """Return the inputs of which one that is accepted differs in one feature at most."""
        return reduce(lambda a, b: a | b, [self.free(node, feature) for feature in self.pixels])

    def monotone(self, label: int, feature: int) -> tuple[bool, bool]:
        """Return whether raising a feature never takes the label away, and whether it never gives the label."""
        if feature not in self.pixels:
            return True, True
        node, top = self.classes[label], int((self.region.upper - self.region.lower)[feature])
        with self._limited():
            self._deadline.left()
            parts = [self.at_level(node, feature, state) for state in range(top + 1)]
            pairs = list(itertools.pairwise(parts))
            return all(not (a & ~b).satisfiable() for a, b in pairs), all(not (b & ~a).satisfiable() for a, b in pairs)

    def differences(self, other: Sequence[Node]) -> Node:
        """Return the inputs to which two compiled networks give different labels."""
        with self._limited():
            same = reduce(lambda a, b: a | b, [a & b for a, b in zip(self.classes, other, strict=True)])
            return self.valid & ~same

    def primes(self, label: int, most: int = MOST_PRIMES) -> list[Prime]:
        """Return all prime implicants of a class. Raises ResourceError if there are more than `most`."""
        if self.columns > MOST_VARIABLES:
            raise ResourceError(f"prime implicants are listed over at most {MOST_VARIABLES} variables, not {self.columns}")
        with self._limited():
            found = _Primes(most, self._deadline).of(self.classes[label] | ~self.valid)
        ranges = {self._ranges(cube) for cube in found}
        return [Prime(one) for one in sorted(self._widest([r for r in ranges if r is not None]))]

    def _widest(self, ranges: list[Ranges]) -> list[Ranges]:
        """Return those that lie in no other: among order literals [x >= 2] is prime beside [x >= 1], as a range it is not."""
        if self.columns == len(self.pixels):
            return ranges
        lower = np.repeat(self.region.lower[None], len(ranges), axis=0)
        upper = np.repeat(self.region.upper[None], len(ranges), axis=0)
        for place, one in enumerate(ranges):
            for feature, least, most in one:
                lower[place, feature], upper[place, feature] = least, most
        kept = []
        for place, one in enumerate(ranges):
            around = ((lower <= lower[place]) & (upper >= upper[place])).all(axis=1)
            if around.sum() == 1:
                kept.append(one)
        return kept

    def _ranges(self, cube: frozenset[int]) -> Ranges | None:
        """Return a cube of literals as ranges of levels, None if no input lies in it."""
        found = []
        lower, upper = self.region.lower.tolist(), self.region.upper.tolist()
        for pixel, (start, end) in zip(self.pixels, self._spans(), strict=True):
            least = max((place - start + 1 for place in range(start, end) if place + 1 in cube), default=0)
            most = min((place - start for place in range(start, end) if -place - 1 in cube), default=end - start)
            if least > most:
                return None
            if (least, most) != (0, end - start):
                found.append((pixel, lower[pixel] + least, upper[pixel] - (end - start) + most))
        return tuple(found)


class _Primes:
    """Prime implicants of decision diagrams, as sets of literals from 1; remembered for each node."""

    def __init__(self, most: int, deadline: Deadline) -> None:
        self._most, self._deadline = most, deadline
        self._known: dict[Node, frozenset[frozenset[int]]] = {}

    def of(self, node: Node) -> frozenset[frozenset[int]]:
        if not node.satisfiable():
            return frozenset()
        if node.valid():
            return frozenset({frozenset()})
        if node not in self._known:
            self._deadline.left()
            high, low = node.cofactors()
            literal = node.node_var() + 1
            both = self.of(high & low)
            found = set(both)
            found |= {cube | {literal} for cube in self.of(high) - both}
            found |= {cube | {-literal} for cube in self.of(low) - both}
            if len(found) > self._most:
                raise ResourceError(f"there are over {self._most:,} prime implicants: allow more, or take fewer inputs")
            self._known[node] = frozenset(found)
        return self._known[node]


def region_of(network: BinarizedNetwork, where: Ball | Box | Levels | None) -> Region:
    """Return a region, the network's whole range if none is named."""
    if where is not None:
        return where.region(network)
    lower = np.full(network.inputs, network.grid.lowest, dtype=np.int64)
    return Region(lower, lower, np.full_like(lower, network.grid.highest))
