"""Record how large the gradients of a real run are: histograms of log2 |g|, per part of the model.

    python tools/record_gradients.py --out runs/gradients-nano

Chapter 4 reads it to say which gradients 16-bit formats lose. Everything runs in float32, which loses none. Gradients
are those of the mean loss per token, before clipping: of every weight, and of the residual stream after each block.
"""

import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from course_lib import device, models, progress, schedule, training
from course_lib.budget import Budget, WorkClock
from course_lib.config import Config
from course_lib.data import corpora, prepare
from course_lib.loop import train
from course_lib.record import invocation, now, provenance

POINTS = (0.01, 0.1, 0.5, 0.95)  # shares of the run after which the next step is looked at


def main() -> None:
    """Train, look, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", default="movie_reviews")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--tokens", type=int, default=700_000)
    options = parser.parse_args()
    progress.hush_transformers()
    shape = models.size(options.size)
    settings = Config(
        corpus=options.corpus, size=options.size, tokens=options.tokens, device="cpu", architecture="qwen3",
        vocab_size=shape.vocab, context=shape.context, step_tokens=models.SMALL_STEP,
    )  # fmt: skip
    result = record(settings)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"id": options.out.name, "command": invocation(), "finished": now(), **provenance()}
    about |= {"device": device.pick("cpu").describe(), "settings": vars(settings)}
    text = json.dumps(about | result, indent=1, ensure_ascii=False)
    (options.out / "run.json").write_text(text + "\n", encoding="utf-8")
    print(f"{options.out}: {len(text) / 1e3:.0f} kB, final loss {result['points'][-1]['loss']:.2f} nats per token")


def record(settings: Config) -> dict[str, Any]:
    """Train as `pretrain` does and look at the step after each point."""
    data = prepare.prepare(
        corpora.load(settings.corpus), settings.vocab_size, settings.context, 8 * settings.tokens, print
    )
    state = training.build(settings, data, device.pick(settings.device))
    state.budget = Budget(WorkClock(settings.tokens))
    micro_batches = training.steps(state, settings, data.tokenizer, training.step_rows(settings))
    shape = schedule.build(settings.schedule, settings.warmup, settings.cooldown)
    watch = Watch(state.model)
    points: list[dict[str, Any]] = []
    for step in train(
        state.model, micro_batches, state.objective, state.optimizers, shape, state.precision, state.budget
    ):
        if watch.on:
            seen = {part: counted(values) for part, values in watch.take().items()}
            points.append({"progress": round(step.progress, 4), "loss": step.losses["clm"], "parts": seen})
        watch.on = len(points) < len(POINTS) and state.budget.progress >= POINTS[len(points)]
    return {"step_tokens": settings.step_tokens, "points": points}


class Watch:
    """Keeps the gradients of one backward while `on`; needs a single micro-batch a step."""

    def __init__(self, model: Any):
        self.on = False
        self.seen: dict[str, list[torch.Tensor]] = {}
        for name, p in model.named_parameters():
            p.register_post_accumulate_grad_hook(partial(self._weight, part_of(name)))
        for number, block in enumerate(model.model.layers):
            block.register_full_backward_hook(partial(self._stream, f"stream after block {number}"))

    def take(self) -> dict[str, torch.Tensor]:
        """What was seen, one flat tensor a part; forgets it."""
        found = {part: torch.cat(grads) for part, grads in self.seen.items()}
        self.seen = {}
        return found

    def _weight(self, part: str, p: torch.Tensor) -> None:
        if self.on and p.grad is not None:
            self.seen.setdefault(part, []).append(p.grad.detach().flatten().clone())

    def _stream(self, part: str, block: Any, inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        if self.on:
            self.seen.setdefault(part, []).append(outputs[0].detach().flatten().clone())


def part_of(name: str) -> str:
    """`model.layers.2.mlp.up_proj.weight` → `block 2 mlp`; embeddings, norms and the head have a part each."""
    pieces = name.split(".")
    if "norm" in name:
        return "norms"
    if "layers" in pieces:
        at = pieces.index("layers")
        return f"block {pieces[at + 1]} {'attention' if 'attn' in pieces[at + 2] else 'mlp'}"
    return "head" if "lm_head" in name else "embedding"


def counted(gradients: torch.Tensor) -> dict[str, Any]:
    """{"zeros": …, "largest": …, "counts": {⌊log₂|g|⌋: …}}."""
    sizes = gradients.abs().double()
    exponents = torch.frexp(sizes[sizes > 0]).exponent - 1
    counts = Counter(exponents.tolist())
    return {
        "zeros": int((sizes == 0).sum()),
        "largest": float(sizes.max()),
        "counts": {str(exponent): counts[exponent] for exponent in sorted(counts)},
    }


if __name__ == "__main__":
    main()
