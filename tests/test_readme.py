"""The README's first command and its first Python lines do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_demo_then_the_first_lines_of_python(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    text = (ROOT / "README.md").read_text()
    assert "fastvggt demo -o demo" in text
    done = subprocess.run(
        [sys.executable, "-m", "fastvggt_jax", "demo", "-o", "demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "MEANINGLESS" in done.stdout + done.stderr
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.S))  # the later block goes on where the first ends
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    header = (tmp_path / "points.ply").read_bytes()[:200]
    assert header.startswith(b"ply\nformat binary_little_endian") and b"element vertex 0\n" not in header
