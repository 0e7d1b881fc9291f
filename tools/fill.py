"""Fill the records that chapters still call "not measured", most wanted first.

    taskset -c 0 python -m tools.fill [ladder-encoder …]

One such process a core: each takes the runs that no other has taken. Stop it at any time; the same command goes on.
A record that cannot go on (a disturbed run, another process at its last ones) gives way to the next.
"""

import argparse
import subprocess
import sys

from tools.trials import ROOT

ZH = "--model=runs/encoder-zh-1h"
# What a record is made by, besides --out.
RECORDS: dict[str, list[str]] = {
    "ladder-encoder": ["tools.ladder", "--side=encoder"],
    "ladder-decoder": ["tools.ladder", "--side=decoder"],
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
        tool, *options = RECORDS[name]
        done = subprocess.run([sys.executable, "-m", tool, f"--out=runs/{name}", *options], cwd=ROOT, check=False)
        print(f"{name}: {'all that is left here is done' if done.returncode == 0 else 'cannot go on'}", flush=True)


if __name__ == "__main__":
    main()
