from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from songbloom.audio.mel import MelPicture, log_mel, mel_filters, mel_picture, png_bytes, write_png

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


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize(
    ("rate", "n_fft", "bands"), [(22050, 2048, 128), (8000, 512, 64), (48000, 4096, 128), (300, 32, 9)]
)
def test_filters_are_slaneys(rate: int, n_fft: int, bands: int) -> None:
    import librosa

    expected = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=bands)
    found = mel_filters(rate, n_fft, bands)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected.max())


@pytest.mark.filterwarnings("ignore:n_fft=4096 is too large")
@pytest.mark.parametrize(("rate", "window", "seconds"), [(22050, 2048, 14), (8000, 1024, 0.9), (48000, 4096, 0.01)])
def test_decibels_are_those_of_the_reference(rate: int, window: int, seconds: float) -> None:
    """Of noise that fades; the first has more frames than are made at once, the last is shorter than a window."""
    import librosa

    length = int(rate * seconds)
    fading = np.random.default_rng(0).normal(size=length) * np.logspace(0, -3, length)
    sound = fading.astype(np.float32)
    power = librosa.feature.melspectrogram(y=sound, sr=rate, n_fft=window, hop_length=512, n_mels=64)
    expected = np.maximum(librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None), -100)
    found = log_mel(sound, rate, bands=64)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.01)


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


def _power(audio: np.ndarray, rate: int, height: int, width: int) -> np.ndarray:
    """What a picture shows, from the whole spectrogram at once: decibels, ``[height, columns]``."""
    import librosa

    window = 2 ** round(np.log2(0.093 * rate))
    power = librosa.feature.melspectrogram(
        y=audio, sr=rate, n_fft=window, hop_length=512, n_mels=height, pad_mode="constant"
    )
    columns = np.array_split(np.maximum(power, 1e-10).astype(np.float64), min(width, power.shape[1]), axis=1)
    assert log_mel(audio, rate, bands=height) == pytest.approx(10 * np.log10(np.maximum(power, 1e-10)), abs=1e-3)
    return 10 * np.log10(np.stack([column.mean(axis=1) for column in columns], axis=1))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(samples=st.integers(0, 60000), pieces=st.lists(st.integers(0, 20000), max_size=6), width=st.integers(1, 130))
def test_pieces_of_a_song_make_the_picture_of_the_whole(samples: int, pieces: list[int], width: int) -> None:
    audio = (np.random.default_rng(samples).standard_normal(samples) * np.linspace(0, 0.5, samples)).astype(np.float32)
    picture = MelPicture(RATE, samples, height=32, max_width=width)
    for part in np.split(audio, np.minimum(np.cumsum(pieces), samples)):
        picture.append(part[:, None])
    drawn = picture.picture().astype(int)
    whole = mel_picture(audio, RATE, height=32, max_width=width).astype(int)
    assert drawn.shape == whole.shape == (32, min(width, 1 + samples // 512), 3)
    assert np.abs(drawn - whole).max() <= 1  # rounding of float32


def test_columns_hold_the_mean_power_of_their_frames() -> None:
    audio = np.concatenate([_tone(440, 1.3), 0.1 * _tone(3000, 2.2), np.zeros(9000, np.float32)])
    audio = audio[: 512 * (len(audio) // 2048 * 4 - 1)]  # so many frames that each column has four
    columns = (1 + len(audio) // 512) // 4
    shown = mel_picture(audio, RATE, height=24, max_width=columns)[::-1].astype(int).sum(axis=2)
    order = np.argsort(_power(audio, RATE, 24, columns).ravel())
    assert (np.diff(shown.ravel()[order]) >= -1).all()  # the colours are lighter the louder


def test_memory_of_a_picture_does_not_grow_with_the_song() -> None:
    import tracemalloc

    def peak(seconds: int) -> int:
        picture, second = MelPicture(RATE, seconds * RATE), _tone(440)
        picture.append(second)
        tracemalloc.start()
        for _ in range(seconds - 1):
            picture.append(second)
        picture.picture()
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(120) < 1.2 * peak(30)


def test_a_picture_of_another_length_than_promised_is_refused() -> None:
    picture = MelPicture(RATE, 1000)
    picture.append(np.zeros(999))
    with pytest.raises(ValueError, match="999 samples of a song of 1000"):
        picture.picture()
    with pytest.raises(ValueError, match="1001 samples"):
        picture.append(np.zeros(2))


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
