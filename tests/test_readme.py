"""Does every command that the README shows print what it shows? Times, versions and paths of temporary files may differ."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```console\n\$ (qrobust [^\n]*)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [command for command, _ in BLOCKS]
# What doctor prints depends on what is installed; test_cli.py tests it.
REPEATABLE = [block for block in BLOCKS if not block[0].startswith("qrobust doctor")]


def masked(text: str) -> list[str]:
    """Replace what may differ between runs and versions of solvers: seconds, and digits beyond the sixth decimal."""
    plain = [re.sub(r"\d+(\.\d+)?(e-\d+)? s\b", "T s", line.rstrip()) for line in text.strip().splitlines()]
    return [re.sub(r"(\d\.\d{6})\d+", r"\1", line) for line in plain]


def test_the_readme_shows_every_command() -> None:
    front = (
        "check",
        "estimate",
        "map",
        "replay",
        "export",
        "quantize",
        "inspect",
        "bits",
        "blame",
        "compare",
        "signoff",
        "doctor",
    )
    for name in front:
        assert any(command.startswith(f"qrobust {name}") for command in COMMANDS), name


def needed(command: str) -> list[str]:
    """Return the commands of the README that write a file which this one reads."""
    written = [(re.search(r"--out (\S+)", other), other) for other in COMMANDS if other != command]
    return [other for match, other in written if match and match[1] in command]


@pytest.mark.parametrize(("command", "shown"), REPEATABLE, ids=[command for command, _ in REPEATABLE])
def test_a_shown_command_prints_what_is_shown(command: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    for each in (*needed(command), command):
        arguments = [sys.executable, "-m", "qrobust", *shlex.split(each)[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert masked(done.stdout) == masked(shown), done.stderr
