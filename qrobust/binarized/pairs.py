"""Two networks of signs on the same input, as one: its label is 0 exactly where the two give the same label.

Method    to each network come a layer with a sign for each pair of classes (the first beats the second, ties going to the class
          that stands first) and a layer with a sign for each class (it beats all others); then both stand side by side, the
          shallower one's labels handed on by neurons of one input. Class 0 scores 1, class c + 1 scores 2 where the first
          network gives class c and the second does not, else 0 or -2
Property  exact: attacks, folding and engines are asked about it as about any network in integers; what the two have in common,
          folding joins
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from qrobust.binarized.folding import Folded, ThresholdLayer
from qrobust.binarized.queries import TieRule, check_pair
from qrobust.errors import UnsupportedError

MOST_CLASSES = 256  # a sign for each pair of them

SAME = 0  # the label of the pair where both give the same


def paired(first: Folded, second: Folded) -> Folded:
    """Return two as one network. Raises ShapeError (other shapes), UnsupportedError (other grids, too many classes)."""
    _check_alike(first, second)
    from scipy import sparse

    chains = [_with_labels(first), _with_labels(second)]
    classes, depth = len(first.scale), max(map(len, chains))
    identity = ThresholdLayer(sparse.eye_array(classes, dtype=np.int64, format="csr"), np.zeros(classes, dtype=np.int64))
    chains = [chain + [identity] * (depth - len(chain)) for chain in chains]
    layers = []
    for number, (mine, other) in enumerate(zip(*chains, strict=True)):
        parts = [mine.matrix, other.matrix]
        matrix = sparse.vstack(parts) if number == 0 else sparse.block_diag(parts)
        layers.append(ThresholdLayer(sparse.csr_array(matrix), np.concatenate([mine.threshold, other.threshold])))
    eye = sparse.eye_array(classes, dtype=np.int64)
    none = sparse.csr_array((1, 2 * classes), dtype=np.int64)
    scores = sparse.csr_array(sparse.vstack([none, sparse.hstack([eye, -eye])]))
    ones = tuple(Fraction(1) for _ in range(classes + 1))
    return Folded(first.network, tuple(layers), scores, ones, (Fraction(1), *(Fraction(0) for _ in range(classes))))


def _with_labels(folded: Folded) -> list[ThresholdLayer]:
    """Return a network's layers, and last its label, one sign a class."""
    from scipy import sparse

    classes = len(folded.scale)
    before = [folded.rivals(after, TieRule.FIRST, range(after)) for after in range(1, classes)]
    places = np.array([(number, after) for after, rivals in enumerate(before, start=1) for number in rivals.numbers])
    rows = sparse.csr_array(sparse.vstack([rivals.matrix for rivals in before]))
    beats = ThresholdLayer(rows, np.concatenate([rivals.threshold for rivals in before]))
    numbers, ones = np.arange(len(places)), np.ones(len(places), dtype=np.int64)
    entries = (np.concatenate([ones, -ones]), (places.T.reshape(-1), np.tile(numbers, 2)))
    wins = sparse.csr_array(entries, shape=(classes, len(places)))
    return [*folded.layers, beats, ThresholdLayer(wins, np.full(classes, classes - 1, dtype=np.int64))]


def _check_alike(first: Folded, second: Folded) -> None:
    check_pair(first.network, second.network)
    if len(first.scale) > MOST_CLASSES:
        raise UnsupportedError(f"there are {len(first.scale)} classes, at most {MOST_CLASSES} are compared")
