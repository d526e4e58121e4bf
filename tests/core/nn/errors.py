"""How a test reads an error's exact words."""

import re

import pytest


def refused(message: str) -> pytest.RaisesExc[ValueError]:
    """A ValueError that says `message`, the whole of it and nothing else."""
    return pytest.raises(ValueError, match=rf"^{re.escape(message)}\Z")
