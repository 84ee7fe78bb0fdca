"""Timed comparisons, run by hand: `python -m benchmarks NAME ...`, or `make bench-NAME`.

Each run replaces its own rows in benchmarks/results.json, from which RESULTS.md is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np

from benchmarks import (
    acasxu,
    bnn,
    bnn_attacks,
    bnn_eev,
    bnn_engines,
    bnn_khalil,
    bnn_logic,
    bnn_proofs,
    bnn_recipes,
    bracket,
    deployment,
    explicit_peers,
    integers,
    labels,
    lirpa_peer,
    paper,
    radius,
    readers,
    signoffs,
    wide,
)
from benchmarks.results import Rows, row, timed, write

ENUMERATION_AIM = 1.0
SIGNOFF_AIM = 10.0

RADIUS_SECONDS = 300.0  # for each question about a radius
ONE_CORE = ("acasxu-float16", "digits-radius")  # their matrix products are too small for a second thread

AIM_BNN = 10.0  # seconds a query of the traffic-sign network


def on_cores(name: str) -> Rows:
    """Run a benchmark in a process whose matrix products take two threads, as the aims of labels and radii say, or one."""
    cores = "1" if name in ONE_CORE else "2"
    threads = {"OMP_NUM_THREADS": cores, "OPENBLAS_NUM_THREADS": cores}
    script = f"import json, sys; from benchmarks.__main__ import inner; rows = inner({name!r}); print(json.dumps(rows))"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | threads, stdout=subprocess.PIPE, check=True)
    result: Rows = json.loads(done.stdout.splitlines()[-1])
    return result


def inner(name: str) -> Rows:
    """Measure in this process."""
    if name == "digits-radius":
        return radius_rows(name)
    if name == "linear-cost":
        return cost_rows(name)
    if name == "acasxu-float16":
        return acasxu_rows(name)
    if name == "global-30-50-1":
        return wide_rows(name)
    return label_rows(name)


def label_rows(name: str) -> Rows:
    """The share of images decided, and how long each took."""
    from qrobust.answers import Verdict

    work = labels.works()[name]
    measured = labels.measure(work, say=lambda text: print(text, file=sys.stderr, flush=True))
    decided = measured.share(Verdict.ROBUST, Verdict.VIOLATED)
    left = 1 - measured.share(Verdict.VIOLATED)
    certified = measured.share(Verdict.ROBUST)
    return [
        row(name, "decided", decided, "share of 100 images", aim=work.decided, name=name),
        row(name, "certified", certified, "share of 100 images", aim=0.5 * left if work.of_standing else None, name=name),
        row(name, "median_seconds", measured.median, "s an image, two cores", aim=work.median, name=name),
        row(name, "worst_seconds", max(measured.seconds), "s an image, two cores", aim=work.worst, name=name),
    ]


def radius_rows(name: str) -> Rows:
    """Greatest certified delta over least attacked delta."""
    found = radius.radius_ratios(RADIUS_SECONDS, say=lambda text: print(text, file=sys.stderr, flush=True))
    ratios = [safe / flip for safe, flip, _ in found]
    return [
        row(name, "radius_ratio", min(ratios), f"certified / attacked, worst of {len(found)} images", aim=0.999, name=name),
        row(name, "median_seconds", float(np.median([s for *_, s in found])), "s an image, one core", name=name),
        row(name, "worst_seconds", max(s for *_, s in found), "s an image, one core", name=name),
    ]


def acasxu_rows(name: str) -> Rows:
    """The greatest change of a score between each ACAS Xu network and its float16 copy, over each property's box."""
    found = acasxu.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    seconds = [one.seconds for one in found]
    within = sum(one.gap <= acasxu.AIM for one in found) / len(found)
    return [
        row(name, "relative_gap", max(one.gap for one in found), "worst of all boxes", aim=acasxu.AIM, name=name),
        row(name, "decided", within, f"share of {len(found)} boxes with a relative gap of at most 10 %", aim=1.0, name=name),
        row(name, "median_seconds", float(np.median(seconds)), "s a box, one core", aim=acasxu.SECONDS, name=name),
        row(name, "worst_seconds", max(seconds), "s a box, one core", name=name),
    ]


def cost_rows(name: str) -> Rows:
    """The linear bounds of 784-100-100-100-10 in forward passes."""
    found = radius.forward_passes()
    unit = "NumPy float64 forward passes of one image"
    return [row(f"{name}-{kind}", "forward_passes", value, unit, aim=100.0, name=name) for kind, value in found.items()]


def explicit_rows(limit: float) -> Rows:
    """Label questions at one input against solvers of the explicit form, each weight and bias a variable."""
    asked = explicit_peers.explicit_rows(min(limit, explicit_peers.LIMIT))
    ours = {(name, question): (seconds, said) for name, _, question, solver, seconds, _, said in asked if solver == "qrobust"}
    rows: Rows = []
    for name, count, question, solver, seconds, ended, said in asked:
        if solver == "qrobust":
            continue
        own, verdict = ours[name, question]
        peer = f"{solver}: {said}" if ended else f"{solver}: no answer in time"
        work = f"explicit {name} ({count} parameters), {question}, {verdict}"
        rows.append(row(work, f"seconds against {solver}", own, "s", peer=peer, peer_value=seconds, name="explicit"))
    return rows


def lirpa_rows(limit: float) -> Rows:
    """The share of images that linear bounds certify at the root, against auto_LiRPA's, in the same box on two threads."""
    os.environ |= {"OMP_NUM_THREADS": "2"}
    rows: Rows = []
    for batch in (1, 10):
        for network in ("mnist_2x100", "mnist_3x100"):
            own, *others = list(lirpa_peer.comparison((network,), 8, 100, min(limit, 60.0), batch))
            work = f"lirpa-{network.replace('_', '-')}-int8, {batch} images at a time"
            for _, method, _, asked, found, seconds, fault in others:
                said = f"{method}, {asked} images asked" + (f": {fault}" if fault else "")
                share = None if not asked else found / asked
                ours = own[4] / own[3]
                rows.append(
                    row(work, f"certified, {method}", ours, "share of images", peer=said, peer_value=share, name="lirpa")
                )
                rows.append(row(work, f"seconds, {method}", own[5], "s an image", peer=said, peer_value=seconds, name="lirpa"))
    return rows


def reader_rows(limit: float) -> Rows:
    """How far each reader is from the format's own runtime."""
    floats = []
    for each in readers.measured():
        work = f"readers-{each.what}"
        floats.append(row(work, "max_difference", each.worst, each.unit, aim=readers.AIM, peer=each.peer, name="readers"))
        if each.exact is not None:
            ours, theirs = each.exact
            metric = "difference from exact arithmetic"
            floats.append(row(work, metric, ours, each.unit, peer=each.peer, peer_value=theirs, name="readers"))
    return floats + [
        row(f"readers-{what}", "differing_outputs", wrong, f"of {total:,} outputs", aim=0.0, peer=peer, name="readers")
        for what, peer, wrong, total in readers.counted()
    ]


def deployment_rows(limit: float) -> Rows:
    """Any rounding to a scheme beside the one copy, at inputs held out from scikit-learn's tables."""
    rows: Rows = []
    for name, scheme, count, _, found in deployment.measure(say=lambda text: print(text, file=sys.stderr, flush=True)):
        work, unit = f"deployment-{name}-{scheme}", f"share of {count} held-out inputs"
        rows += [
            row(work, "certified", found.certified, f"{unit}, any rounding"),
            row(work, "decided", found.decided, f"{unit}, any rounding"),
            row(work, "unchanged labels", found.copy, f"{unit}, the float model's copy"),
        ]
    return rows


def wide_rows(name: str) -> Rows:
    """How near the ends of eps and sigma come over the box of a 30-50-1 network."""
    rows: Rows = []
    worst = 0.0
    for one in wide.measure():
        worst = max(worst, one.gap)
        print(f"  {one.name}: [{one.lower:.6g}, {one.upper:.6g}], {one.seconds:.1f} s", file=sys.stderr, flush=True)
        work = f"{name}-{one.name}"
        rows += [
            row(work, "relative_gap", one.gap, f"of an upper end of {one.upper:.4f}", aim=wide.AIM, name=name),
            row(work, "seconds", one.seconds, "s, two cores", aim=wide.SECONDS, name=name),
        ]
    return [row(name, "relative_gap", worst, f"worst of {len(rows) // 2}", aim=wide.AIM, name=name), *rows]


def bnn_rows(limit: float) -> Rows:
    """Published optima of binarized networks, and the traffic-sign queries of VNN-COMP 2023."""
    rows: Rows = []
    for found in bnn.optima():
        work, peer = f"bnn-least-{found.name}", "the published optimum"
        gap = float("inf") if found.upper is None else float(found.upper - found.lower)
        rows += [
            row(work, "seconds", found.seconds, "s, in integers" if found.exact else "s", aim=bnn.AIM, name="bnn"),
            row(work, "gap of the two ends", gap, "grey levels", aim=0.0, name="bnn"),
            row(work, "lower end", found.lower, "grey levels", peer=peer, peer_value=found.published, name="bnn"),
        ]
    signs = bnn.traffic_signs()
    confirmed = sum(one for _, one, _ in signs) / len(signs)
    rows.append(
        row("bnn-traffic-signs", "decided", confirmed, "violated, witness replayed in onnxruntime", aim=1.0, name="bnn")
    )
    rows.append(row("bnn-traffic-signs", "worst_seconds", max(s for *_, s in signs), "s a query", aim=AIM_BNN, name="bnn"))
    return rows


def deployed_rows(limit: float) -> Rows:
    """A deployed network of signs: its accuracy, whatever the rule for ties, beside the published one."""
    found, work = bnn.deployed(), "bnn-tfc-1w1a"
    unit = "share of 10,000 MNIST images"
    own = f"{unit}; the first 500 agree with Brevitas's own test of its checkpoint" if found.agrees else unit
    peer = "the framework's README, which no rule for ties reaches"
    return [
        row(work, "accuracy", found.accuracy, own, peer=peer, peer_value=bnn.TFC_PUBLISHED, name="bnn-tfc"),
        row(work, "accuracy, ties to the right class", found.best, unit, name="bnn-tfc"),
        row(work, "accuracy, ties to a wrong class", found.worst, unit, name="bnn-tfc"),
    ]


def recipe_rows(limit: float) -> Rows:
    """Networks of signs by recipe: accuracy, weights, and how questions about the first test images are decided."""
    found = bnn_recipes.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    return [row(*fact, name="bnn-recipes") for one in found for fact in one.facts()]


def eev_rows(limit: float) -> Rows:
    """EEV's small convolutional network, trained here by recipe and for three eps, asked at three."""
    found = bnn_eev.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    return [row(*fact, name="bnn-eev", **more) for one in found for fact, more in one.facts()]


def engine_rows(limit: float) -> Rows:
    """The portfolio and each single engine at the same questions: how many each decides, PAR-2 and median; and the aim."""
    found = bnn_engines.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    rows = [row(*fact, name="bnn-engines") for one in found for fact in one.facts()]
    for work, metric, value, unit, aim in bnn_engines.aims(found):
        rows.append(row(work, metric, value, unit, aim=aim, name="bnn-engines"))
    return rows


def proof_rows(limit: float) -> Rows:
    """Certificates of networks of signs: how many answers get one, and our checker beside others."""
    found = bnn_proofs.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    return [row(*fact, name="bnn-proofs", **more) for one in found for fact, more in one.facts()]


def logic_rows(name: str, measure: Callable[[bnn_logic.Say], list[bnn_logic.Fact]]) -> Rows:
    """Explanations, counts or compilations of networks of signs, as networks grow."""
    return [row(*fact, name=name) for fact in measure(lambda text: print(text, file=sys.stderr, flush=True))]


def attack_rows(limit: float) -> Rows:
    """Attacks by name on the binary MNIST network, towards the second-best class."""
    found = bnn_attacks.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    return [row(*fact, name="bnn-attacks") for one in found for fact in one.facts()]


def bracket_rows(limit: float) -> Rows:
    """Ordinary networks held between two networks of signs; pairs and pictures go to plots/."""
    found = bracket.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    facts = [(f"bracket-{one.name}", *fact) for one in found for fact in one.facts()]
    return [row(work, metric, value, unit, name="bracket", **more) for work, metric, value, unit, more in facts]


def khalil_rows(limit: float) -> Rows:
    """Attacks by name on nine networks of signs at five eps; the table and the figures go to plots/."""
    found = bnn_khalil.measure(say=lambda text: print(text, file=sys.stderr, flush=True))
    return [row(*fact, name="bnn-khalil") for fact in bnn_khalil.facts(found)]


def enumerate_int8(limit: float) -> Rows:
    """Two-feature int8 programs against their float models, at all 65,536 inputs."""
    name, peer = "enumerate-int8", "LiteRT's reference kernels and a float64 forward pass, no proof"
    rows: Rows = []
    for model in integers.PAIRS:
        seconds, found = timed(lambda m=model: integers.enumerated(m))  # type: ignore[misc]
        theirs, others = timed(lambda m=model: integers.tested(m))  # type: ignore[misc]
        work, ours, change = f"{name}-{model}", integers.changed(found), found.greatest
        rows += [
            row(work, "seconds for 65,536 inputs", seconds, "s", aim=ENUMERATION_AIM, peer=peer, peer_value=theirs, name=name),
            row(work, "labels that are others", ours, "inputs", peer=peer, peer_value=others, name=name),
            row(work, "greatest change, lower end", change[0], "confidence", name=name),
            row(work, "gap of the two ends", change[1] - change[0], "confidence", name=name),
        ]
    return rows


def signoff_rows(limit: float) -> Rows:
    """From an int8 program and 1,000 points to a report with three obligations, the start of Python included."""
    metric = f"seconds from .tflite and {signoffs.POINTS:,} points to a report"
    return [
        row(f"signoff-{name}", metric, signoffs.seconds(name), "s", aim=SIGNOFF_AIM, name="signoff") for name in signoffs.PAIRS
    ]


def bounded_int8(limit: float) -> Rows:
    """The same programs over the box of all inputs, by bounds and bisection; the peer runs every input."""
    name, peer = "box-int8", "every one of the 65,536 inputs run and compared"
    rows: Rows = []
    for model in integers.PAIRS:
        seconds, found = timed(lambda m=model: integers.bounded(m))  # type: ignore[misc]
        theirs, true = timed(lambda m=model: integers.enumerated(m))  # type: ignore[misc]
        single = integers.bounded(model, boxes=1).greatest[1]
        work, highest = f"{name}-{model}", true.greatest
        rows += [
            row(work, "seconds", seconds, "s", peer=peer, peer_value=theirs, name=name),
            row(
                work, "greatest change, lower end", found.greatest[0], "confidence", peer=peer, peer_value=highest[0], name=name
            ),
            row(
                work, "greatest change, upper end", found.greatest[1], "confidence", peer=peer, peer_value=highest[1], name=name
            ),
            row(work, "the same after one step", single, "confidence", peer=peer, peer_value=highest[1], name=name),
            row(work, "runs of inputs", found.executed, "inputs", peer=peer, peer_value=65_536, name=name),
        ]
    return rows


BENCHMARKS: dict[str, Callable[[float], Rows]] = {
    "paper": paper.paper,
    "million": paper.million,
    "readers": reader_rows,
    "enumerate-int8": enumerate_int8,
    "explicit": explicit_rows,
    "lirpa": lirpa_rows,
    "deployment": deployment_rows,
    "signoff": signoff_rows,
    "box-int8": bounded_int8,
    "bnn": bnn_rows,
    "bnn-attacks": attack_rows,
    "bnn-eev": eev_rows,
    "bnn-engines": engine_rows,
    "bnn-khalil": khalil_rows,
    "bnn-proofs": proof_rows,
    "bnn-recipes": recipe_rows,
    "bnn-tfc": deployed_rows,
    "bnn-explain": lambda _: logic_rows("bnn-explain", bnn_logic.explained),
    "bnn-count": lambda _: logic_rows("bnn-count", bnn_logic.counted),
    "bnn-compile": lambda _: logic_rows("bnn-compile", bnn_logic.compiled),
    "bracket": bracket_rows,
}
BENCHMARKS |= {
    name: lambda _, name=name: on_cores(name)  # type: ignore[misc]
    for name in [*labels.works(), "digits-radius", "linear-cost", "acasxu-float16", "global-30-50-1"]
}


def main() -> None:
    """Run the benchmarks named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    usual = [name for name in BENCHMARKS if name != "lirpa" or lirpa_peer.available()]
    parser.add_argument("names", nargs="*", default=usual, metavar="NAME", help=f"any of {', '.join(BENCHMARKS)}")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds given to each global query of the peer")
    options = parser.parse_args()
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark is called {name!r}: choose from {', '.join(BENCHMARKS)}")
        print(name, file=sys.stderr, flush=True)
        write(BENCHMARKS[name](options.limit))


if __name__ == "__main__":
    main()
