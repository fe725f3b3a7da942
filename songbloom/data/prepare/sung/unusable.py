"""What a rendering that must not enter the corpus raises."""

from __future__ import annotations


class UnusableRendering(Exception):
    """A rendering that failed a check; the song is drawn again.

    ``reason`` is a short word for the statistics (``"pitch"``), the message says what was measured.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
