"""Content negotiation (RFC 9110 §12.5.1): browsers get pages, programs get JSON."""

import re
from collections.abc import Iterable, Mapping

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


def wants_html(accept: Iterable[str]) -> bool:
    """Whether the values of `Accept` headers prefer HTML to JSON. Naming `text/html` wins at equal quality."""
    ranges = dict(map(_media_range, ",".join(accept).lower().split(",")))
    html, json = _quality(ranges, "text/html"), _quality(ranges, "application/json")
    return html > json or (html == json > 0 and "text/html" in ranges)


def _media_range(element: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in element.split(";"))
    qualities = [match[1] for match in map(_QUALITY.fullmatch, parameters) if match]
    return name, float(qualities[0]) if qualities else 1.0


def _quality(ranges: Mapping[str, float], media_type: str) -> float:
    """The quality in the most specific range that includes the media type; 0 if there is none."""
    group = media_type.partition("/")[0]
    return next((ranges[name] for name in (media_type, f"{group}/*", "*/*") if name in ranges), 0.0)
