"""Branch and bound on neurons: the greatest value of rows over the logits, for all parameters of a box at once.

Accepts   `linear.Levels` at one input; linear, ReLU, sigmoid, tanh
Gives     a `search.Tree` whose nodes are boxes of pre-activations: an open ReLU is split at 0, a curve in the middle
Method    After a split the bounds of the later pre-activations are tightened (`linear.refreshed`); then alpha, beta and the
          weights of cuts (`lifted`) are tuned from the parent's on batches of nodes, all rows together, and a node is closed
          as soon as its bound is below the cut; one near it is tuned for longer before it is split. The neuron to split is
          the one, among those whose relaxation loses most, whose two children have the best bounds (filtered strong
          branching). Neurons that are off everywhere are left out. Each batch is also attacked from where its relaxations
          attain their bounds (`attack`). With a budget's `arrays` a device tunes and attacks; what it proposes is bounded here
Property  sound; complete for ReLU up to the convergence of the tuning: a node without open neurons is tuned for long, and
          if it stays open the search ends without a verdict
Source    Bunel et al. 2020, JMLR 21(42); De Palma et al. 2021, arXiv 2104.06718 (filtered strong branching); Wang et al. 2021,
          arXiv 2103.06624 (beta-CROWN)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.arrays import Arrays, namespace_of
from qrobust.bounds.attack import Found, climb
from qrobust.bounds.envelopes import ENVELOPES
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.lifted import Cuts, Lifted, Weighted
from qrobust.bounds.linear import Adam, Best, Tuning, refreshed
from qrobust.bounds.rows import Log, Point, Rows, alive, restricted
from qrobust.bounds.spans import Span
from qrobust.bounds.substitution import Above, Levels, Step, backward, derivatives, short
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation, activate
from qrobust.search import Budget, Nodes

CANDIDATES = 16  # neurons whose halves are bounded before one is split
BATCH_WORK = 2e10  # multiplications in a batch of nodes
AT_ONCE = 128  # halves that are bounded together, so that the arrays stay in the cache
ROOT_TUNING = Tuning(steps=40, rate=0.3, decay=0.93)
NODE_TUNING = Tuning(steps=6, rate=0.1, decay=0.9)  # from the parent's multipliers on
NEAR = 0.05  # a node this near to the cut, in units of the root's distance, is tuned on before it is split
LONGER = Tuning(steps=200, rate=0.1, decay=0.98)
LAST_TUNING = Tuning(steps=400, rate=0.2, decay=0.985)  # of nodes without open neurons
CUT_RATE = 0.3  # steps of cuts' weights, likewise
BETA_RATE = 3.0  # steps of beta, in units of the mean multiplier of its level
DEFAULT = Budget()
NO_CUTS: Mapping[int, Cuts] = {}
BELOW_ZERO = -5e-324  # the greatest float below 0: bounds above it are at least 0


class NeuronTree:
    """See the module's docstring.

    Nodes whose bound is not above `best` are closed; it starts at `cut`. With a cut just below 0 the search decides whether
    any row can reach 0 (or more than 0, where it is strict); with `climbs` and one row it is raised to what attacks attain.
    """

    def __init__(
        self,
        levels: Levels,
        bounds: Sequence[Interval],
        rows: Rows,
        *,
        cut: float = BELOW_ZERO,
        climbs: bool = False,
        tuning: Tuning | None = None,
        log: Log | None = None,
        attacks: bool = True,
        budget: Budget = DEFAULT,
        cuts: Mapping[int, Cuts] = NO_CUTS,
    ) -> None:
        self.full = levels
        self.kept = alive(levels, bounds)
        self.levels, self.bounds = restricted(levels, bounds, self.kept)
        self._cut_by(cuts)
        self.rows, self.tuning = rows, tuning or NODE_TUNING
        self.best, self.climbs, self.log, self.attacks, self.budget = cut, climbs, log, attacks, budget
        self.point: Point | None = None
        self.sizes = self.levels.sizes(self.bounds)
        self.names = 0
        self.gap = np.zeros(len(rows.nu))
        widths = [z.shape[1] for z in self.bounds[1:]]
        ends = np.cumsum([0, *widths])
        self.slices = [slice(0, 0)] + [slice(a, b) for a, b in pairwise(ends.tolist())]
        relus = [self.levels.activation(k) is Activation.RELU for k in range(1, self.levels.top)]
        self.is_relu = np.repeat(np.array(relus, dtype=bool), widths)

    def _cut_by(self, cuts: Mapping[int, Cuts]) -> None:
        """Keep the cuts of the kept neurons, and with each level's the absolute values that its rows meet."""
        self.ties: dict[int, tuple[Cuts, FloatArray]] = {}
        greatest = [np.maximum(z.upper[0], 0.0) for z in self.bounds]
        for number, part in sorted(cuts.items()):
            own = part.restricted(self.kept[number], self.kept[number - 1])
            self.ties[number] = own, own.size(greatest[number - 1], greatest[number])

    def batch(self, most: int) -> int:
        """Return how many nodes, at most `most`, may be split together: their halves are tuned together.

        So many as fit in memory, and take about a second, since the time is looked at between batches.
        """
        return max(1, min(most, self.levels.rows(self.budget) // 2, int(BATCH_WORK / self._refresh_work())))

    def _refresh_work(self) -> float:
        """Multiplications that tightening the bounds of both halves of a node takes, about."""
        work, below = 1.0, 0
        for stage, z in zip(self.levels.stages, self.bounds[1:], strict=False):
            open_ = int(((z.lower < 0) & (z.upper > 0)).sum())
            work += 4.0 * open_ * below
            below += stage.weight.size
        return work

    def roots(self) -> Nodes:
        """One node a row."""
        count = len(self.rows.nu)
        hidden = self.bounds[1:]
        lower, upper = (np.concatenate([getattr(z, end)[0] for z in hidden] or [np.zeros(0)]) for end in ("lower", "upper"))
        shape = (count, len(lower))
        alpha = np.broadcast_to((upper > -lower).astype(np.float32), shape).copy()
        beta = np.zeros((count, len(lower) + sum(len(cuts) for cuts, _ in self.ties.values())), dtype=np.float32)
        parts = np.arange(count), np.broadcast_to(lower, shape), np.broadcast_to(upper, shape), alpha, beta, ROOT_TUNING
        found = self._bounded(np.full(count, np.inf), self._named(count, None), *parts)
        self.gap = np.where(np.isfinite(found.upper), np.maximum(found.upper - self.best, 0.0), 0.0)
        return found

    def _named(self, count: int, nodes: Nodes | None) -> npt.NDArray[np.intp]:
        """Number new nodes, the children of `nodes` (the upper halves of all, then the lower ones)."""
        names = np.arange(self.names, self.names + count)
        self.names += count
        if self.log is not None and nodes is not None:
            _, lower, upper, _, _, branch, parents = nodes.parts
            self.log.splits.append((parents, branch, self.cuts(lower, upper, branch), names))
        return names

    def split(self, nodes: Nodes) -> Nodes | None:
        settled = nodes.parts[5] < 0
        if settled.any():
            last = self._tuned_out(nodes.take(settled))
            rest = None if settled.all() else self.split(nodes.take(~settled))
            return None if last is None else last if rest is None else rest.join(last)
        row, lower, upper, alpha, beta, branch, _ = nodes.parts
        names = self._named(2 * len(nodes), nodes)
        lower, upper = self.halves(lower, upper, branch)
        twice = [np.concatenate([part, part]) for part in (nodes.upper, row, alpha, beta, branch)]
        if self.log is not None:  # a leaf must be proved from the bounds of the root and its splits alone
            return self._bounded(twice[0], names, twice[1], lower, upper, twice[2], twice[3])
        known = [self.bounds[0], *(Interval(a, b) for a, b in zip(self._cut(lower), self._cut(upper), strict=True))]
        since = np.searchsorted([part.stop for part in self.slices], twice[4], side="right")
        bounds, empty = refreshed(self.levels, known, self.sizes, since, self.budget)
        lower, upper = (np.concatenate([getattr(z, end) for z in bounds[1:]], axis=1) for end in ("lower", "upper"))
        return self._bounded(np.where(empty, -np.inf, twice[0]), names, twice[1], lower, upper, twice[2], twice[3])

    def _tuned_out(self, nodes: Nodes) -> Nodes | None:
        """Tune nodes without open neurons, whose bounds are exact at their best, for long; None if one is still not closed."""
        row, lower, upper, alpha, beta, _, names = nodes.parts
        beta = np.where(np.arange(beta.shape[1]) < self.slices[-1].stop, beta, 0)  # cuts add nothing here
        found = self._bounded(nodes.upper, names, row, lower, upper, alpha, beta, LAST_TUNING)
        return None if self._is_open(found.upper, row).any() else found

    def halves(self, lower: FloatArray, upper: FloatArray, branch: npt.NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        """Split each node at one neuron: the upper halves of all, then the lower ones. Shapes: (batch, T); (2 batch, T)."""
        each = np.arange(len(branch))
        cut = self.cuts(lower, upper, branch)
        above, below = lower.copy(), upper.copy()
        above[each, branch], below[each, branch] = cut, cut
        return np.concatenate([above, lower]), np.concatenate([upper, below])

    def cuts(self, lower: FloatArray, upper: FloatArray, branch: npt.NDArray[np.intp]) -> FloatArray:
        """Return where each node's neuron is split: at 0 for a ReLU, else in the middle."""
        low, high = (ends[np.arange(len(branch)), branch] for ends in (lower, upper))
        return self.cut_at(low, high, branch)

    def cut_at(self, low: FloatArray, high: FloatArray, branch: npt.NDArray[np.intp]) -> FloatArray:
        """Return where neurons with these bounds are split. Shapes: all (n,)."""
        return np.where(self.is_relu[branch], np.clip(0.0, low, high), Interval(low, high).middle)

    def _cut(self, values: FloatArray) -> list[FloatArray]:
        return [values[:, part] for part in self.slices[1:]]

    def _levelled(self, values: FloatArray) -> list[FloatArray]:
        """Cut arrays over all hidden neurons into levels; level 0 has none of its own."""
        return [np.zeros((len(values), 0)), *(values[:, part].astype(np.float64) for part in self.slices[1:])]

    def _bounded(
        self,
        known: FloatArray,
        names: npt.NDArray[np.intp],
        row: npt.NDArray[np.intp],
        lower: FloatArray,
        upper: FloatArray,
        alpha: npt.NDArray[Any],
        beta: npt.NDArray[Any],
        tuning: Tuning | None = None,
    ) -> Nodes:
        """Bound nodes, tuning those that stay open; `known` holds for them already."""
        best, branch = known.copy(), np.full(len(row), -1)
        alpha, beta = alpha.copy(), beta.copy()
        live = np.arange(len(row))
        work = _Work(self, live, row, lower, upper, alpha, beta)
        tuning, arrays = tuning or self.tuning, self.budget.arrays
        rate, steps = tuning.rate, tuning.steps if arrays is None else min(tuning.steps, 1)
        for count in range(steps + 1):
            self._met(work, live, best, alpha, beta)
            open_ = self._is_open(best[live], row[live])
            if not open_.any() or count == steps:
                break
            if open_.mean() < 0.7:
                live, work = live[open_], work.take(open_)
                work.substitute()
            if arrays is None:
                work.step(rate)
            else:
                work.take_proposed(arrays, tuning)
            rate *= tuning.decay
        if arrays is None and open_.any():
            hopeful = open_ & (best[live] - self.best < NEAR * self.gap[row[live]])
            if hopeful.any():
                self._tuned_on(work.take(hopeful), live[hopeful], best, alpha, beta)
                open_ = self._is_open(best[live], row[live])
                live, work = live[open_], work.take(open_)
                work.substitute()
        if open_.any():
            branch[live] = work.branches()
            if self.attacks:
                self._attack(work, row[live])
        closed = np.flatnonzero(~self._is_open(best, row))
        if self.log is not None and len(closed):
            best[closed], branch[closed] = self._logged(self.log, closed, names, row, lower, upper, alpha, beta)
        best = np.where(self.rows.strict[row] & (best <= 0), -np.inf, best)
        return Nodes(best, (row, lower, upper, alpha, beta, branch, names))

    def _met(self, work: _Work, live, best, alpha, beta) -> None:  # type: ignore[no-untyped-def]
        """Bound nodes by their multipliers, and keep what is better."""
        found = work.substitute()
        better = found < best[live]
        best[live[better]] = found[better]
        alpha[live[better]], beta[live[better]] = (values[better] for values in work.multipliers())

    def _tuned_on(self, work: _Work, live, best, alpha, beta) -> None:  # type: ignore[no-untyped-def]
        """Tune nodes further that nearly close, and let go those that do."""
        work.substitute()
        rate = LONGER.rate
        for _ in range(LONGER.steps):
            work.step(rate)
            rate *= LONGER.decay
            self._met(work, live, best, alpha, beta)
            open_ = best[live] > self.best
            if not open_.any():
                return
            if open_.mean() < 0.7:
                live, work = live[open_], work.take(open_)
                work.substitute()

    def _is_open(self, upper: FloatArray, row: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        return np.asarray((upper > self.best) & ~(self.rows.strict[row] & (upper <= 0)))

    def _logged(self, log: Log, closed, names, row, lower, upper, alpha, beta):  # type: ignore[no-untyped-def]
        """Log the multipliers of closed nodes, shortened; return bounds by these, and where to split what they leave open."""
        work = _Work(self, closed, row, lower, upper, alpha, beta)
        work.substitute()
        multipliers = short([step.nu for step in work.found.steps])
        top = self.levels.top
        bounds = backward(self.levels, top, work.above, work.bounds, self.sizes, given=multipliers).upper
        proved = ~self._is_open(bounds, row[closed])
        log.leaves.append((names[closed[proved]], [values[proved] for values in multipliers[1:]]))
        return bounds, np.where(proved, -1, work.branches())

    def _attack(self, work: _Work, row: npt.NDArray[np.intp]) -> None:
        rows, start = self.rows.take(row), self.bounds[0]
        found = climb(self.levels, start, rows.nu, rows.offset, work.positions(), rounds=4, arrays=self.budget.arrays)
        self.offer(found, row)

    def offer(self, found: Found, row: npt.NDArray[np.intp]) -> None:
        """Take the best of what an attack found, if it beats what there is. Positions are of the restricted levels."""
        index = int(found.value.argmax())
        if self.point is None or found.value[index] > self.point.value:
            positions = self._restored([p[index] for p in found.positions])
            self.point = Point(int(row[index]), float(found.value[index]), positions)
            self.best = max(self.best, self.point.value) if self.climbs else self.best

    def offer_full(self, found: Found, row: npt.NDArray[np.intp]) -> None:
        """As `offer`, with positions of all neurons."""
        self.offer(Found(found.value, [p[:, kept] for p, kept in zip(found.positions, self.kept, strict=True)]), row)

    def _restored(self, positions: list[FloatArray]) -> list[FloatArray]:
        """Positions of all neurons: those that are off everywhere stay low."""
        result = []
        for number, kept in enumerate(self.kept):
            size = len(self.full.stages[number].weight.T)
            whole = -np.ones(size)
            whole[kept] = positions[number]
            result.append(whole)
        return result


class _Work:
    """Nodes being tuned: their bounds, multipliers and optimizers, level by level."""

    def __init__(self, tree: NeuronTree, live, row, lower, upper, alpha, beta) -> None:  # type: ignore[no-untyped-def]
        self.tree, self.rows = tree, tree.rows.take(row[live])
        self.levels, self.sizes = tree.levels, tree.sizes
        self.above = Above.of_rows(tree.levels.stages[-1], self.rows.nu, self.rows.offset, tree.sizes[-1])
        low, high = tree._levelled(lower[live]), tree._levelled(upper[live])
        self.bounds = [tree.bounds[0], *(Interval(a, b) for a, b in zip(low[1:], high[1:], strict=True))]
        self.alpha, self.beta = tree._levelled(alpha[live]), tree._levelled(beta[live])
        self._limits(tree)
        self.adams = [(Adam(a), Adam(b)) for a, b in zip(self.alpha, self.beta, strict=True)]
        self.cuts: dict[int, Weighted] = {}
        first = tree.slices[-1].stop
        for number, (cuts, size) in tree.ties.items():
            self.cuts[number] = Weighted(cuts, beta[live, first : first + len(cuts)].astype(np.float64), size)
            first += len(cuts)
        self.cut_adams = {number: Adam(part.weights) for number, part in self.cuts.items()}

    def _limits(self, tree: NeuronTree) -> None:
        """Where beta may lie: free for curved activations, of one sign for ReLUs that were split, else 0."""
        self.limits = [(np.zeros((1, 0)), np.zeros((1, 0)))]
        for number, z in enumerate(self.bounds[1:], start=1):
            root = tree.bounds[number]
            if tree.levels.activation(number) is Activation.RELU:
                on, off = (z.lower == 0) & (root.lower < 0), (z.upper == 0) & (root.upper > 0)
            else:
                on = off = np.ones(z.shape, dtype=bool)
            self.limits.append((np.where(off, -np.inf, 0.0), np.where(on, np.inf, 0.0)))

    def take(self, mask: npt.NDArray[np.bool_]) -> _Work:
        part = copy.copy(self)
        part.rows = self.rows.take(mask)
        part.above = self.above.take(mask)
        part.bounds = [self.bounds[0], *(z[mask] for z in self.bounds[1:])]
        part.alpha, part.beta = [a[mask] for a in self.alpha], [b[mask] for b in self.beta]
        part.limits = [self.limits[0], *((low[mask], high[mask]) for low, high in self.limits[1:])]
        part.adams = [(first.take(mask), second.take(mask)) for first, second in self.adams]
        part.cuts = {number: cut.take(mask) for number, cut in self.cuts.items()}
        part.cut_adams = {number: adam.take(mask) for number, adam in self.cut_adams.items()}
        return part

    def on(self, arrays: Arrays) -> _Work:
        """Return the same on a device."""
        part = copy.copy(self)
        part.levels, part.above = self.levels.on(arrays), self.above.on(arrays)
        part.sizes = [arrays.to_device(np.zeros((1, 1)))] * len(self.sizes)
        spans: Any = [Span.on(arrays, z) for z in self.bounds]
        part.bounds = spans
        part.alpha, part.beta = ([arrays.to_device(v) for v in values] for values in (self.alpha, self.beta))
        part.limits = [(arrays.to_device(low), arrays.to_device(high)) for low, high in self.limits]
        part.adams = [(Adam(a), Adam(b)) for a, b in zip(part.alpha, part.beta, strict=True)]
        return part

    def take_proposed(self, arrays: Arrays, tuning: Tuning) -> None:
        """Take the alpha and beta that a device finds best for each node."""
        with arrays.proposing():
            work, rate = self.on(arrays), tuning.rate
            best = Best(arrays.to_device(np.full(len(self.rows.nu), np.inf)), [*work.alpha, *work.beta])
            for count in range(tuning.steps + 1):
                best = best.met(work.substitute(), [*work.alpha, *work.beta])
                if count < tuning.steps:
                    work.step(rate)
                    rate *= tuning.decay
            shapes = [a.shape for a in (*self.alpha, *self.beta)]
            found = [arrays.to_host(values, shape) for values, shape in zip(best.arrays, shapes, strict=True)]
        count = len(self.alpha)
        self.alpha = [np.clip(values, 0.0, 1.0) for values in found[:count]]
        self.beta = [np.clip(values, *limits) for values, limits in zip(found[count:], self.limits, strict=True)]

    def multipliers(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return alpha, and beta with the cuts' weights behind it, as nodes keep them."""
        beta = np.concatenate([*self.beta, *(cut.weights for cut in self.cuts.values())], axis=1)
        return np.concatenate(self.alpha, axis=1).astype(np.float32), beta.astype(np.float32)

    def substitute(self) -> FloatArray:
        levels, tuned = self.levels, {"alpha": self.alpha, "beta": self.beta}
        self.found = backward(levels, levels.top, self.above, self.bounds, self.sizes, **tuned, cuts=self.cuts)
        return self.found.upper

    def step(self, rate: float) -> None:
        slopes = derivatives(self.levels, self.levels.top, self.found.steps, self.bounds, self.cuts)
        for number in range(1, self.levels.top):
            first, second = self.adams[number]
            rise = self.found.steps[number].rise
            xp = namespace_of(rise)
            scale = xp.mean(xp.abs(rise), axis=1, keepdims=True)
            self.alpha[number] = xp.clip(self.alpha[number] - rate * first.step(slopes.alpha[number]), 0.0, 1.0)
            moved = self.beta[number] - BETA_RATE * rate * scale * second.step(slopes.beta[number])
            self.beta[number] = xp.clip(moved, *self.limits[number])
            cut = self.cuts.get(number)
            if cut is not None:
                moved = cut.weights - CUT_RATE * rate * scale * self.cut_adams[number].step(slopes.cuts[number])
                self.cuts[number] = replace(cut, weights=np.maximum(moved, 0.0))

    def branches(self) -> npt.NDArray[np.intp]:
        """Return the neuron (over all hidden levels but 0) to split at each node, or -1 where no relaxation loses anything.

        Of the CANDIDATES that lose most, the one with the greatest product of what its two halves gain.
        """
        losses = self._losses()
        count = min(CANDIDATES, losses.shape[1])
        if not count:
            return np.full(len(losses), -1)
        each = np.arange(len(losses))
        candidates = np.argpartition(-losses, count - 1, axis=1)[:, :count]
        rows = max(1, AT_ONCE // (2 * count))
        score = np.concatenate([self._gains(each[i : i + rows], candidates[i : i + rows]) for i in range(0, len(each), rows)])
        score[losses[each[:, None], candidates] < 0] = -1.0
        choice = candidates[each, score.argmax(axis=1)]
        return np.where(losses[each, choice] >= 0, choice, -1)

    def _gains(self, rows: npt.NDArray[np.intp], candidates: npt.NDArray[np.intp]) -> FloatArray:
        """Return the product of what the halves gain, for each candidate of some nodes. Shapes: candidates (rows, count)."""
        nodes, neurons = np.repeat(rows, candidates.shape[1]), candidates.ravel()
        bounds = np.empty((2, len(nodes)))
        numbers = np.searchsorted([part.stop for part in self.tree.slices], neurons, side="right")
        for number in np.unique(numbers).tolist():
            at = np.flatnonzero(numbers == number)
            bounds[:, at] = self._halved(number, nodes[at], neurons[at] - self.tree.slices[number].start)
        # What a half gains counts up to the cut: beyond it the half is closed.
        base = self.found.upper[rows, None]
        room = np.maximum(base - self.tree.best, 1e-9)
        gains = [np.clip(base - half.reshape(candidates.shape), 1e-6 * room, room) for half in bounds]
        product: FloatArray = gains[0] * gains[1]
        return product

    def _halved(self, number: int, nodes: npt.NDArray[np.intp], neurons: npt.NDArray[np.intp]) -> FloatArray:
        """Forecast the bounds of the halves of one neuron of a level at each node. Shape: (2, nodes).

        The levels above keep their multipliers, so one multiplier changes, and with it one row of what the level below meets.
        """
        levels, here, below = self.tree.levels, self.found.steps[number], self.found.steps[number - 1]
        stage, envelope = levels.stages[number - 1], ENVELOPES[levels.activation(number)]
        one = np.arange(len(nodes)), np.zeros(len(nodes), dtype=np.intp)
        ends = [getattr(self.bounds[number], end)[nodes, neurons][:, None] for end in ("lower", "upper")]
        cut = self.tree.cut_at(ends[0][:, 0], ends[1][:, 0], neurons + self.tree.slices[number].start)[:, None]
        rise, fall = here.rise[nodes, neurons][:, None], here.above.fall[nodes, neurons][:, None]
        lift = None if here.lifted is None else here.lifted.lift[nodes, neurons][:, None]
        alpha, beta = self.alpha[number][nodes, neurons][:, None], self.beta[number][nodes, neurons]
        before = here.nu[nodes, neurons]
        radius = stage.radius[neurons]
        radius = radius[:, None] if radius.ndim == 1 else radius
        own = [z if len(z) == 1 else z[nodes] for z in self.bounds[:number]]
        tuned = {name: [a[nodes] for a in values[:number]] for name, values in (("alpha", self.alpha), ("beta", self.beta))}
        cuts = {level: cut.take(nodes) for level, cut in self.cuts.items() if level < number}
        result = []
        for half in (Interval(cut, ends[1]), Interval(ends[0], cut)):
            if lift is None:
                nu = envelope.slopes(rise, fall, half, alpha)[one] + beta
                after = envelope.conjugate(rise, fall, nu[:, None], half)[0][one]
            else:
                found = Lifted.of(rise, lift, half, alpha, beta[:, None])
                nu, after = found.nu[one], found.lost[one]
            lost = after - here.lost[nodes, neurons]
            step, grown = nu - before, np.abs(nu) - np.abs(before)
            moved, spread = step[:, None] * stage.weight[neurons], grown[:, None] * radius
            above = Above(
                below.above.rise[nodes] + moved + spread,
                below.above.fall[nodes] + moved - spread,
                below.above.value[nodes] + lost + step * stage.bias[neurons] + grown * stage.bias_radius[neurons],
                np.zeros(len(nodes)),
            )
            result.append(backward(levels, number, above, own, self.tree.sizes, **tuned, cuts=cuts).upper)
        return np.stack(result)

    def _losses(self) -> FloatArray:
        """What the relaxation of each neuron costs the bound, about; -1 where it costs nothing. Shape: (batch, T)."""
        levels = self.tree.levels
        reached = derivatives(levels, levels.top, self.found.steps, self.bounds, self.cuts).reached
        losses = [np.zeros((len(self.rows.nu), 0))]
        for number in range(1, levels.top):
            step, z = self.found.steps[number], self.bounds[number]
            activation = levels.activation(number)
            if activation is Activation.RELU:
                losses.append(np.where((z.lower < 0) & (z.upper > 0), _relu_loss(step, z, reached[number]), -1.0))
                continue
            h = activate(activation, z, INTERVALS)
            straight = (z.lower >= 0) | (z.upper <= 0) | levels.stages[number].fixed
            nothing = (z.upper - z.lower <= 1e-9 * (1 + np.abs(z.upper))) | ((activation is Activation.LINEAR) & straight)
            losses.append(np.where(nothing, -1.0, np.abs(step.rise) * np.abs(h.upper - h.lower)))
        return np.concatenate(losses, axis=1)

    def positions(self) -> list[FloatArray]:
        """Where the relaxations attain their bounds, as ends of rows."""
        first = np.where(self.found.steps[0].place >= self.bounds[0].upper, 1.0, -1.0)
        return [first] + [np.where(step.nu < 0, -1.0, 1.0) for step in self.found.steps[1:]]


def _relu_loss(step: Step, z: Interval, reached: FloatArray) -> FloatArray:
    """What the relaxation of an open ReLU costs the bound: the chord's height at 0, and its gap at the relaxed solution."""
    width = np.where(z.upper > z.lower, z.upper - z.lower, 1.0)
    height = np.maximum(step.rise, 0.0) * z.upper * -z.lower / width
    if step.lifted is None:
        slope = np.where(step.rise != 0, step.chosen / np.where(step.rise != 0, step.rise, 1.0), 0.0)
    else:
        slope = step.lifted.by_rise
    relaxed = step.h + (reached - step.place) * slope
    gap = np.abs(step.rise * (relaxed - np.maximum(reached, 0.0)))
    loss: FloatArray = height + gap
    return loss
