"""Histograms as small inline SVGs in the page's own colours, so that they follow its light and dark."""

from collections.abc import Callable, Sequence

_WIDTH, _HEIGHT, _FOOT = 320, 96, 16
_GAP = 1.0


def histogram_svg(
    edges: Sequence[float], counts: Sequence[int], show: Callable[[float], str], *, whole: bool
) -> str:
    """Bars over `edges`, the number of each in its tooltip; `whole` says that a bin holds whole numbers."""
    most, step = max(counts), _WIDTH / max(len(counts), 6)
    parts = []
    for place, count in enumerate(counts):
        height = count / most * (_HEIGHT - 2)
        low, high = edges[place], edges[place + 1]
        label = show(low) if whole and high - low == 1 else f"{show(low)} – {show(high - whole)}"
        if place == len(counts) - 1 and len(counts) > 1:
            label = f"{show(low)} and more"
        parts.append(
            f'<rect x="{place * step:.1f}" y="{_HEIGHT - height:.1f}" width="{max(step - _GAP, 0.5):.1f}" '
            f'height="{height:.1f}"><title>{label}: {count:,}</title></rect>'
        )
    ticks = sorted({0, len(counts) // 2, len(counts) - 1})
    for place in ticks:
        left = (place + 0.5) * step
        anchor = "start" if place == 0 else "end" if place == ticks[-1] and len(counts) > 6 else "middle"
        x = 0 if place == 0 else _WIDTH if anchor == "end" else left
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT + 13}" text-anchor="{anchor}">{show(edges[place])}</text>')
    line = f'<line x1="0" y1="{_HEIGHT + 0.5}" x2="{_WIDTH}" y2="{_HEIGHT + 0.5}"/>'
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT + _FOOT}" role="img">{"".join(parts)}{line}</svg>'
    )
