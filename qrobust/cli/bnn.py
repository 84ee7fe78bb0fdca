"""The commands about binarized networks: bnn verify, bnn attack, bnn train; bnn bracket is in a file of its own."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qrobust.binarized import Ball, BinarizedNetwork, BinarizedSession, Box, Grid, InputRounding, LeastChange, Norm, Robustness
from qrobust.binarized.attacks import Method, Target, run_attack
from qrobust.binarized.constraints import constraints
from qrobust.binarized.engines import sat
from qrobust.binarized.export import write_constraints
from qrobust.binarized.folding import TieRule, ZeroSign, fold
from qrobust.binarized.formats import ReadNetwork, load_binarized, read_vnnlib, save_binarized
from qrobust.binarized.race import ENGINES, PORTFOLIO
from qrobust.binarized.recipes import RECIPES, recipe_of
from qrobust.binarized.training import train as train_network
from qrobust.cli import show
from qrobust.cli.bnn_bracket import bracket
from qrobust.cli.commands import app
from qrobust.cli.compare import EXIT
from qrobust.cli.options import UsageError, numbers
from qrobust.errors import ShapeError
from qrobust.exact import to_fraction
from qrobust.formats.table import read_table
from qrobust.interval import FloatArray
from qrobust.quantization import parse_scheme

bnn = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Binarized networks: questions decided exactly.")
app.add_typer(bnn, name="bnn")
bnn.command("bracket")(bracket)


class NormName(StrEnum):
    """How far inputs may be from the named one."""

    LINF = "linf"
    L0 = "l0"
    L1 = "l1"
    L2 = "l2"
    HAMMING = "hamming"


class TieName(StrEnum):
    """Who has the label where scores are equal."""

    FIRST = "first"
    RIVAL = "rival"
    LABEL = "label"


class MethodName(StrEnum):
    """How an attack looks for an input."""

    FGSM = "fgsm"
    IFGSM = "ifgsm"
    MILP = "milp"
    IPROP = "iprop"


@bnn.command("verify")
def verify(
    model: Annotated[Path, typer.Argument(help="A binarized network: .json, .npz, .onnx, .onnx.gz.")],
    given: Annotated[str | None, typer.Option("--input", help="An input, '0, 1, 0.5', or a CSV file with a header.")] = None,
    row: Annotated[int, typer.Option(help="Which row of the CSV file, from 1.")] = 1,
    eps: Annotated[str | None, typer.Option(help="The radius of the ball about the input.")] = None,
    norm: Annotated[NormName, typer.Option(help="The ball's norm.")] = NormName.LINF,
    least: Annotated[bool, typer.Option("--least", help="Find the least change that loses the label.")] = False,
    vnnlib: Annotated[Path | None, typer.Option(help="A VNN-LIB query in place of --input and --eps.")] = None,
    label: Annotated[int | None, typer.Option(help="The label that must be kept; the input's own by default.")] = None,
    tie: Annotated[TieName, typer.Option(help="Who has the label where scores are equal.")] = TieName.FIRST,
    zero: Annotated[int, typer.Option("--sign-of-zero", help="What sign(0) is: 1 or -1.")] = 1,
    step: Annotated[str | None, typer.Option(help="The step that inputs are rounded to, as in 1/255.")] = None,
    reach: Annotated[str | None, typer.Option("--range", help="The inputs' range, as in 0:1.")] = None,
    rounding: Annotated[str, typer.Option(help="half-even, half-up or half-away.")] = "half-even",
    scheme: Annotated[str | None, typer.Option(help="Binarize a float network: binary or ternary.")] = None,
    engine: Annotated[str, typer.Option(help=f"{PORTFOLIO}, {', '.join(ENGINES)}.")] = PORTFOLIO,
    exact: Annotated[bool, typer.Option("--exact", help="A ROBUST in floating point does not count.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write the constraints: .cnf, .opb or .lp.")] = None,
    proof: Annotated[Path | None, typer.Option(help="Write STEM.cnf and its proof STEM.drat.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the attack.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Decide whether a binarized network keeps its label near an input. Exit code 0 robust, 1 violated, 3 unknown.

    \b
    qrobust bnn verify model.npz --input "0, 1, 1" --eps 1
    qrobust bnn verify net.onnx.gz --step 1 --range 0:255 --vnnlib query.vnnlib.gz
    """
    read = load_binarized(model, _grid(step, reach, rounding), None if scheme is None else parse_scheme(scheme))
    policies = _policies(tie, zero)
    with BinarizedSession(seed=seed) as session, show.waiting("deciding", quiet=quiet or json):
        if least:
            if vnnlib is not None or eps is not None:
                raise UsageError("--least goes with --input alone: leave --eps and --vnnlib out")
            found = LeastChange(read.network, _point(given, row, read), Norm(norm.value), label, *policies)
            change = session.least_change(found, engine=engine, seconds=timeout, exact=exact)
            code = 0 if change.is_exact_optimum else 3
            _print(change.to_json(), str(change), json=json, quiet=quiet)
            raise typer.Exit(code)
        query = _query((given, row, eps, norm), vnnlib, read, label, policies)
        answer = session.check(query, engine=engine, seconds=timeout, exact=exact)
    _write(query, answer.label, export, proof)
    _print(answer.to_json(), str(answer), json=json, quiet=quiet)
    raise typer.Exit(EXIT[answer.verdict])


@bnn.command("attack")
def attack(
    model: Annotated[Path, typer.Argument(help="A binarized network: .json, .npz, .onnx, .onnx.gz.")],
    method: Annotated[MethodName, typer.Option(help="How an input is looked for.")] = MethodName.IFGSM,
    given: Annotated[str | None, typer.Option("--input", help="An input, '0, 1, 0.5', or a CSV file with a header.")] = None,
    row: Annotated[int, typer.Option(help="Which row of the CSV file, from 1.")] = 1,
    eps: Annotated[str | None, typer.Option(help="The radius of the ball about the input.")] = None,
    norm: Annotated[NormName, typer.Option(help="The ball's norm; iprop takes linf.")] = NormName.LINF,
    target: Annotated[str, typer.Option(help="any, second (the rival of greatest score), or a class's number.")] = "any",
    label: Annotated[int | None, typer.Option(help="The label to take; the input's own by default.")] = None,
    tie: Annotated[TieName, typer.Option(help="Who has the label where scores are equal.")] = TieName.FIRST,
    zero: Annotated[int, typer.Option("--sign-of-zero", help="What sign(0) is: 1 or -1.")] = 1,
    step: Annotated[str | None, typer.Option(help="The step that inputs are rounded to, as in 1/255.")] = None,
    reach: Annotated[str | None, typer.Option("--range", help="The inputs' range, as in 0:1.")] = None,
    rounding: Annotated[str, typer.Option(help="half-even, half-up or half-away.")] = "half-even",
    scheme: Annotated[str | None, typer.Option(help="Binarize a float network: binary or ternary.")] = None,
    go_on: Annotated[bool, typer.Option("--maximise", help="Raise the lead on after the label is taken.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
    seed: Annotated[int, typer.Option(help="Of the random choices.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Look for an input near another that takes its label, and replay it in integers. Exit code 1 taken, 3 not taken.

    \b
    qrobust bnn attack model.npz --input image.csv --eps 0.02 --method iprop --target second
    """
    read = load_binarized(model, _grid(step, reach, rounding), None if scheme is None else parse_scheme(scheme))
    query = _query((given, row, eps, norm), None, read, label, _policies(tie, zero))
    with show.waiting("attacking", quiet=quiet or json):
        found = run_attack(
            query, Method(method.value), target=_target(target), seconds=timeout, stop_at_hit=not go_on, seed=seed
        )
    _print(found.to_json(), str(found), json=json, quiet=quiet)
    raise typer.Exit(EXIT[found.verdict])


@bnn.command("train")
def train(
    table: Annotated[Path, typer.Argument(help="A CSV file with a header: inputs from 0 to 1, last the class's number.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .npz or .json.")],
    recipe: Annotated[str, typer.Option(help=f"{', '.join(RECIPES)}.")] = "binary",
    hidden: Annotated[str | None, typer.Option(help="Neurons of each hidden layer, as in '100, 100'.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes through the table.")] = None,
    eps: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="The ball of losses about balls.")] = None,
    step: Annotated[str | None, typer.Option(help="The step that inputs are rounded to, as in 1/4.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a binarized network by recipe. It needs `pip install qrobust[tensorflow]`.

    \b
    qrobust bnn train digits.csv --recipe ternary-l1-stable --output digits.npz
    """
    chosen = replace(recipe_of(recipe), seed=seed)
    if output.suffix not in (".npz", ".json"):
        raise UsageError(f"--output is {output}, give a name that ends in .npz or .json")
    sizes = chosen.hidden if hidden is None else tuple(int(size) for size in numbers(hidden, "--hidden") if size >= 1)
    chosen = replace(chosen, hidden=sizes, epochs=epochs or chosen.epochs, step=step or chosen.step)
    chosen = chosen if eps is None else replace(chosen, eps=eps)
    _, values = read_table(table)
    labels = values[:, -1].astype(np.int64)
    if len(values) == 0 or values.shape[1] < 2 or not np.array_equal(labels, values[:, -1]):
        raise ShapeError(f"{table} needs rows of inputs, and last a column of whole numbers, the classes")
    say = (lambda text: None) if quiet else show.progress
    network = train_network(chosen, values[:, :-1], labels, int(labels.max()) + 1, name=output.stem, say=say)
    save_binarized(network, output)
    right = float((fold(network).labels(network.grid.levels(values[:, :-1])) == labels).mean())
    show.line(f"wrote {output}: {network}, {right:.2%} of the table labelled rightly, in integers", quiet=quiet)


def _target(text: str) -> Target:
    if text == "any":
        return "any"
    if text == "second":
        return "second"
    if not text.isdecimal():
        raise UsageError(f"--target is {text!r}, give any, second or the number of a class")
    return int(text)


def _policies(tie: TieName, zero: int) -> tuple[TieRule, ZeroSign]:
    if zero not in (1, -1):
        raise UsageError(f"--sign-of-zero is {zero}, give 1 or -1")
    return TieRule(tie.value), ZeroSign.PLUS if zero == 1 else ZeroSign.MINUS


Where = tuple[str | None, int, str | None, NormName]


def _print(document: dict[str, object], text: str, *, json: bool, quiet: bool) -> None:
    if json:
        show.document(document)
    else:
        show.line(text, quiet=quiet)


def _grid(step: str | None, reach: str | None, rounding: str) -> Grid | None:
    if step is None and reach is None:
        return None
    if step is None or reach is None or reach.count(":") != 1:
        raise UsageError("--step and --range go together: write for example --step 1/255 --range 0:1")
    rules = {rule.value: rule for rule in InputRounding}
    if rounding not in rules:
        raise UsageError(f"--rounding is {rounding!r}, give one of {', '.join(rules)}")
    lower, upper = reach.split(":")
    return Grid.of(step, lower, upper, 0, rules[rounding])


def _point(given: str | None, row: int, read: ReadNetwork) -> FloatArray:
    """Return the named input in the network's order."""
    if given is None:
        raise UsageError("say where: give --input, or --vnnlib")
    if Path(given).suffix.lower() == ".csv":
        _, table = read_table(given)
        if not 1 <= row <= len(table):
            raise UsageError(f"--row is {row}, {given} has rows 1 to {len(table)}")
        values = table[row - 1]
    else:
        values = np.array(numbers(given, "--input"))
    if len(values) != read.network.inputs:
        raise ShapeError(f"an input has {len(values)} numbers, the model takes {read.network.inputs}")
    return np.asarray(values[read.order])


def _query(
    where: Where, vnnlib: Path | None, read: ReadNetwork, label: int | None, policies: tuple[TieRule, ZeroSign]
) -> Robustness:
    given, row, eps, norm = where
    network: BinarizedNetwork = read.network
    if vnnlib is None:
        if eps is None:
            raise UsageError("say how far inputs may be: give --eps, or --least")
        return Robustness(network, Ball(_point(given, row, read), to_fraction(eps), Norm(norm.value)), label, *policies)
    if given is not None or eps is not None or label is not None:
        raise UsageError("--vnnlib says the inputs and the label: leave --input, --eps and --label out")
    found = read_vnnlib(vnnlib)
    if len(found.lower) != network.inputs:
        raise ShapeError(f"{vnnlib} has {len(found.lower)} inputs, the model takes {network.inputs}")
    return Robustness(network, Box(found.lower[read.order], found.upper[read.order]), found.label, TieRule.RIVAL, policies[1])


def _write(query: Robustness, label: int, export: Path | None, proof: Path | None) -> None:
    if export is None and proof is None:
        return
    region = query.ball.region(query.network)
    found = constraints(fold(query.network, query.zero), region, label, query.tie)
    if export is not None:
        write_constraints(found, export)
    if proof is not None and not sat.prove(found, proof):
        show.warning(f"an input loses the label: {proof} has clauses and no proof")
