"""Print requirements.txt for the environment this runs in (`make lock`)."""

import subprocess
import sys

HEADER = """\
# Exact versions for the course's CI, its book and its records. Written by `make lock` from pyproject.toml, which
# holds the lower bounds that users need; on Colab or Kaggle install with `pip install -e .`, not from this file.
"""


def main() -> None:
    """Freeze, without this project itself and without torch's local build tag (`+cpu` is not on every index)."""
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split("+")[0] if line.startswith("torch==") else line for line in frozen.splitlines()]
    print(HEADER + "\n".join(lines))


if __name__ == "__main__":
    main()
