"""The files of the Jukebox release: where they lie, and what is known of them.

The release states neither sizes nor checksums. What its weights take is known from their names and shapes, so a file
that is smaller is not whole; that it is larger by a header and, in some, by the state of the optimiser, is no fault.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """One file.

    Attributes:
        name: the set of hyperparameters that describes it.
        path: behind the release's address.
        parameters: how many numbers its weights are; an embedding that is the output layer too counts once.
        bytes: what they take in the file.
    """

    name: str
    path: str
    parameters: int
    bytes: int


FILES = (
    PublishedFile("vqvae", "jukebox/models/5b/vqvae.pth.tar", 1_485_763, 7_515_916),
    PublishedFile("upsampler_level_0", "jukebox/models/5b/prior_level_0.pth.tar", 981_298_176, 3_925_192_704),
    PublishedFile("upsampler_level_1", "jukebox/models/5b/prior_level_1.pth.tar", 981_298_176, 3_925_192_704),
    PublishedFile("prior_5b", "jukebox/models/5b/prior_level_2.pth.tar", 5_060_452_800, 10_288_531_200),
    PublishedFile("prior_5b_lyrics", "jukebox/models/5b_lyrics/prior_level_2.pth.tar", 5_640_506_800, 11_451_832_000),
    PublishedFile("prior_1b_lyrics", "jukebox/models/1b_lyrics/prior_level_2.pth.tar", 942_643_200, 3_770_572_800),
)


def smallest_size(path: str) -> int:
    """Bytes that the file at ``path`` (behind the release's address) has at least; 0 where nothing is known."""
    return next((file.bytes for file in FILES if file.path == path), 0)
