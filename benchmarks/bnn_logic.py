"""Reasons and numbers of networks of signs, as networks grow: explanations, counts, compilations."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from benchmarks.networks import shared_folder
from models.publish import FOLDER
from models.train_bnn import stem
from models.train_mnist import load_mnist
from qrobust.binarized import Ball, BatchNorm, BinarizedNetwork, Block, Grid, Linear
from qrobust.binarized.formats import load_binarized
from qrobust.errors import ResourceError
from qrobust.layers import Dense
from qrobust.logic.counting import Counter, Disagreement, Flips, count
from qrobust.logic.diagrams import Diagram, region_of
from qrobust.logic.explanation import Size, explain
from qrobust.logic.oracles import Kind
from qrobust.logic.sentential import compile_sentential
from qrobust.logic.signs import SignDecision, SignOracle

IMAGES, SECONDS = 10, 10.0
RECIPES = (("ternary-l1-stable", "7/10"), ("binmask-cbd-pgd", "7/10"))  # and how far each pixel ranges
NAMED_SIZES = (("subset", Size.SUBSET), ("least", Size.LEAST))
COUNTED = (16, 32, 64, 96)
COMPILED = (12, 20, 28, 36, 44, 52)
HIDDEN, NON_ZERO = 8, 6  # of each random network: neurons, and inputs that each sees
NODES, SDD_SIZE = 2_000_000, 300_000

Fact = tuple[str, str, float | None, str]
Say = Callable[[str], None]


def random_network(bits: int, seed: int) -> BinarizedNetwork:
    """Return a network over bits: HIDDEN neurons that see NON_ZERO inputs each, and two classes."""
    rng = np.random.default_rng(seed)
    weight = np.zeros((HIDDEN, bits))
    for row in weight:
        row[rng.choice(bits, size=NON_ZERO, replace=False)] = rng.choice([-1.0, 1.0], size=NON_ZERO)
    norm = BatchNorm(np.ones(HIDDEN), np.zeros(HIDDEN), weight.sum(axis=1) / 2, np.ones(HIDDEN), 0.0)
    block = Block(Linear(Dense(weight, np.zeros(HIDDEN)), np.ones(1)), norm)
    output = Linear(Dense(rng.choice([-1.0, 1.0], size=(2, HIDDEN)), np.array([0.5, 0.0])), np.ones(1))
    return BinarizedNetwork(Grid.of(1, 0, 1), (block,), output, f"{bits} bits")


def explained(say: Say) -> list[Fact]:
    """Explain the first test images: sizes, how many are minimal and checked, seconds."""
    images = load_mnist(shared_folder() / "mnist", "t10k").inputs[:IMAGES]
    facts: list[Fact] = []
    for recipe, eps in RECIPES:
        network = load_binarized(FOLDER / f"{stem(recipe)}.npz").network
        for kind in Kind:
            for name, size in NAMED_SIZES:
                sizes, done, seconds = [], 0, []
                for image in images:
                    started = time.perf_counter()
                    with SignOracle(SignDecision(network, image, Ball(image, Fraction(eps)))) as oracle:
                        found = explain(oracle, kind, size, seconds=SECONDS)
                    seconds.append(time.perf_counter() - started)
                    sizes += [] if found.features is None else [len(found.features)]
                    done += found.is_complete
                work = f"bnn-explain-{recipe}-{kind.value}-{name}"
                say(f"{work}: {sizes}, {done} of {IMAGES} complete, {np.mean(seconds):.2f} s")
                what = f"{IMAGES} images, eps {eps}, at most {SECONDS:g} s each"
                facts.append((work, "minimal and checked", done / IMAGES, f"share of {what}"))
                facts.append((work, "pixels", float(np.median(sizes)) if sizes else None, f"median of {what}"))
                facts.append((work, "mean_seconds", float(np.mean(seconds)), f"s, making the clauses included, of {what}"))
    return facts


def counted(say: Say) -> list[Fact]:
    """Count the inputs that two networks label differently, as the bits grow."""
    facts: list[Fact] = []
    for bits in COUNTED:
        network, copy = random_network(bits, 0), random_network(bits, 1)
        asked = Disagreement(network, Ball(np.zeros(bits), Fraction(1)), copy=copy)
        for counter in (Counter.ENUMERATION, Counter.EXACT, Counter.APPROXIMATE, Counter.PARITIES):
            if counter is Counter.ENUMERATION and bits > 20:  # 2^20 inputs are tried in seconds, more take minutes
                continue
            found = count(asked, counter, seconds=120)
            work, (low, high) = f"bnn-count-{counter.value}-{bits}-bits", found.share
            say(f"{work}: {found}")
            facts.append((work, "seconds", found.seconds, "s, starting the counter's process included"))
            facts.append((work, "gap of the share", float(high - low), "both ends, of all inputs"))
    facts += _counted_near_an_image(say)
    return facts


def _counted_near_an_image(say: Say) -> list[Fact]:
    """Count the inputs near the first test image that lose its label, from draws: far too many to count exactly."""
    image = load_mnist(shared_folder() / "mnist", "t10k").inputs[0]
    facts: list[Fact] = []
    for recipe, eps in RECIPES:
        network = load_binarized(FOLDER / f"{stem(recipe)}.npz").network
        found = count(Flips(network, Ball(image, Fraction(eps))), Counter.APPROXIMATE)
        work, (low, high) = f"bnn-count-draws-{recipe}", found.share
        say(f"{work}: {low} to {high}")
        facts.append((work, "upper end of the share", float(high), f"of the inputs within {eps} of an image, 99.9 % sure"))
        facts.append((work, "seconds", found.seconds, "s"))
    return facts


def compiled(say: Say) -> list[Fact]:
    """Compile random networks as the bits grow: seconds and sizes, and the robustness of every input at once."""
    facts: list[Fact] = []
    for bits in COMPILED:
        network = random_network(bits, 0)
        region, work = region_of(network, None), f"bnn-compile-{bits}-bits"
        try:
            started = time.perf_counter()
            diagram = Diagram(network, region, most=NODES)
            facts.append((work, "bdd_seconds", time.perf_counter() - started, "s"))
            facts.append((work, "bdd_nodes", diagram.nodes, "nodes"))
            started = time.perf_counter()
            diagram.distances()
            facts.append((work, "robustness_seconds", time.perf_counter() - started, f"s, for all 2^{bits} inputs"))
        except ResourceError as error:
            say(f"{work}: {error}")
            facts.append((work, "bdd_nodes", None, f"over {NODES:,} nodes"))
        try:
            started = time.perf_counter()
            found = compile_sentential(network, region, most=SDD_SIZE)
            facts.append((work, "sdd_seconds", time.perf_counter() - started, "s"))
            facts.append((work, "sdd_size", found.size, "elements"))
        except ResourceError as error:
            say(f"{work}: {error}")
            facts.append((work, "sdd_size", None, f"over {SDD_SIZE:,} elements"))
        say(f"{work}: {facts[-5:]}")
    return facts
