"""The commands about binarized networks: bnn verify, bnn attack, bnn train; the others have files of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer

from qrobust.answers import Verdict
from qrobust.binarized import (
    Ball,
    BinarizedAnswer,
    BinarizedNetwork,
    BinarizedSession,
    Box,
    Grid,
    InputRounding,
    LabelChange,
    LabelChangeAnswer,
    LeastChange,
    Norm,
    Robustness,
)
from qrobust.binarized.attacks import Method, Target, run_attack
from qrobust.binarized.certification import certify
from qrobust.binarized.constraints import constraints
from qrobust.binarized.export import write_constraints
from qrobust.binarized.folding import fold
from qrobust.binarized.formats import ReadNetwork, load_binarized, read_vnnlib, save_binarized
from qrobust.binarized.many import Settings
from qrobust.binarized.queries import TieRule, ZeroSign
from qrobust.binarized.race import ENGINES, PORTFOLIO
from qrobust.binarized.recipes import ARCHITECTURES, RECIPES, recipe_of
from qrobust.binarized.training import train as train_network
from qrobust.cli import show
from qrobust.cli.arguments import Cache, Jobs
from qrobust.cli.bnn_pairs import read_pair
from qrobust.cli.bnn_rows import RowsAsked, verify_rows
from qrobust.cli.exits import EXIT
from qrobust.cli.options import UsageError, cache_in, numbers
from qrobust.errors import ResourceError, ShapeError, UnsupportedError
from qrobust.exact import to_fraction
from qrobust.files import check_can_appear
from qrobust.formats.table import read_table
from qrobust.interval import FloatArray
from qrobust.layers import Shape
from qrobust.quantization import parse_scheme

bnn = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Binarized networks: questions decided exactly.")


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
    model: Annotated[Path, typer.Argument(help="A binarized network: .json, .npz, .keras, .onnx, .onnx.gz, .h5 (Larq).")],
    given: Annotated[str | None, typer.Option("--input", help="An input, '0, 1, 0.5', or a CSV file with a header.")] = None,
    row: Annotated[int, typer.Option(help="Which row of the CSV file, from 1.")] = 1,
    rows: Annotated[str | None, typer.Option(help="Many rows in place of one, from 1: '1:100', or ':' for all.")] = None,
    eps: Annotated[str | None, typer.Option(help="The radius of the ball about the input.")] = None,
    norm: Annotated[NormName, typer.Option(help="The ball's norm.")] = NormName.LINF,
    least: Annotated[bool, typer.Option("--least", help="Find the least change that loses the label.")] = False,
    box: Annotated[
        str | None,
        typer.Option(
            help="Inputs between two ends each, as in '0:1, 0.5:1', in place of both; with --rows, a CSV file of such ends."
        ),
    ] = None,
    vnnlib: Annotated[Path | None, typer.Option(help="A VNN-LIB query in place of --input and --eps.")] = None,
    copy: Annotated[
        str | None, typer.Option(help="Ask instead whether this network, or MODEL made binary or ternary, labels all alike.")
    ] = None,
    is_float: Annotated[bool, typer.Option("--float", help="MODEL is a float network, compared as it is with --copy.")] = False,
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
    certificate: Annotated[
        Path | None,
        typer.Option(help="Write a ROBUST answer's proof, which `qrobust replay` checks; of --rows, one a row."),
    ] = None,
    proof: Annotated[
        Path | None, typer.Option(help="Write it for other checkers: STEM.cnf, and its proof STEM.drat and STEM.lrat.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the attack.")] = 0,
    jobs: Jobs = 1,
    cache: Cache = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Decide whether a binarized network keeps its label near an input. Exit code 0 robust, 1 violated, 3 unknown.

    With --least, 0 if the least change is found, or it is proved that there is none, else 3.

    \b
    qrobust bnn verify model.npz --input "0, 1, 1" --eps 1
    qrobust bnn verify model.npz --input "0, 1, 1" --eps 1 --certificate proof.cert
    qrobust bnn verify model.npz --input points.csv --rows 1:100 --eps 0.1 --jobs 2 --cache answers
    qrobust bnn verify model.npz --input points.csv --rows : --least --norm l1
    qrobust bnn verify model.npz --copy other.npz --box boxes.csv --rows 1:10
    qrobust bnn verify model.npz --copy other.npz --box "0:1, 0:1, 1:1"
    qrobust bnn verify iris.json --float --copy ternary --step 1/10 --range 0:8 --box "5:6, 3:3.5, 4:5, 1.3:1.6"
    qrobust bnn verify net.onnx.gz --step 1 --range 0:255 --vnnlib query.vnnlib.gz
    """
    check_can_appear(export, certificate, proof)
    grid, chosen = grid_of(step, reach, rounding), None if scheme is None else parse_scheme(scheme)
    policies = policies_of(tie, zero)
    if rows is not None:
        if any(each is not None for each in (vnnlib, export, proof)):
            raise UsageError("--rows asks about many inputs: leave --vnnlib, --export and --proof out")
        if least and certificate is not None:
            raise UsageError("--certificate keeps proofs of labels: leave --least out")
        _check_rows((given, eps, box), norm, least=least, is_pair=copy is not None or is_float)
        if copy is not None or is_float:
            _check_pair(tie, label)
            pair = read_pair(model, copy, grid, chosen, is_float=is_float)
            read, compared = pair.read, pair.network
        else:
            read, compared = load_binarized(model, grid, chosen), None
        radius = None if eps is None else to_fraction(eps)
        table = RowsAsked(given or box, rows, radius, Norm(norm.value), label, *policies, box is not None, compared)
        settings, kept = Settings(engine, timeout, exact, seed), cache_in(cache)
        verify_rows(read, table, settings, certificate, jobs=jobs, cache=kept, json=json, quiet=quiet)
    if jobs > 1 or cache is not None:
        raise UsageError("--jobs and --cache share many inputs: they go with --rows")
    if copy is not None or is_float:
        _check_pair(tie, label)
        if least or any(each is not None for each in (vnnlib, export)):
            raise UsageError("--copy goes with --input and --eps, or --box: leave --least, --vnnlib and --export out")
        pair = read_pair(model, copy, grid, chosen, is_float=is_float)
        change = LabelChange(pair.network, pair.read.network, _where((given, row, eps, norm), box, pair.read), policies[1])
        with BinarizedSession(seed=seed) as session, show.waiting("deciding", quiet=quiet or json):
            alike = session.label_change(change, engine=engine, seconds=timeout, exact=exact)
        _answered(alike, (certificate, proof), timeout, json=json, quiet=quiet)
    read = load_binarized(model, grid, chosen)
    with BinarizedSession(seed=seed) as session, show.waiting("deciding", quiet=quiet or json):
        if least:
            if any(each is not None for each in (vnnlib, eps, box, certificate, proof, export)):
                raise UsageError("--least goes with --input alone: leave --eps, --box, --vnnlib, --certificate and such out")
            found = LeastChange(read.network, named_point(given, row, read), Norm(norm.value), label, *policies)
            ends = session.least_change(found, engine=engine, seconds=timeout, exact=exact)
            _print(ends.to_json(), str(ends), json=json, quiet=quiet)
            raise typer.Exit(0 if ends.is_exact_optimum or ends.is_never_lost else 3)
        query = _query(((given, row, eps, norm), box), vnnlib, read, label, policies)
        answer = session.check(query, engine=engine, seconds=timeout, exact=exact)
    if export is not None:
        integers, region = fold(query.network, query.zero), query.ball.region(query.network)
        write_constraints(constraints(integers, region, answer.label, query.tie), export)
    _answered(answer, (certificate, proof), timeout, json=json, quiet=quiet)


def _answered(
    answer: BinarizedAnswer | LabelChangeAnswer,
    files: tuple[Path | None, Path | None],
    seconds: float,
    *,
    json: bool,
    quiet: bool,
) -> NoReturn:
    """Print an answer, its proof written if it was asked for, and end with its exit code."""
    wanted, steps = [path for path in files if path is not None], None
    try:
        if wanted and answer.verdict is Verdict.ROBUST:
            with show.waiting("proving", quiet=quiet or json):
                found = certify(answer.query, seconds, is_proved=answer.exact)
            answer, steps = replace(answer, is_certified=True), len(found.proof)
            if files[0] is not None:
                found.save(files[0])
            if files[1] is not None:
                found.write_texts(files[1])
        elif wanted:
            show.warning(f"{wanted[0]} was not written: only ROBUST answers have proofs")
    except (ResourceError, UnsupportedError) as error:
        show.warning(f"{wanted[0]} was not written: {error}")
    if json:
        show.document(answer.to_json() | ({} if steps is None else {"proof_steps": steps}))
    else:
        show.line(str(answer), quiet=quiet)
        if steps is not None:
            show.line(f"certificate: {show.counted(steps, 'step')}, followed by the checker", quiet=quiet)
    raise typer.Exit(EXIT[answer.verdict])


def _check_pair(tie: TieName, label: int | None) -> None:
    if tie is not TieName.FIRST or label is not None:
        raise UsageError("--copy compares the labels of two networks: leave --tie and --label out")


def _check_rows(where: tuple[str | None, str | None, str | None], norm: NormName, *, least: bool, is_pair: bool) -> None:
    """Raise UsageError unless the options say one question about each row."""
    given, eps, box = where
    if least and (eps is not None or box is not None or is_pair):
        raise UsageError("--rows --least goes with --input FILE.csv: leave --eps, --box and --copy out")
    if box is not None and (given is not None or eps is not None or norm is not NormName.LINF):
        raise UsageError("--rows --box FILE.csv says which inputs: leave --input, --eps and --norm out")
    if box is None and (given is None or (eps is None and not least)):
        raise UsageError("--rows goes with --input FILE.csv and --eps or --least, or with --box FILE.csv")


@bnn.command("attack")
def attack(
    model: Annotated[Path, typer.Argument(help="A binarized network: .json, .npz, .keras, .onnx, .onnx.gz, .h5 (Larq).")],
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
    seed: Annotated[int, typer.Option(min=0, help="Of the random choices.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Look for an input near another that takes its label, and replay it in integers. Exit code 1 taken, 3 not taken.

    \b
    qrobust bnn attack model.npz --input image.csv --eps 0.02 --method iprop --target second
    """
    read = load_binarized(model, grid_of(step, reach, rounding), None if scheme is None else parse_scheme(scheme))
    if eps is None:
        raise UsageError("say how far inputs may be: give --eps")
    query = _query(((given, row, eps, norm), None), None, read, label, policies_of(tie, zero))
    with show.waiting("attacking", quiet=quiet or json):
        found = run_attack(
            query, Method(method.value), target=_target(target), seconds=timeout, stop_at_hit=not go_on, seed=seed
        )
    _print(found.to_json(), str(found), json=json, quiet=quiet)
    raise typer.Exit(EXIT[found.verdict])


@bnn.command("train")
def train(
    table: Annotated[Path, typer.Argument(help="A CSV file with a header: inputs from 0 to 1, last the class's number.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .npz, .json or .keras.")],
    recipe: Annotated[str, typer.Option(help=f"{', '.join(RECIPES)}.")] = "binary",
    architecture: Annotated[str, typer.Option(help=f"{', '.join(ARCHITECTURES)}.")] = "dense",
    image: Annotated[str | None, typer.Option(help="Channels, height, width of convolutions' inputs: '1, 28, 28'.")] = None,
    hidden: Annotated[str | None, typer.Option(help="Neurons of each hidden layer, as in '100, 100'; 0 for none.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes through the table.")] = None,
    eps: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="The ball of losses about balls.")] = None,
    step: Annotated[str | None, typer.Option(help="The step that inputs are rounded to, as in 1/4.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a binarized network by recipe. It needs `pip install qrobust[tensorflow]`.

    \b
    qrobust bnn train digits.csv --recipe ternary-l1-stable --output digits.npz
    qrobust bnn train digits.csv --recipe ternary-l1-stable --output digits.keras
    qrobust bnn train digits.csv --recipe binmask-cbd-pgd-agc --architecture small-conv --eps 0.3 --output digits.npz
    """
    chosen = replace(recipe_of(recipe, architecture), seed=seed)
    if output.suffix not in (".npz", ".json", ".keras"):
        raise UsageError(f"--output is {output}, give a name that ends in .npz, .json or .keras")
    check_can_appear(output)
    sizes = chosen.hidden if hidden is None else _sizes(hidden)
    shape = _image_shape(image)
    if shape is not None and not chosen.convolutions:
        raise UsageError("--image goes with convolutions: add --architecture small-conv")
    chosen = replace(chosen, hidden=sizes, epochs=epochs or chosen.epochs, step=step or chosen.step)
    chosen = chosen if eps is None else replace(chosen, eps=eps)
    _, values = read_table(table)
    labels = values[:, -1].astype(np.int64)
    if len(values) == 0 or values.shape[1] < 2 or not np.array_equal(labels, values[:, -1]):
        raise ShapeError(f"{table} needs rows of inputs, and last a column of whole numbers, the classes")
    say = (lambda text: None) if quiet else show.progress
    classes = int(labels.max()) + 1
    network = train_network(chosen, values[:, :-1], labels, classes, image=shape, name=output.stem, say=say)
    save_binarized(network, output)
    network = load_binarized(output).network  # a Keras model's numbers are rounded to float32
    right = float((fold(network).labels(network.grid.levels(values[:, :-1])) == labels).mean())
    show.line(f"wrote {output}: {network}, {right:.2%} of the table labelled rightly, in integers", quiet=quiet)


def _image_shape(text: str | None) -> Shape | None:
    if text is None:
        return None
    sizes = numbers(text, "--image")
    if len(sizes) != 3 or any(size < 1 or size != int(size) for size in sizes):
        raise UsageError(f"--image is {text!r}, give channels, height and width, as in '1, 28, 28'")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def _sizes(text: str) -> tuple[int, ...]:
    """Return the neurons of each hidden layer; '0' stands for no hidden layer. Raises UsageError, NumberError."""
    sizes = numbers(text, "--hidden")
    if any(size < 1 or size != int(size) for size in sizes) and sizes != [0.0]:
        raise UsageError(f"--hidden is {text!r:.60}, give whole numbers of neurons, as in '100, 100', or 0 for no hidden layer")
    return tuple(int(size) for size in sizes if size)


def _target(text: str) -> Target:
    if text == "any":
        return "any"
    if text == "second":
        return "second"
    if not text.isdecimal():
        raise UsageError(f"--target is {text!r}, give any, second or the number of a class")
    return int(text)


def policies_of(tie: TieName, zero: int) -> tuple[TieRule, ZeroSign]:
    if zero not in (1, -1):
        raise UsageError(f"--sign-of-zero is {zero}, give 1 or -1")
    return TieRule(tie.value), ZeroSign.PLUS if zero == 1 else ZeroSign.MINUS


Where = tuple[str | None, int, str | None, NormName]


def _print(document: dict[str, object], text: str, *, json: bool, quiet: bool) -> None:
    if json:
        show.document(document)
    else:
        show.line(text, quiet=quiet)


def grid_of(step: str | None, reach: str | None, rounding: str) -> Grid | None:
    """Return the grid that --step and --range name. Raises UsageError."""
    rules = {rule.value: rule for rule in InputRounding}
    if rounding not in rules:
        raise UsageError(f"the rounding of inputs is {rounding!r}, give one of {', '.join(rules)}")
    if step is None and reach is None and rules[rounding] is InputRounding.HALF_EVEN:
        return None
    if step is None or reach is None or reach.count(":") != 1:
        raise UsageError("--step and --range go together, and a rounding with both: write for example --step 1/255 --range 0:1")
    lower, upper = reach.split(":")
    return Grid.of(step, lower, upper, 0, rules[rounding])


def given_numbers(given: str | None, row: int, table_of: Callable[[Path], FloatArray]) -> FloatArray:
    """Return the numbers of --input, or of a row of the table that it names. Raises UsageError, NumberError, DatasetError."""
    if given is None:
        raise UsageError("say which input: give --input")
    if Path(given).suffix.lower() != ".csv":
        return np.array(numbers(given, "--input"))
    table = table_of(Path(given))
    if not 1 <= row <= len(table):
        raise UsageError(f"--row is {row}, {given} has rows 1 to {len(table)}")
    values: FloatArray = table[row - 1]
    return values


def named_point(given: str | None, row: int, read: ReadNetwork) -> FloatArray:
    """Return the named input in the network's order."""
    values = point_values(given, row)
    if len(values) != read.network.inputs:
        raise ShapeError(f"an input has {len(values)} numbers, the model takes {read.network.inputs}")
    return np.asarray(values[read.order])


def point_values(given: str | None, row: int) -> FloatArray:
    """Return the numbers of a named input, in the order in which they stand."""
    return given_numbers(given, row, lambda path: read_table(path)[1])


def _where(where: Where, box: str | None, read: ReadNetwork) -> Ball | Box:
    """Return the inputs that --input and --eps, or --box, name."""
    given, row, eps, norm = where
    if box is None:
        if eps is None:
            raise UsageError("say how far inputs may be: give --eps, --box, or --least")
        return Ball(named_point(given, row, read), to_fraction(eps), Norm(norm.value))
    if given is not None or eps is not None or norm is not NormName.LINF:
        raise UsageError("--box says which inputs: leave --input, --eps and --norm out")
    return box_of(box, read)


def box_of(box: str, read: ReadNetwork) -> Box:
    """Return the inputs that --box names. Raises UsageError, ShapeError, NumberError."""
    sides = [side.split(":") for side in box.split(",")]
    if any(len(side) != 2 for side in sides):
        raise UsageError(f"--box {box!r} is not read: write lower:upper for each input, as in '0:1, 0.5:1'")
    if len(sides) != read.network.inputs:
        raise ShapeError(f"--box has {len(sides)} sides, the model takes {read.network.inputs} inputs")
    ends = np.array(numbers(",".join(end for side in sides for end in side), "--box"))
    return Box(ends[0::2][read.order], ends[1::2][read.order])


def _query(
    where: tuple[Where, str | None],
    vnnlib: Path | None,
    read: ReadNetwork,
    label: int | None,
    policies: tuple[TieRule, ZeroSign],
) -> Robustness:
    (given, _, eps, _), box = where
    network: BinarizedNetwork = read.network
    if vnnlib is None:
        return Robustness(network, _where(where[0], box, read), label, *policies)
    if any(each is not None for each in (given, eps, box, label)):
        raise UsageError("--vnnlib says the inputs and the label: leave --input, --eps, --box and --label out")
    found = read_vnnlib(vnnlib)
    if len(found.lower) != network.inputs:
        raise ShapeError(f"{vnnlib} has {len(found.lower)} inputs, the model takes {network.inputs}")
    return Robustness(network, Box(found.lower[read.order], found.upper[read.order]), found.label, TieRule.RIVAL, policies[1])
