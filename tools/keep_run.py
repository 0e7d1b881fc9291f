"""Make a finished pretraining fit for git: float16 weights, and its scores as computed from those files.

    python -m tools.keep_run runs/encoder-2h-cooccurrence movie_reviews+wiki_leads movie_reviews

Writes `committed` into run.json: a score for every corpus named. Then `git add -f` the folder; what is committed is
never replaced. Running it again changes nothing.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from course_lib import checkpoint, device, judge, progress
from course_lib.record import Run


def main() -> None:
    """Round, score, note, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("corpora", nargs="+")
    options = parser.parse_args()
    progress.hush_transformers()
    run = Run.open(options.run)
    if run.info["status"] != "finished":
        raise SystemExit(f"{options.run} is {run.info['status']}; the command in its run.json goes on with it.")
    checkpoint.remove(run.folder / "checkpoints")
    halve(run.folder / "model")
    scores = {corpus: judge.on_corpus(run.folder, corpus, "utf-8", device.pick("cpu")) for corpus in options.corpora}
    run.update(committed={"weights": "float16", "scores": scores})
    print(json.dumps(run.info["committed"], indent=1))


def halve(folder: Path) -> None:
    """Store the weights in float16; everything else in the folder stays as it is."""
    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForCausalLM if "CausalLM" in config.architectures[0] else AutoModelForMaskedLM
    model = kind.from_pretrained(folder, dtype=torch.float16)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        model.save_pretrained(scratch)
        for name in ("model.safetensors", "config.json"):
            (Path(scratch) / name).chmod(0o644)  # weights come readable by their owner only
            (Path(scratch) / name).replace(folder / name)


if __name__ == "__main__":
    main()
