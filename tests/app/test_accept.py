"""Which format a client takes."""

import pytest

from app.accept import choose

PNG, AVIF, WEBP = "image/png", "image/avif", "image/webp"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, PNG),
        ("", PNG),
        ("*/*", PNG),
        ("image/*", PNG),
        ("text/html, image/avif, */*;q=0.1", PNG),  # a browser's: what came in is taken, so it stays
        ("image/avif", AVIF),
        ("image/webp;q=0.5, image/avif;q=0.9", AVIF),
        ("image/avif;q=0.5, image/webp;q=0.9", WEBP),
        ("image/png;q=0, image/*", AVIF),
        ("IMAGE/AVIF ; Q=1.0", AVIF),
        ("image/avif;q=nonsense, image/webp", WEBP),
        ("text/html", None),
        ("image/png;q=0", None),
        ("*/*;q=0", None),
        (";;,,", None),
    ],
)
def test_what_came_in_stays_wherever_it_is_taken_and_else_the_best_is_chosen(accept, chosen):
    assert choose(accept, PNG, [PNG, AVIF, WEBP]) == chosen
