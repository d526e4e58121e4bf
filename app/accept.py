"""Which picture format a client takes, by its `Accept` header (RFC 9110, 12.5.1). Knows no picture."""

from collections.abc import Sequence


def choose(accept: str | None, own: str, others: Sequence[str]) -> str | None:
    """The media type to answer with: `own` wherever the client takes it at all, else the best of `others`, else None."""
    if not accept or not accept.strip():
        return own
    wishes = [wish for part in accept.split(",") if (wish := _wish(part)) is not None]
    if _quality(own, wishes) > 0:
        return own
    best = max(others, key=lambda media_type: _quality(media_type, wishes), default=None)  # the first of equals
    return best if best is not None and _quality(best, wishes) > 0 else None


def _wish(part: str) -> tuple[str, float] | None:
    """(media range, quality), or None for what cannot be understood."""
    media_range, *parameters = (each.strip().lower() for each in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
    return (media_range, quality) if "/" in media_range and 0 <= quality <= 1 else None


def _quality(media_type: str, wishes: list[tuple[str, float]]) -> float:
    """What the most exact range that matches says."""
    for pattern in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        said = [quality for media_range, quality in wishes if media_range == pattern]
        if said:
            return max(said)
    return 0.0
