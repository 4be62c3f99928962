"""Commands in processes of their own, and what has to be true of them whatever they were given."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str

    def assert_sentence(self, *words: str) -> None:
        """Refused: one sentence that has these words, an exit code, no traceback."""
        assert self.code in (1, 2), self
        lines = [line for line in self.stderr.splitlines() if line.startswith("error ")]
        assert len(lines) == 1 and "Traceback" not in self.stderr, self.stderr
        assert all(word in lines[0] for word in words), lines[0]


def fastvggt(*arguments: object, env: dict[str, str] | None = None, **how: object) -> Ended:
    """`fastvggt` with these arguments, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "fastvggt_jax", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        text=True,
        errors="replace",
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how,  # type: ignore[call-overload]
    )
    return Ended(done.returncode, done.stdout or "", done.stderr or "")


def interrupted(number: signal.Signals, seconds: float, *arguments: object) -> Ended:
    """The same, which gets a signal after so many seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastvggt_jax", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(seconds)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    return Ended(process.returncode, stdout, stderr)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def result_files(folder: Path) -> dict[str, bytes]:
    """Every file of a result, less how its run went, which is another one's each time."""
    found = contents(folder)
    if "scene.json" in found:
        about = json.loads(found["scene.json"])
        about.pop("run", None)
        found["scene.json"] = json.dumps(about).encode()
    return found
