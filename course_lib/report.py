"""A finished `cram` run as one self-contained page: curves, time, comparison, samples, guesses, machine."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from course_lib.budget import format_duration, parse_duration
from course_lib.record import Run

TEMPLATE = Path(__file__).with_name("report.html.j2")
POINTS = 120  # of a curve; each is the mean of the steps around it
LEFT, RIGHT, TOP, BOTTOM = 44, 410, 24, 204  # the plotting area of a curve, in the SVG's units
COLORS = "abcde"
SYSTEMS = {"tuned": "this model", "scratch": "same network, random weights", "tfidf": "TF-IDF, logistic regression"}


def render(run: Run, verdicts: list[str]) -> str:
    """The page. `verdicts`: the plain sentences of the comparison."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    info = run.info
    parts = {name: Run.open(run.folder / name) for name in ("decoder", "encoder")}
    scores = {name: part.info["result"]["scores"] for name, part in parts.items()}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        id=info["id"],
        corpus=info["config"]["corpus"],
        budget=format_duration(parse_duration(info["config"]["budget"])),
        device=info["device"]["name"],
        finished=info["finished"],
        headline=(
            f"{scores['decoder']['bits_per_byte']:.3f} bits per byte on held-out text; the file compressor xz -9 needs "
            f"{info['xz_bits_per_byte']:.2f}."
        ),
        verdicts=verdicts,
        curves=[curve(name, part, color) for (name, part), color in zip(parts.items(), COLORS, strict=False)],
        models=[{"name": name} for name in parts],
        model_rows=_model_rows(list(parts.values())),
        timeline=timeline(run),
        task=_task(info["task"]) if "task" in info else None,
        samples=info["samples"],
        blanks=info["blanks"],
        facts=_facts(parts["decoder"].info),
    )


def curve(name: str, part: Run, color: str) -> dict[str, Any]:
    """Training loss against training time as an SVG polyline, without the first tenth, which falls steeply."""
    rows = list(part.metrics())
    loss, seconds, spent = [], [], 0.0
    # A hybrid's masked steps have no next tokens, and a short one may have nothing else.
    term = next(term for term in rows[0]["losses"] if any(row["losses"][term] for row in rows))
    for row in rows:
        spent += row["seconds"]
        if value := row["losses"][term]:
            loss.append(value)
            seconds.append(spent)
    width = max(1, len(loss) // POINTS)
    groups = range(0, len(loss), width)
    xs = [seconds[at] for at in groups]
    ys = [sum(loss[at : at + width]) / len(loss[at : at + width]) for at in groups]
    skip = len(xs) // 10
    low, high = min(ys[skip:]), max(ys[skip:])
    height = max(high - low, 1e-9)
    x = lambda value: LEFT + (RIGHT - LEFT) * value / max(seconds[-1], 1e-9)
    y = lambda value: BOTTOM - (BOTTOM - TOP) * (value - low) / height
    return {
        "title": f"{name}: training loss, nats",
        "alt": f"The {name}'s training loss falls from {ys[skip]:.2f} to {ys[-1]:.2f} nats in {spent:.0f} seconds",
        "color": color,
        "points": " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs[skip:], ys[skip:], strict=True)),
        "x_ticks": [{"at": round(x(spent * k / 4)), "label": f"{spent * k / 4:.0f}"} for k in range(5)],
        "y_ticks": [{"at": round(y(low + height * k / 4)), "label": f"{low + height * k / 4:.2f}"} for k in range(5)],
    }


def timeline(run: Run) -> dict[str, Any]:
    """The whole command as bars side by side."""
    spans: dict[str, float] = {}
    around = 0.0
    for name in ("decoder", "encoder"):
        info = Run.open(run.folder / name).info
        spans[f"training {name}"] = info["timings"]["train"]
        around += info["seconds"] - info["timings"]["train"]
    spans["data, probes, scores"] = around
    spans["fine-tuning"] = run.info["timings"].get("task", 0.0)
    spans["samples"] = run.info["timings"]["samples"]
    total, at, bars = sum(spans.values()), 0.0, []
    for (name, seconds), color in zip(spans.items(), COLORS, strict=True):
        width = 840 * seconds / total
        bars.append(
            {"name": name, "x": round(at, 1), "width": round(max(width - 2, 0.5), 1), "color": color,
             "seconds": format_duration(seconds)}
        )  # fmt: skip
        at += width
    return {"bars": bars, "alt": ", ".join(f"{bar['name']} {bar['seconds']}" for bar in bars)}


def _model_rows(parts: list[Run]) -> list[dict[str, Any]]:
    speed = lambda i: f"{i['plan']['tokens_per_second']:,}, {i['result']['tokens_per_second']:,}"
    scores = lambda i: ", ".join(f"{name.replace('_', ' ')} {v}" for name, v in i["result"]["scores"].items())
    shown = {
        "objective": lambda i: i["settings"]["objective"],
        "architecture": lambda i: f"{i['settings']['architecture']}, {i['plan']['size']}",
        "weights": lambda i: f"{i['plan']['parameters'] / 1e6:.2f} M",
        "vocabulary, context": lambda i: f"{i['settings']['vocab_size']:,}, {i['settings']['context']}",
        "tokens read": lambda i: f"{i['result']['tokens'] / 1e6:.2f} M",
        "passes over the text": lambda i: f"{i['result']['epochs']}",
        "tokens/s, planned and actual": speed,
        "score on held-out text": scores,
    }
    return [{"name": name, "values": [show(part.info) for part in parts]} for name, show in shown.items()]


def _task(task: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for key, name in SYSTEMS.items():
        result, d = task["accuracy"][key], task["differences"].get(key)
        rows.append(
            {
                "name": name,
                "accuracy": f"{result['accuracy']:.1%}",
                "spread": f"{result['least']:.1%} to {result['most']:.1%}" if "least" in result else "",
                "seeds": result.get("seeds", "no randomness"),
                "difference": f"{100 * d['mean']:+.1f} points" if d else "",
                "interval": f"{100 * d['low']:+.1f} to {100 * d['high']:+.1f}" if d else "",
            }
        )
    dev = ", ".join(f"{name} {value:.1%}" for name, value in task["dev"].items())
    return {"name": task["name"], "better": task["better"], "rows": rows, "dev": dev}


def _facts(info: dict[str, Any]) -> list[tuple[str, Any]]:
    device = info["device"]
    return [
        ("device", f"{device['name']}, {device['kind']}, {device['dtype']}"),
        ("CPU threads", device["threads"]),
        ("memory", f"{device['memory'] / 1e9:.0f} GB, of which the run used {info['peak_memory'] / 1e9:.1f}"),
        ("seed", info["settings"]["seed"]),
        *info["versions"].items(),
        ("commit", (info["commit"] or "not a checkout")[:12]),
    ]
