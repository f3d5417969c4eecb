"""A run's curves as inline SVG."""

import io
from typing import Any

Rows = list[dict[str, Any]]
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#6d597a")


def curves(runs: dict[str, tuple[Rows, Rows]]) -> str:
    """Loss, val recall and learning rate over the steps, one line a run, as an SVG element.

    `runs` holds, by name, the rows of `metrics.jsonl` and of `evaluations.jsonl`.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(11, 3.1), layout="constrained")
    loss, recall, rate = figure.subplots(1, 3)
    for colour, (name, (metrics, evaluations)) in zip(COLOURS * len(runs), runs.items(), strict=False):
        steps = [row["step"] for row in metrics]
        loss.plot(steps, [row["loss"] for row in metrics], color=colour, linewidth=1.2, label=name)
        rate.plot(steps, [row["lr"] for row in metrics], color=colour, linewidth=1.2)
        evaluated = [row["step"] for row in evaluations]
        for direction, style in (("t2i", "-"), ("i2t", "--")):
            values = [row[direction]["r10"] for row in evaluations]
            recall.plot(evaluated, values, style, marker="o", markersize=3, color=colour, linewidth=1.2)
    for axes, title in (
        (loss, "training loss"),
        (recall, "val R@10, % (solid: text to image)"),
        (rate, "learning rate"),
    ):
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    recall.set_ylim(bottom=0)
    loss.set_ylim(bottom=0)
    loss.legend(fontsize=8, frameon=False)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
