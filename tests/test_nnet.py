""".nnet files: right ones are read exactly, wrong ones are refused in one line that names what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qrobust import formats
from qrobust.errors import ModelFileError
from qrobust.formats.nnet import read_nnet
from qrobust.network import Activation, Network, Output
from tests.conftest import RandomNetwork
from tests.damage import flipped, refusal, survives

LINES = (
    "// a comment",
    "2,2,2,3,",
    "2,3,2,",
    "0,",
    "-1.0,0.0,",
    "1.0,10.0,",
    "0.0,5.0,0.5,",
    "2.0,10.0,4.0,",
    "0.1,-2.5e-1,",
    "1,2,",
    "-3,4,",
    "0.5,",
    "-0.5,",
    "0,",
    "1,0,-1,",
    "0.25,1e-3,7,",
    "1.5,",
    "-1.5,",
)


def text(network: Network) -> str:
    """Write a network in the format, without normalization."""
    sizes = [network.inputs, *(layer.outputs for layer in network.layers)]
    lines = [[len(sizes) - 1, sizes[0], sizes[-1], max(sizes)], sizes, [0], [-1] * sizes[0], [1] * sizes[0]]
    lines += [[0] * (sizes[0] + 1), [1] * (sizes[0] + 1)]
    for layer in network.layers:
        lines += [*layer.weight.tolist(), *([value] for value in layer.bias.tolist())]
    return "\n".join("".join(f"{value!r}," for value in line) for line in lines) + "\n"


def changed(line: int, content: str | None) -> bytes:
    lines = list(LINES)
    lines[line : line + 1] = [] if content is None else [content]
    return "\n".join(lines).encode()


def test_a_file_by_hand(tmp_path: Path) -> None:
    (tmp_path / "hand.nnet").write_text("\n".join(LINES))
    network = formats.load(tmp_path / "hand.nnet")
    first, last = network.layers
    np.testing.assert_array_equal(first.weight, [[0.1, -0.25], [1, 2], [-3, 4]])
    np.testing.assert_array_equal(first.bias, [0.5, -0.5, 0])
    np.testing.assert_array_equal(last.weight, [[1, 0, -1], [0.25, 1e-3, 7]])
    np.testing.assert_array_equal(last.bias, [1.5, -1.5])
    assert (first.activation, last.activation) == (Activation.RELU, Activation.LINEAR)
    assert (network.output, network.name) == (Output.SOFTMAX, "hand")
    assert [(f.lower, f.upper) for f in network.features] == [(-0.5, 0.5), (-0.5, 0.5)]  # (end - mean) / range


def test_random_networks_are_read_exactly(tmp_path: Path, random_network: RandomNetwork) -> None:
    for seed, sizes in enumerate([(1, 1), (3, 4, 2), (2, 5, 3, 1), (5, 6, 6, 6, 5)]):
        network = random_network(np.random.default_rng(seed), sizes)
        (tmp_path / "m.nnet").write_text(text(network))
        assert read_nnet(tmp_path / "m.nnet") == network


@pytest.mark.parametrize("ending", ["\r\n", "\n\n"])
def test_line_ends_and_missing_last_commas(ending: str, tmp_path: Path) -> None:
    (tmp_path / "a.nnet").write_text("\n".join(LINES))
    (tmp_path / "b.nnet").write_bytes(ending.join(line.rstrip(",") for line in LINES).encode())
    assert read_nnet(tmp_path / "a.nnet") == read_nnet(tmp_path / "b.nnet")


DAMAGES: list[tuple[int, str | None, str]] = [
    (1, "2,2,2,", "line 2 has 3 numbers, the header has 4"),
    (1, "2.5,2,2,3,", "not all whole numbers"),
    (1, "x,2,2,3,", "'x,2,2,3,' is not a list of numbers"),
    (1, "0,2,2,3,", "the header names 0 layers"),
    (1, "1e15,2,2,3,", "the header names 1000000000000000 layers"),
    (1, "2,3,2,3,", "the header names 3 inputs and 2 outputs, the sizes 2 and 2"),
    (2, "2,3,", "line 3 has 2 numbers, the list of layer sizes has 3"),
    (2, "2,0,2,", "a layer has 0 neurons"),
    (2, "2,-3,2,", "a layer has -3 neurons"),
    (2, "2,1e9,2,", "more than its"),
    (4, "-1.0,", "the least inputs are 1 numbers for 2 inputs"),
    (5, "1.0,10.0,3,", "line 6 has 3 numbers, the greatest inputs has 2"),
    (6, "0.0,5.0,", "the means of the inputs and outputs has 3"),
    (7, "2.0,0.0,4.0,", "a range is 0"),
    (7, "2.0,1e-320,4.0,", "overflows when normalized"),
    (8, "0.1,nan,", "line 9, a row of the weights of layer 1: a number is NaN or infinite"),
    (8, "0.1,1e999,", "a number is NaN or infinite"),
    (8, "0.1,", "line 9 has 1 numbers, a row of the weights of layer 1 has 2"),
    (8, None, "line 11 has 1 numbers, a row of the weights of layer 1 has 2"),
    (11, "0.5,,", "line 12 has 2 numbers, a bias of layer 1 has 1"),
    (11, ",", "is not a list of numbers"),
    (17, None, "the file ends before a bias of layer 2"),
    (17, "-1.5,\n2,", "line 19 follows the last bias"),
]


@pytest.mark.parametrize(("line", "content", "message"), DAMAGES, ids=[f"{n} {d[2][:30]}" for n, d in enumerate(DAMAGES)])
def test_a_damaged_line_is_named(line: int, content: str | None, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "m.nnet", changed(line, content))


def test_a_header_that_asks_for_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    sizes = ",".join(["2", *["900000000"] * 3, "2"])
    message = refusal(tmp_path / "m.nnet", f"4,2,2,900000000,\n{sizes},\n0,\n".encode())
    assert "ask for 1,620,000,006,300,000,002 numbers, more than its" in message


def test_cut_short_anywhere(tmp_path: Path) -> None:
    whole = "\n".join(LINES).encode()
    for length in range(1, len(whole) - len("-1.5,")):
        assert not survives(tmp_path / "m.nnet", whole[:length])


@pytest.mark.parametrize("seed", range(300))
def test_flipped_bytes_never_give_a_traceback(seed: int, tmp_path: Path, random_network: RandomNetwork) -> None:
    content = text(random_network(np.random.default_rng(seed), (3, 4, 2))).encode()
    survives(tmp_path / "m.nnet", flipped(content, seed))


def test_acas_xu_and_its_copies(acas_xu: Path) -> None:
    for number in ("1_1", "1_2", "1_3", "2_1", "2_2", "2_3"):
        stored, copy = (read_nnet(acas_xu / f"ACASXU_run2a_{number}_batch_2000{end}.nnet") for end in ("", "_16bit"))
        assert [layer.weight.shape for layer in stored.layers] == [(50, 5), *[(50, 50)] * 5, (5, 50)]
        for layer, other in zip(stored.layers, copy.layers, strict=True):
            for before, after in ((layer.weight, other.weight), (layer.bias, other.bias)):
                step = 2.0**-10 * np.maximum(np.abs(before), 2.0**-14)  # of float16; those of 2_1 to 2_3 are not nearest
                assert (np.abs(after - before) < step).all()
        assert stored.features[0].lower == (0.0 - 1.9791091e4) / 60261.0


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_nnet(tmp_path / "none.nnet")
