"""Make a finished pretraining fit for git: float16 weights, and its scores as computed from those files.

    python -m tools.keep_run runs/encoder-2h-cooccurrence movie_reviews+wiki_leads movie_reviews

Writes `committed` into run.json: a score for every corpus named. Then `git add -f` the folder; what is committed is
never replaced. Running it again changes nothing.
"""

import argparse
import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

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
    judge.load(run.folder, device.pick("cpu"))  # refuses what predicts no tokens
    checkpoint.remove(run.folder / "checkpoints")
    halve(run.folder / "model")
    scores = {corpus: judge.on_corpus(run.folder, corpus, "utf-8", device.pick("cpu")) for corpus in options.corpora}
    run.update(committed={"weights": "float16", "scores": scores})
    print(json.dumps(run.info["committed"], indent=1))


def halve(folder: Path) -> None:
    """Store the weights in float16; everything else in the folder stays as it is."""
    weights, about = folder / "model.safetensors", folder / "config.json"
    halves = {name: t.half() if t.is_floating_point() else t for name, t in load_file(weights).items()}
    config = json.loads(about.read_text(encoding="utf-8")) | {"dtype": "float16"}
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        save_file(halves, Path(scratch) / weights.name, {"format": "pt"})
        (Path(scratch) / about.name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for path in (weights, about):
            (Path(scratch) / path.name).chmod(0o644)  # weights come readable by their owner only
            (Path(scratch) / path.name).replace(path)


if __name__ == "__main__":
    main()
