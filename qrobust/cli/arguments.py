"""The options that several commands share, each with its help, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path,
    typer.Argument(
        help="A .json (qrobust), .keras, .h5, .onnx, .npz, .nnet, .tflite, .skops or, with --trust-pickle, .joblib file."
    ),
]
Delta = Annotated[float | None, typer.Option(help="Every parameter may differ from its stored value by at most this.")]
Deltas = Annotated[list[float] | None, typer.Option("--delta", help="As above; give it again to compare several.")]
DeltaPerLayer = Annotated[str | None, typer.Option(help="One delta a layer, as in '0.01, 0.002'.")]
Against = Annotated[Path | None, typer.Option(help="A second model: every parameter between the two.")]
WeightsOnly = Annotated[bool, typer.Option("--weights-only", help="Perturb no biases.")]
Bits = Annotated[
    int | None, typer.Option(help="Every rounding to this many bits, biases too: half a step of each tensor's own scale.")
]
PerChannel = Annotated[bool, typer.Option("--per-channel", help="With --bits: one scale for each output channel.")]
SchemeText = Annotated[
    str | None,
    typer.Option("--scheme", metavar="TEXT", help="Every rounding to a format, as in int8-per-channel, fp16, q3.4-floor-wrap."),
]
CopyOf = Annotated[
    Path | None,
    typer.Option("--copy", metavar="FILE", help="A second model: exactly its parameters, such as a quantized copy's."),
]
PointText = Annotated[str | None, typer.Option("--point", help="One input, as in '15, 2'.")]
PointsFile = Annotated[Path | None, typer.Option("--points", help="A CSV file of inputs with a header.")]
BoxText = Annotated[
    str | None, typer.Option("--box", help="A box of inputs, as in '6.3:20.5, 2:3.9'. Default: the model's ranges.")
]
Cuts = Annotated[list[str] | None, typer.Option("--where", help="Cut the box, as in '2*x1 - x2 <= 3'; may be given again.")]
Level = Annotated[str, typer.Option(help="Decision level of a binary model, as in 0.3 or 1/3.")]
BackendName = Annotated[str, typer.Option("--backend", help="auto, closed-form, z3, branch-and-bound, milp or dreal.")]
Timeout = Annotated[float, typer.Option(help="Seconds for each query.")]
Memory = Annotated[float, typer.Option("--memory", metavar="GIB", help="GiB that the linear bounds and their search may take.")]
ArraysText = Annotated[
    str | None,
    typer.Option(
        "--arrays",
        metavar="LIBRARY[:DEVICE]",
        help="Tune the linear bounds in this array library, as in torch:cuda; NumPy still certifies them.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress, and no sentences.")]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Read .joblib files, which run code from the file.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Keep finished answers in this folder, and take from it what the same question and --timeout gave before.",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Processes that share the inputs on this machine.")]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="Share the inputs on a Dask cluster instead, as in tcp://host:8786."),
]
SigmaText = Annotated[str | None, typer.Option("--sigma", help="Ask about labels that had at least this margin.")]
