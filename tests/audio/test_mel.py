from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from songbloom.audio.mel import log_mel, mel_picture, png_bytes, write_png

RATE = 22050


def _tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def test_a_tone_lies_in_its_band() -> None:
    import librosa

    centres = librosa.mel_frequencies(130, fmin=0, fmax=RATE / 2)[1:-1]
    for hertz in (300, 1000, 5000):
        frames = log_mel(_tone(hertz), RATE)
        assert frames.shape == (128, 1 + RATE // 512)
        assert frames.dtype == np.float32
        assert abs(int(frames[:, 20].argmax()) - int(np.abs(centres - hertz).argmin())) <= 1


def test_twice_the_amplitude_is_six_decibels() -> None:
    quiet, loud = log_mel(_tone(1000), RATE), log_mel(2 * _tone(1000), RATE)
    assert loud.max() - quiet.max() == pytest.approx(6.02, abs=0.01)


@pytest.mark.parametrize("samples", [0, 1, 100, 3000])
def test_any_length_and_silence(samples: int) -> None:
    frames = log_mel(np.zeros(samples), RATE)
    assert np.array_equal(frames, np.full((128, 1 + samples // 512), -100, np.float32))
    picture = mel_picture(np.zeros(samples), RATE)
    assert picture.shape == (128, 1 + samples // 512, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1
    assert picture.max() < 20


def test_low_frequencies_are_at_the_bottom_and_time_runs_to_the_right() -> None:
    audio = np.concatenate([_tone(200), np.zeros(RATE, np.float32), _tone(6000)])
    picture = mel_picture(audio, RATE, height=64).astype(int).sum(axis=2)
    third = picture.shape[1] // 3
    assert picture[:, third // 2].argmax() > 48
    assert picture[:, -third // 2].argmax() < 24
    assert picture[:, picture.shape[1] // 2].max() < 100


def test_a_long_song_is_no_wider_than_asked() -> None:
    audio = np.tile(_tone(440), 40)
    picture = mel_picture(audio, RATE, height=32, max_width=100)
    assert picture.shape == (32, 100, 3)
    brightness = picture[:, 5:95].astype(int).sum(axis=2)
    assert (brightness.argmax(axis=0) == brightness[:, 0].argmax()).all()


def test_values_that_are_no_numbers_are_drawn_as_silence() -> None:
    audio = _tone(440)
    audio[100:200] = np.nan
    assert mel_picture(audio, RATE).max() > 200


def _decode_png(content: bytes) -> np.ndarray:
    """The PNG specification's own rules, for the one filter that is used."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    stream, chunks = io.BytesIO(content[8:]), {}
    while head := stream.read(8):
        size, kind = struct.unpack(">I4s", head)
        chunks[kind] = stream.read(size)
        assert struct.unpack(">I", stream.read(4))[0] == zlib.crc32(kind + chunks[kind])
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour, rest) == (8, 2, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert (rows[:, 0] == 2).all()
    return np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8).reshape(height, width, 3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (128, 300, 3)])
def test_a_png_holds_the_picture(shape: tuple[int, ...], tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(_decode_png((tmp_path / "new" / "a.png").read_bytes()), picture)
    image = pytest.importorskip("PIL.Image")
    assert np.array_equal(np.asarray(image.open(tmp_path / "new" / "a.png")), picture)


@pytest.mark.parametrize("picture", [np.zeros((3, 3), np.uint8), np.zeros((3, 3, 3)), np.zeros((0, 3, 3), np.uint8)])
def test_no_picture_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a picture must be"):
        png_bytes(picture)
