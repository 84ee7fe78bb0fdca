"""Proofs of local labels that an independent checker can follow: the search of `deep`, with every multiplier kept.

Accepts   label questions without a margin at one input; dense networks whose hidden layers are linear or ReLU
Gives     `certificates.Certificate`s, which `check.certificate_fault` re-derives in exact arithmetic
Property  sound: nothing is believed of a certificate. Complete as `bounds.neurons`, with larger trees
Source    `certificates`; THEORY.md, sections 3 and 4
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qrobust.backends.deep import BATCH, LEVEL_TUNING, levels_at, stored_label
from qrobust.bounds.linear import Proof, pre_activations
from qrobust.bounds.neurons import BELOW_ZERO, NeuronTree
from qrobust.bounds.rows import Log, Rows
from qrobust.bounds.substitution import Levels
from qrobust.certificates import Certificate, LevelProof, Splits
from qrobust.domains import Point
from qrobust.interval import Interval
from qrobust.leads import Leads
from qrobust.network import Activation
from qrobust.queries import LabelQuery, LocalLabel
from qrobust.search import Budget, explore


def certify_label(query: LabelQuery, budget: Budget) -> Certificate | None:
    """Prove that the label at the query's point cannot change, or return None where that is not to be had.

    Method    as `deep.decide_label`, but after a split only the bounds of the root and the splits themselves are used, since
              a tightened bound would need a proof of its own at every node: the trees are larger
    """
    x = query.domain.box.lower
    leads = Leads(query.network, query.level)
    label = stored_label(leads, x, budget.memory)
    plain = all(layer.activation in (Activation.LINEAR, Activation.RELU) for layer in query.network.layers)
    if label is None or query.sigma or not plain or not query.network.is_dense:
        return None
    pairs = leads.of_label(label)
    rows = Rows(leads.directions[pairs], leads.offset.upper[pairs], leads.strict[pairs])
    levels, start = levels_at(query.network, query.parameters, x[None], whole=True, budget=budget)
    proofs: list[Proof] = []
    bounds = pre_activations(levels, start, LEVEL_TUNING, proofs, budget)
    log = Log()
    tree = NeuronTree(levels, bounds, rows, log=log, budget=budget)
    outcome = explore(
        tree,
        budget,
        tolerance=0.0,
        stop=lambda _: tree.point is not None and tree.point.value > 0,
        batch=tree.batch(BATCH),
    )
    if outcome.open is None or len(outcome.open) or outcome.upper > BELOW_ZERO:
        return None
    point = LocalLabel(query.network, query.parameters, Point(x), query.level)
    return _assembled(point, label, leads.pairs[pairs, 1], levels, bounds, proofs, tree, log)


def _assembled(
    query: LocalLabel,
    label: int,
    rivals: npt.NDArray[np.int64],
    levels: Levels,
    bounds: list[Interval],
    proofs: list[Proof],
    tree: NeuronTree,
    log: Log,
) -> Certificate:
    widths = [z.shape[1] for z in bounds]
    found = []
    for number in range(1, levels.top):
        own = [proof for proof in proofs if proof.level == number]
        parts = [np.concatenate([np.zeros((0, widths[i])), *(p.multipliers[i] for p in own)]) for i in range(1, number)]
        found.append(
            LevelProof(
                bounds[number].lower[0],
                bounds[number].upper[0],
                np.concatenate([np.zeros(0), *(p.neurons for p in own)]).astype(np.int64),
                np.concatenate([np.zeros(0), *(p.signs for p in own)]).astype(np.int64),
                tuple(parts),
            )
        )
    splits = _splits(tree, log)
    multipliers = []
    for number in range(1, levels.top):
        values = np.concatenate([leaf[1][number - 1] for leaf in log.leaves])
        whole = np.zeros((len(values), widths[number]))
        whole[:, tree.kept[number]] = values
        multipliers.append(whole)
    return Certificate(query, label, rivals, tuple(found), splits, tuple(multipliers))


def _splits(tree: NeuronTree, log: Log) -> Splits:
    """Return the trees, over all neurons; leaves are numbered in the order in which they were logged."""
    count = tree.names
    parent, side = np.full(count, -1), np.zeros(count, dtype=np.int64)
    level, neuron, cut = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64), np.zeros(count)
    stops = [part.stop for part in tree.slices]
    for parents, branch, cuts, names in log.splits:
        parent[names], side[names] = np.concatenate([parents, parents]), np.repeat([1, -1], len(parents))
        number = np.searchsorted(stops, branch, side="right")
        level[parents], cut[parents] = number, cuts
        starts = np.array([part.start for part in tree.slices])[number]
        neuron[parents] = [tree.kept[k][i] for k, i in zip(number.tolist(), (branch - starts).tolist(), strict=True)]
    leaf = np.full(count, -1)
    names = np.concatenate([names for names, _ in log.leaves])
    leaf[names] = np.arange(len(names))
    return Splits(parent, level, neuron, cut, side, leaf)
