"""Fill the records that chapters still call "not measured", most wanted first, one run after the other.

    taskset -c 0 python -m tools.fill [ladder-decoder …]

One such process a core: each takes the runs that no other has taken. Stop it at any time; the same command goes on.
A record that cannot go on (a disturbed run, another process at its last ones) gives way to the next.
"""

import argparse
import subprocess
import sys

from tools.trials import ROOT, SINGLE, runs_in

ZH = "--model=runs/encoder-zh-1h"
# What a record is made by, besides --out.
RECORDS: dict[str, list[str]] = {
    "ladder-decoder": ["tools.ladder", "--side=decoder"],
    "ladder-encoder": ["tools.ladder", "--side=encoder"],
    "scaling": ["tools.scaling"],
    "ablate-encoder": ["tools.ablate_encoder"],
    "ablate-ner": ["tools.ablate_ner", ZH],
    "ablate-peft": ["tools.ablate_peft"],
    "bench-search": ["tools.bench_search"],
    "bench-processes": ["tools.bench_processes"],
}


def main() -> None:
    """Run what is missing of the records named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", default=list(RECORDS), help="default: %(default)s, in this order")
    wanted = parser.parse_args().records
    if unknown := set(wanted) - set(RECORDS):
        parser.error(f"no such record: {', '.join(sorted(unknown))}; there are {', '.join(RECORDS)}")
    for name in wanted:
        while ran(name):
            pass


def ran(name: str) -> bool:
    """Make one run of a record; whether there was one to make."""
    out = ROOT / "runs" / name
    before = runs_in(out)
    tool, *options = RECORDS[name]
    command = [sys.executable, "-m", tool, f"--out=runs/{name}", SINGLE, *options]
    done = subprocess.run(command, cwd=ROOT, check=False)
    print(f"{name}: {runs_in(out)} runs", flush=True)
    return done.returncode == 0 and runs_in(out) > before


if __name__ == "__main__":
    main()
