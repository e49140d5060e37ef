"""Who is asking, a browser or a program: the `Accept` header (RFC 9110 §12.5.1)."""

import re

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def wants_html(accept: str) -> bool:
    """Whether a page is wanted rather than JSON. Where both would do, naming `text/html` gets the page."""
    ranges = dict(map(_media_range, accept.lower().split(",")))
    html, json = _quality(ranges, "text/html"), _quality(ranges, "application/json")
    return html > json or (html == json > 0 and "text/html" in ranges)


def _media_range(element: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in element.split(";"))
    qualities = [match[1] for match in map(_QUALITY.fullmatch, parameters) if match]
    return name, float(qualities[0]) if qualities else 1.0


def _quality(ranges: dict[str, float], media_type: str) -> float:
    """How much a media type is wanted: what the most specific range says, else nothing."""
    group = media_type.partition("/")[0]
    return next((ranges[name] for name in (media_type, f"{group}/*", "*/*") if name in ranges), 0.0)
