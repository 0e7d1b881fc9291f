"""The command line: `python -m course_lib COMMAND …`.

Exit codes: 0 done · 1 something the user can mend (one sentence on stderr) · 2 wrong usage · 130 stopped, saved.
Heavy imports happen inside the commands, so that `--help` and errors are instant.
"""

import argparse
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from course_lib import __version__
from course_lib.errors import CourseError, unknown

EXAMPLES = """\
examples:
  python -m course_lib cram                                   five minutes on film reviews
  python -m course_lib cram --corpus docs --budget 2m         no download at all
  python -m course_lib cram --corpus 'texts/*.txt' --budget 24h
  python -m course_lib sample --run runs/movie_reviews-5m/decoder --prompt "The film"

Stop with Ctrl-C at any time: the run is saved, and the same command continues it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    started = time.monotonic()
    options = parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a file on Windows takes few of the world's characters
    try:
        return int(options.run(options, started) or 0)
    except CourseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What was saved is kept; the same command continues from there.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m course_lib",
        description="Train a language model from scratch within a time budget, on the device that is there.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[..., int | None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about.replace("%", "%%"), description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print the result as JSON on stdout, messages on stderr")
        return sub

    _training_options(command("cram", _cram, "Corpus to trained model, score and samples, within a budget."))
    _training_options(
        command("pretrain", _pretrain, "Train a model within a budget: decoder, encoder or both; no samples.")
    )
    _finetune_options(command("finetune", _finetune, "Teach a pretrained model a task: classes, entities, answers…"))
    _compress_options(command("compress", _compress, "Shrink a fine-tuned model, and measure both in onnxruntime."))
    _evaluate_options(command("evaluate", _evaluate, "Score a pretrained model on a corpus or on minimal pairs."))
    pair = command("compare", _compare, "Whether one fine-tuning run is better than another: 95 % interval, verdict.")
    pair.add_argument("a", type=Path, help="a finished fine-tuning run")
    pair.add_argument("b", type=Path, help="another one, on the same task; or `tfidf`")
    _sample_options(command("sample", _sample, "Let a trained model continue a prompt."))
    data = command("data", _data, "The registered datasets; `report` says what is wrong with a corpus.")
    data.add_argument("action", choices=["list", "show", "fetch", "card", "report"], help="`card` is the book's page")
    data.add_argument("name", nargs="?", help="a name from `data list`; for report also a file, folder or glob")
    data.add_argument("--encoding", default="utf-8", help="of text files (default: %(default)s)")
    command("doctor", _doctor, "Check this machine, and say what it will manage.")
    return top


def _training_options(command: argparse.ArgumentParser) -> None:
    from course_lib.config import Config

    _config_options(command, Config)
    command.add_argument(
        "--micro-rows", type=int, default=0, help="rows that a device computes at once; 0: as many as fit"
    )
    command.add_argument(
        "--shard",
        action="store_true",
        help="under torchrun: processes share out the weights (FSDP2) instead of copying",
    )


def _finetune_options(command: argparse.ArgumentParser) -> None:
    from course_lib.config import Tuning

    _config_options(command, Tuning)


def _compress_options(command: argparse.ArgumentParser) -> None:
    from course_lib.config import Compression

    _config_options(command, Compression)


def _config_options(command: argparse.ArgumentParser, config: type) -> None:
    """An option for every field, and those that say where and how a run is stored."""
    for field in dataclasses.fields(config):
        name, about = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        if field.name == "head":  # what is done stands first: `finetune ner --train …`
            command.add_argument("head", nargs="?", default=field.default, help=about)
            continue
        if isinstance(field.default, bool):
            command.add_argument(name, action="store_true", help=about)
            continue
        shown = f" (default: {field.default})" if field.default else ""
        kind: type = type(field.default)
        command.add_argument(name, type=kind, default=field.default, help=about + shown)
    command.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are stored (default: %(default)s)")
    command.add_argument("--run-id", help="name of the run (default: made from what it does)")
    command.add_argument("--checkpoint-every", default="2m", help="how often to save (default: %(default)s)")
    command.add_argument("--fresh", action="store_true", help="begin anew even if such a run is unfinished")


def _evaluate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", type=Path, required=True, dest="folder", help="a finished run, or any model folder")
    command.add_argument("--corpus", default="movie_reviews", help="whose held-out text (default: %(default)s)")
    command.add_argument("--encoding", default="utf-8", help="of your text files (default: %(default)s)")
    command.add_argument("--pairs", type=Path, help="score minimal pairs instead: a folder of jsonl as in BLiMP")
    command.add_argument("--device", default="auto", help="cuda, mps, cpu or auto")


def _sample_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", type=Path, required=True, dest="folder", help="a finished run, or any model folder")
    command.add_argument(
        "--prompt", action="append", help="text to continue; may be given more than once (default: none)"
    )
    command.add_argument("--tokens", type=int, default=60, help="tokens to write (default: %(default)s)")
    command.add_argument(
        "--temperature", type=float, default=0.8, help="0 always takes the likeliest (default: %(default)s)"
    )
    command.add_argument(
        "--top-p", type=float, default=0.95, help="share of probability to choose from (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the random choices (default: %(default)s)")
    command.add_argument("--device", default="auto", help="cuda, mps, cpu or auto")


def _print(options: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False) if options.json else text)


def _log(options: argparse.Namespace) -> Callable[[str], None]:
    """Messages go to stdout, or out of the JSON's way to stderr."""
    return lambda message: print(message, file=sys.stderr if options.json else sys.stdout, flush=True)


def _run(options: argparse.Namespace, started: float, run: Callable[..., Any], config: type, *how: str) -> int:
    from course_lib.recorder import Interrupted

    settings = config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(config)})
    more = {name: getattr(options, name) for name in ("runs", "run_id", "fresh", "checkpoint_every", *how)}
    try:
        done = run(settings, log=_log(options), started=started, **more)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(done.info, indent=2, ensure_ascii=False))
    return 0


def _cram(options: argparse.Namespace, started: float) -> int:
    from course_lib.config import Config
    from course_lib.cram import cram

    return _run(options, started, cram, Config, "micro_rows", "shard")


def _pretrain(options: argparse.Namespace, started: float) -> int:
    from course_lib.config import Config
    from course_lib.pretrain import pretrain

    return _run(options, started, pretrain, Config, "micro_rows", "shard")


def _finetune(options: argparse.Namespace, started: float) -> int:
    from course_lib.config import Tuning
    from course_lib.finetune import finetune

    return _run(options, started, finetune, Tuning)


def _compress(options: argparse.Namespace, started: float) -> int:
    from course_lib.compress.command import compress
    from course_lib.config import Compression

    return _run(options, started, compress, Compression)


def _compare(options: argparse.Namespace, started: float) -> None:
    from course_lib import finetune
    from course_lib.record import Run

    b = None if str(options.b) == "tfidf" else Run.open(options.b)
    found = finetune.compare(Run.open(options.a), b)
    mean, low, high = (f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high))
    text = f"{mean} points (95 % interval {low} to {high}, seeds: {found.seeds}): {found.verdict}"
    _print(options, found.describe(), text)


def _evaluate(options: argparse.Namespace, started: float) -> None:
    from course_lib import device, judge

    where = device.pick(options.device)
    scores = (
        judge.on_pairs(options.folder, options.pairs, where)
        if options.pairs
        else judge.on_corpus(options.folder, options.corpus, options.encoding, where)
    )
    _print(options, scores, "\n".join(f"{name.replace('_', ' '):<24}{value:.4f}" for name, value in scores.items()))


def _sample(options: argparse.Namespace, started: float) -> None:
    from course_lib import device, sample

    model, tokenizer = sample.load(options.folder, device.pick(options.device))
    prompts = options.prompt or [""]
    texts = sample.generate(model, tokenizer, prompts, options.tokens, options.temperature, options.top_p, options.seed)
    pairs = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
    _print(options, pairs, "\n\n".join(f"{pair['prompt']}{pair['text']}" for pair in pairs))


def _data(options: argparse.Namespace, started: float) -> None:
    from course_lib import assets
    from course_lib.data import card, library

    known = {name: entry.assets for name, entry in library.DATASETS.items()}
    inside = {asset for needed in known.values() for asset in needed}
    known |= {name: (name,) for name in assets.registry() if name not in inside}
    if options.action == "card":
        print(card.page(), end="")
        return
    if options.action == "list":
        rows = {name: all(assets.cached(asset) for asset in needed) for name, needed in known.items()}
        about = {
            name: library.DATASETS[name].about if name in library.DATASETS else assets.get(name).about for name in rows
        }
        _print(options, rows, "\n".join(f"{n:<16}{'cached' if rows[n] else '-':<8}{about[n]}" for n in rows))
        return
    if not options.name:
        raise CourseError(f"Which dataset? `data {options.action} NAME`; `data list` shows the names.")
    if options.action == "report":
        _report(options)
        return
    if options.name not in known:
        raise unknown("dataset", options.name, known)
    if options.action == "fetch":
        paths = [str(assets.fetch(asset)) for asset in known[options.name]]
        _print(options, {"paths": paths}, "\n".join(paths))
        return
    facts = [dataclasses.asdict(assets.get(asset)) for asset in known[options.name]]
    lines = [f"{k:<16}{', '.join(v) if isinstance(v, tuple) else v}" for fact in facts for k, v in fact.items()]
    _print(options, facts, "\n".join(lines) or "Made from installed packages; nothing to fetch.")


def _report(options: argparse.Namespace) -> None:
    from course_lib.data.report import report

    found = report(options.name, _log(options), options.encoding)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))


def _doctor(options: argparse.Namespace, started: float) -> int:
    from course_lib import doctor

    facts = doctor.examine()
    _print(options, facts, doctor.describe(facts))
    return 1 if facts["problems"] else 0
