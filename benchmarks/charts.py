"""SVG charts of the performance page: bars against a goal, and flame graphs of sampled call stacks."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

_FONT = 'font-family="sans-serif" font-size="12"'
_INK, _GOAL, _WITHIN, _BEYOND = "#24292f", "#57606a", "#2da44e", "#cf222e"
_ROW, _LABELS, _BARS = 24, 400, 320

_FRAME_HEIGHT, _FLAME_WIDTH = 17, 1200
_MIN_WIDTH = 2.0  # pixels; narrower frames are left out


@dataclass(frozen=True, slots=True)
class Bar:
    """A measured value with its goal, in the same unit, and the smallest and largest value of the rounds."""

    label: str
    measured: str
    value: float
    limit: float
    spread: tuple[float, float] | None = None
    holds: bool = True


def bar_chart(bars: Sequence[Bar]) -> str:
    """Bars in shares of their goals, which are all at the same place."""
    largest = max(2.0, *(min(4.0, bar.value / bar.limit) for bar in bars)) if bars else 2.0
    unit = _BARS / largest
    width, height = _LABELS + _BARS + 130, _ROW * len(bars) + 30
    parts = [_open(width, height)]
    for number, bar in enumerate(bars):
        top = number * _ROW + 6
        share = min(bar.value / bar.limit, largest)
        color = _WITHIN if bar.holds else _BEYOND
        parts.append(_text(_LABELS - 8, top + 12, bar.label, anchor="end"))
        parts.append(f'<rect x="{_LABELS}" y="{top}" width="{share * unit:.1f}" height="15" fill="{color}"/>')
        if bar.spread is not None:
            low, high = (min(one / bar.limit, largest) * unit + _LABELS for one in bar.spread)
            parts.append(f'<path d="M{low:.1f} {top + 7.5}H{high:.1f}" stroke="{_INK}" stroke-width="2"/>')
        parts.append(_text(_LABELS + share * unit + 6, top + 12, bar.measured))
    goal, bottom = _LABELS + unit, _ROW * len(bars) + 8
    parts.append(f'<path d="M{goal:.1f} 0V{bottom}" stroke="{_GOAL}" stroke-dasharray="4 3"/>')
    parts.append(_text(goal, bottom + 14, "goal", anchor="middle"))
    return "\n".join([*parts, "</svg>\n"])


@dataclass(slots=True)
class _Frame:
    samples: int = 0
    callees: dict[str, "_Frame"] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return 1 + max((callee.depth for callee in self.callees.values()), default=0)


def flame_graph(stacks: Mapping[str, int]) -> str:
    """A flame graph of folded stacks, `caller;callee;…` with their samples: width is time, callees are above."""
    root = _Frame()
    for stack, samples in sorted(stacks.items()):
        frame = root
        frame.samples += samples
        for name in stack.split(";"):
            frame = frame.callees.setdefault(name, _Frame())
            frame.samples += samples
    height = root.depth * _FRAME_HEIGHT + 10
    parts = [_open(_FLAME_WIDTH, height)]
    if root.samples:
        _draw(root, "all", 0, height - _FRAME_HEIGHT - 4, _FLAME_WIDTH / root.samples, root.samples, parts)
    return "\n".join([*parts, "</svg>\n"])


def _draw(frame: _Frame, name: str, x: float, y: float, unit: float, total: int, parts: list[str]) -> None:
    width = frame.samples * unit
    if width < _MIN_WIDTH:
        return
    hue = zlib.crc32(name.partition(":")[0].encode()) % 360
    shown = name[: max(0, int(width / 7) - 1)]
    parts.append(
        f'<g><title>{escape(name)}: {frame.samples / total:.1%}</title><rect x="{x:.1f}" y="{y}"'
        f' width="{max(0.5, width - 0.5):.1f}" height="{_FRAME_HEIGHT - 1}" fill="hsl({hue} 65% 75%)"/>'
        f"{_text(x + 3, y + 12, shown) if len(shown) > 2 else ''}</g>"
    )
    for callee, one in frame.callees.items():
        _draw(one, callee, x, y - _FRAME_HEIGHT, unit, total, parts)
        x += one.samples * unit


def _open(width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
        f' height="{height:g}" {_FONT} fill="{_INK}"><rect width="100%" height="100%" fill="#ffffff"/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
