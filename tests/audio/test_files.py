from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from songbloom.audio.decoding import TableCache, tables
from songbloom.audio.files import (
    AUDIO_SUFFIXES,
    WAV_LIMIT,
    AudioError,
    WaveWriter,
    find_audio,
    length_at,
    probe,
    read_audio,
    write_wav,
)
from songbloom.errors import UserError
from tests.audio.recordings import GAPLESS, KINDS, LOSSLESS, encode, song, write

SECONDS = 5.3
NOISE = np.random.default_rng(1).bytes(60000)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="session")
def originals() -> dict[int, np.ndarray]:
    return {rate: song(SECONDS, rate)[:-17] for rate in {rate for _, rate in KINDS.values()}}


@pytest.fixture(scope="session")
def paths(folder: Path, originals: dict[int, np.ndarray]) -> dict[str, Path]:
    return {kind: write(kind, folder, originals[rate]) for kind, (_, rate) in KINDS.items()}


@pytest.fixture(scope="session")
def wholes(paths: dict[str, Path]) -> dict[str, np.ndarray]:
    return {kind: read_audio(path) for kind, path in paths.items()}


# --- whole files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_probe_says_exactly_what_can_be_read(kind: str, paths: dict[str, Path], wholes: dict[str, np.ndarray]) -> None:
    info = probe(paths[kind])
    assert (info.sample_rate, info.channels) == (KINDS[kind][1], 2)
    assert wholes[kind].shape == (info.frames, 2)
    assert wholes[kind].dtype == np.float32
    assert info.duration == info.frames / info.sample_rate


@pytest.mark.parametrize("kind", GAPLESS)
def test_a_song_keeps_its_length(kind: str, paths: dict[str, Path], originals: dict[int, np.ndarray]) -> None:
    assert probe(paths[kind]).frames == len(originals[KINDS[kind][1]])


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_files_hold_what_was_written(
    kind: str, wholes: dict[str, np.ndarray], originals: dict[int, np.ndarray]
) -> None:
    step = {"wav24": 2**-23, "wavfloat": 1e-9}.get(kind, 2**-15)
    assert np.abs(wholes[kind] - originals[KINDS[kind][1]]).max() <= step


@pytest.mark.parametrize("kind", [kind for kind in GAPLESS if kind not in LOSSLESS])
def test_encoder_delay_is_trimmed(kind: str, wholes: dict[str, np.ndarray], originals: dict[int, np.ndarray]) -> None:
    """The decoded song fits the original best where it stands, not some samples before or after."""
    original, decoded = originals[KINDS[kind][1]][:, 0], wholes[kind][:, 0]
    middle = slice(20000, len(original) - 20000)
    lags = range(-40, 41)
    fits = [float(np.dot(original[middle], np.roll(decoded, lag)[middle])) for lag in lags]
    assert lags[int(np.argmax(fits))] == 0
    assert np.corrcoef(original, decoded)[0, 1] > 0.7


@pytest.mark.parametrize("kind", ["vorbis", "opus", "opus_speech", "mp3", "mp3_vbr", "mp3_low"])
def test_decoding_agrees_with_another_decoder(kind: str, paths: dict[str, Path], wholes: dict[str, np.ndarray]) -> None:
    """libsndfile, from the first sample to the last, is the slow reference of reading on a grid."""
    reference, _ = soundfile.read(paths[kind], dtype="float32", always_2d=True)
    assert reference.shape == wholes[kind].shape
    assert np.abs(reference - wholes[kind]).max() < 5e-6


def test_mp3_without_a_length_is_counted(paths: dict[str, Path], originals: dict[int, np.ndarray]) -> None:
    frames = probe(paths["mp3_vbr_bare"]).frames
    assert frames % 1152 == 0
    assert 0 < frames - len(originals[44100]) < 4 * 1152  # the encoder's delay and padding, which nothing tells


# --- any stretch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_stretch_is_the_slice_of_the_whole(
    kind: str, data: st.DataObject, paths: dict[str, Path], wholes: dict[str, np.ndarray]
) -> None:
    whole = wholes[kind]
    offset = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.sampled_from([1, 2, 1000, 30000]))
    part = read_audio(paths[kind], offset=offset, length=length)
    assert np.array_equal(part, whole[offset : offset + length])


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_a_file(kind: str, paths: dict[str, Path], wholes: dict[str, np.ndarray]) -> None:
    path, whole = paths[kind], wholes[kind]
    assert np.array_equal(read_audio(path, offset=0, length=1), whole[:1])
    assert np.array_equal(read_audio(path, offset=len(whole) - 1, length=1), whole[-1:])
    assert np.array_equal(read_audio(path, offset=len(whole) - 1, length=5), whole[-1:])
    assert read_audio(path, offset=len(whole), length=5).shape == (0, 2)
    assert read_audio(path, offset=len(whole) + 99999, length=5).shape == (0, 2)
    assert read_audio(path, offset=3, length=0).shape == (0, 2)


def test_missing_samples_are_filled_only_if_asked(paths: dict[str, Path], wholes: dict[str, np.ndarray]) -> None:
    whole = wholes["flac"]
    padded = read_audio(paths["flac"], offset=len(whole) - 3, length=10, pad=True)
    assert np.array_equal(padded, np.concatenate([whole[-3:], np.zeros((7, 2), np.float32)]))
    assert read_audio(paths["flac"], offset=len(whole) + 5, length=10, pad=True).shape == (10, 2)


@pytest.mark.parametrize("arguments", [{"offset": -1}, {"length": -1}, {"pad": True}])
def test_a_wrong_stretch_is_refused(arguments: dict[str, int], paths: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="offset"):
        read_audio(paths["wav"], **arguments)  # type: ignore[arg-type]


def test_vorbis_with_many_block_sizes_is_read_exactly_everywhere(tmp_path: Path) -> None:
    """Where library seek functions go wrong: block sizes change, and pages end between them."""
    path = tmp_path / "bursts.ogg"
    draws = np.random.default_rng(3)
    time = np.arange(12 * 44100) / 44100
    noise = 0.1 * draws.standard_normal((len(time), 2)) * (np.sin(3 * time) > 0)[:, None]
    soundfile.write(path, 0.3 * np.sin(2764 * time)[:, None] * [1, 0.5] + noise, 44100, format="OGG", subtype="VORBIS")
    whole, _ = soundfile.read(path, dtype="float32")
    for offset in draws.integers(0, len(whole) - 3000, 60):
        part = read_audio(path, offset=int(offset), length=3000)
        assert np.abs(part - whole[offset : offset + 3000]).max() < 1e-5


# --- other sample rates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wav", "opus", "mp3_vbr", "aac"])
@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000, 11025, 44101])
def test_any_stretch_at_another_rate_is_the_slice_of_the_whole(kind: str, rate: int, paths: dict[str, Path]) -> None:
    whole = read_audio(paths[kind], sample_rate=rate)
    info = probe(paths[kind])
    assert len(whole) == length_at(info.frames, info.sample_rate, rate) == int(info.frames * rate / info.sample_rate)
    draws = np.random.default_rng(rate)
    for offset in [0, 1, len(whole) - 1, *draws.integers(0, len(whole), 4).tolist()]:
        part = read_audio(paths[kind], sample_rate=rate, offset=offset, length=7001)
        assert np.array_equal(part, whole[offset : offset + 7001])


@pytest.mark.parametrize(
    ("native", "rate"), [(44100, 16000), (44100, 22050), (48000, 44100), (16000, 44100), (96000, 8000)]
)
def test_blocks_resample_as_the_whole_does(native: int, rate: int, tmp_path: Path) -> None:
    audio = song(6, native)
    soundfile.write(tmp_path / "a.wav", audio, native, subtype="FLOAT")
    reference = soxr.resample(audio, native, rate, quality="VHQ")
    mine = read_audio(tmp_path / "a.wav", sample_rate=rate)
    assert abs(len(mine) - len(reference)) <= 1
    assert np.abs(mine - reference[: len(mine)]).max() < 1e-6


@pytest.mark.parametrize(("native", "rate"), [(44100, 16000), (22050, 48000), (44056, 44100)])
def test_resampled_tones_are_in_phase(native: int, rate: int, tmp_path: Path) -> None:
    """Sample n at the new rate is the song at n / rate seconds."""
    tone = 0.5 * np.sin(2 * np.pi * 997 * np.arange(native * 4) / native)
    soundfile.write(tmp_path / "tone.wav", tone, native, subtype="FLOAT")
    mine = read_audio(tmp_path / "tone.wav", sample_rate=rate, offset=rate, length=2 * rate)[:, 0]
    expected = 0.5 * np.sin(2 * np.pi * 997 * (rate + np.arange(2 * rate)) / rate)
    assert np.abs(mine - expected).max() < 1e-4


# --- channels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [None, 16000])
def test_channels_are_mixed_or_copied(rate: int | None, paths: dict[str, Path], tmp_path: Path) -> None:
    stereo = read_audio(paths["wav"], sample_rate=rate)
    mono = read_audio(paths["wav"], sample_rate=rate, channels=1)
    assert mono.shape == (len(stereo), 1)
    assert np.abs(mono[:, 0] - stereo.mean(axis=1)).max() < 1e-6
    soundfile.write(tmp_path / "mono.wav", song(1, 16000, 1), 16000)
    doubled = read_audio(tmp_path / "mono.wav", channels=2)
    assert np.array_equal(doubled[:, 0], doubled[:, 1])


@pytest.mark.parametrize("kind", ["wav", "flac", "vorbis", "aac"])
def test_surround_files(kind: str, tmp_path: Path) -> None:
    """Left, right, centre, bass, rear left, rear right: each alone must arrive where it belongs."""
    rate = 44100
    time = np.arange(rate) / rate
    for channel, (left, right) in enumerate([(1, 0), (0, 1), (1, 1), (0, 0), (1, 0), (0, 1)]):
        audio = np.zeros((rate, 6), np.float32)
        audio[:, channel] = 0.5 * np.sin(2 * np.pi * 60 * time)
        path = tmp_path / f"{channel}.{'m4a' if kind == 'aac' else kind}"
        if kind == "aac":
            encode(path, audio, rate, "aac", container="ipod", bit_rate=400000)
        elif kind == "vorbis":  # its own order: left, centre, right, rear left, rear right, bass
            soundfile.write(
                path.with_suffix(".ogg"), audio[:, [0, 2, 1, 4, 5, 3]], rate, format="OGG", subtype="VORBIS"
            )
            path = path.with_suffix(".ogg")
        else:
            soundfile.write(path, audio, rate)
        assert probe(path).channels == 6
        loudness = np.abs(read_audio(path, channels=2)[5000:-5000]).max(axis=0)
        assert ((loudness > 0.05) == np.array([left, right], bool)).all(), channel


# --- what is not as it should be -------------------------------------------------------------------------------------


def _one_line(error: BaseException, path: Path) -> bool:
    return "\n" not in str(error) and str(path) in str(error)


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 5000, np.random.default_rng(1).bytes(60000), b"no audio at all\n" * 50]
)
def test_what_is_no_audio_is_an_audio_error(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    for call in (probe, read_audio):
        with pytest.raises(AudioError) as caught:
            call(path)  # type: ignore[operator]
        assert _one_line(caught.value, path)
        assert isinstance(caught.value, UserError)


def test_missing_files_and_folders_are_audio_errors(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    for name in ("nowhere.wav", "folder.wav"):
        with pytest.raises(AudioError) as caught:
            probe(tmp_path / name)
        assert _one_line(caught.value, tmp_path / name)


def test_a_file_without_samples_is_an_audio_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), 44100)
    with pytest.raises(AudioError, match="holds no samples"):
        probe(tmp_path / "none.wav")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_is_as_long_as_what_is_left(
    kind: str, paths: dict[str, Path], wholes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    content = paths[kind].read_bytes()
    path = tmp_path / f"cut{KINDS[kind][0]}"
    path.write_bytes(content[: len(content) * 6 // 10])
    if kind in ("aac", "alac"):  # the table of contents stands at the end of the file
        with pytest.raises(AudioError):
            probe(path)
        return
    info = probe(path)
    part = read_audio(path)
    assert len(part) == info.frames
    assert 0.3 < info.frames / len(wholes[kind]) < 0.8
    sure = info.frames - 3000  # the last frames may miss what they share with their successors
    assert np.abs(part[:sure] - wholes[kind][:sure]).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_the_middle_neither_crashes_nor_spreads(
    kind: str, paths: dict[str, Path], wholes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    content = bytearray(paths[kind].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 700] = bytes(np.random.default_rng(0).bytes(700))
    path = tmp_path / f"damaged{KINDS[kind][0]}"
    path.write_bytes(content)
    first = read_audio(path, length=4000)
    assert np.array_equal(first, wholes[kind][:4000])
    try:
        whole = read_audio(path)
    except AudioError as error:
        assert _one_line(error, path)
        assert "damaged near" in str(error)
    else:
        assert np.isfinite(whole).all()
    if kind in GAPLESS:  # what lies behind the damage keeps its place
        frames = probe(path).frames
        if frames == len(wholes[kind]):
            assert np.array_equal(read_audio(path, offset=frames - 1000), wholes[kind][-1000:])


def _harmed(content: bytes, draws: np.random.Generator) -> bytes:
    """The content with flipped bytes, a stretch missing, junk in between, or its end cut off."""
    harmed, place = bytearray(content), int(draws.integers(0, len(content)))
    match draws.integers(4):
        case 0:
            for where in draws.integers(0, draws.choice([300, len(harmed)]), 20):
                harmed[where] = draws.integers(256)
        case 1:
            del harmed[place : place + int(draws.integers(1, 5000))]
        case 2:
            harmed[place:place] = draws.bytes(int(draws.integers(1, 3000)))
        case 3:
            del harmed[place:]
    return bytes(harmed)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_file_holds_only_audio_errors_come_of_it(kind: str, paths: dict[str, Path], tmp_path: Path) -> None:
    draws = np.random.default_rng(list(kind.encode()))
    path = tmp_path / f"harmed{KINDS[kind][0]}"
    for _ in range(8):
        path.write_bytes(_harmed(paths[kind].read_bytes(), draws))
        try:
            info = probe(path)
            assert read_audio(path).shape == (info.frames, info.channels)
            read_audio(path, sample_rate=16000, offset=info.frames // 4, length=3000, channels=1)
        except AudioError as error:
            assert _one_line(error, path)


@pytest.mark.parametrize("kind", ["aac_adts", "mp3_vbr"])
def test_junk_between_packets_is_stepped_over(
    kind: str, paths: dict[str, Path], wholes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    content = paths[kind].read_bytes()
    sync = b"\xff\xf1" if kind == "aac_adts" else b"\xff\xfb"
    middle = content.index(sync, len(content) // 2)
    path = tmp_path / f"junk{KINDS[kind][0]}"
    path.write_bytes(content[:middle] + b"junk!" * 200 + content[middle:])
    frames = probe(path).frames
    end = wholes[kind][-30000:]
    tail = read_audio(path, offset=frames - 30000)
    # The grid lies differently behind the junk, and AAC's noise substitution begins anew with each segment.
    if kind == "aac_adts":
        assert np.corrcoef(tail[:, 0], end[:, 0])[0, 1] > 0.95
    else:
        assert np.abs(tail - end).max() < 1e-6


def test_a_frame_that_claims_many_channels_is_silence(paths: dict[str, Path], tmp_path: Path) -> None:
    """Headers of AAC packets are changed to other numbers of channels; the song keeps its length and shape."""
    content, at, number = bytearray(paths["aac_adts"].read_bytes()), 0, 0
    while at + 7 <= len(content):
        size = (content[at + 3] & 3) << 11 | content[at + 4] << 3 | content[at + 5] >> 5
        if number % 10 == 9:
            channels = number // 10 % 8
            content[at + 2] = content[at + 2] & 0xFE | channels >> 2
            content[at + 3] = content[at + 3] & 0x3F | (channels & 3) << 6
        at, number = at + size, number + 1
    path = tmp_path / "channels.aac"
    path.write_bytes(content)
    info = probe(path)
    assert (info.channels, info.frames) == (2, probe(paths["aac_adts"]).frames)
    assert read_audio(path).shape == (info.frames, 2)


def test_values_that_are_no_numbers_are_an_audio_error(tmp_path: Path) -> None:
    audio = song(1, 8000, 1)
    audio[4000] = np.nan
    soundfile.write(tmp_path / "nan.wav", audio, 8000, subtype="FLOAT")
    assert len(read_audio(tmp_path / "nan.wav", length=4000)) == 4000
    with pytest.raises(AudioError, match=r"damaged near 0\.50 s"):
        read_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize(("kind", "suffix"), [("mp3", ".wav"), ("flac", ".mp3"), ("aac", ".aac"), ("vorbis", ".opus")])
def test_content_counts_not_the_name(
    kind: str, suffix: str, paths: dict[str, Path], wholes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / f"renamed{suffix}"
    path.write_bytes(paths[kind].read_bytes())
    assert np.array_equal(read_audio(path), wholes[kind])


@pytest.mark.parametrize("kind", ["mp3_vbr", "flac", "aac_adts"])
def test_a_tag_in_front_changes_nothing(
    kind: str, paths: dict[str, Path], wholes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / f"tagged{KINDS[kind][0]}"
    path.write_bytes(b"ID3\x03\0\0" + bytes([0, 0, 3000 >> 7, 3000 & 127]) + b"\0" * 3000 + paths[kind].read_bytes())
    assert np.array_equal(read_audio(path), wholes[kind])


def test_apples_note_of_the_length_is_believed(tmp_path: Path) -> None:
    audio = song(1.2, 44100, 1)[:50000]
    note = " 00000000 00000400 000001B0 000000000000C350 00000000"  # delay 1024, length 50000
    path = encode(
        tmp_path / "noted.m4a", audio, 44100, "aac",
        movflags="use_metadata_tags", use_editlist=0, metadata={"iTunSMPB": note},
    )  # fmt: skip
    decoded = read_audio(path)
    assert decoded.shape == (50000, 1)
    assert np.corrcoef(audio[:, 0], decoded[:, 0])[0, 1] > 0.9


def test_names_in_any_script(paths: dict[str, Path], wholes: dict[str, np.ndarray], tmp_path: Path) -> None:
    for kind in ("wav", "vorbis", "mp3", "aac"):
        path = tmp_path / f"歌 〜さくら🌸 'x' \"y\" #1%20{KINDS[kind][0]}"
        path.write_bytes(paths[kind].read_bytes())
        assert np.array_equal(read_audio(path, offset=5, length=100), wholes[kind][5:105])


def test_a_file_that_changes_is_scanned_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, song(1, 44100), 44100, format="MP3")
    assert probe(path).frames == 44100
    soundfile.write(path, song(2, 44100), 44100, format="MP3")
    assert probe(path).frames == 88200


def test_one_very_long_file_is_not_held_in_memory(paths: dict[str, Path], tmp_path: Path) -> None:
    """Half an hour of MP3, made of the same frames over and over."""
    frames = paths["mp3_vbr_bare"].read_bytes()
    seconds = probe(paths["mp3_vbr_bare"]).duration
    path = tmp_path / "long.mp3"
    path.write_bytes(frames * int(1800 / seconds))
    info = probe(path)
    assert info.duration > 1700
    period = round(seconds * 44100)
    read_audio(path, length=10)
    tracemalloc.start()
    late = read_audio(path, offset=period * 300 + 50000, length=44100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert np.array_equal(late, read_audio(path, offset=period * 200 + 50000, length=44100))


def test_the_table_cache_forgets_the_oldest(tmp_path: Path) -> None:
    cache = TableCache(limit=1000)
    files = [tmp_path / str(i) for i in range(8)]
    for path in files:
        path.touch()
        cache.put(path, 1)
    assert [cache.get(path) is not None for path in files] == [False] * 5 + [True] * 3
    cache.put(files[-1], 2)
    assert [cache.get(path) for path in files[-3:]] == [1, 1, 2]
    assert tables.get(files[0]) is None


# --- finding and writing ---------------------------------------------------------------------------------------------


def test_find_audio(tmp_path: Path) -> None:
    wanted = ["a.wav", "b/c.FLAC", "b/d/e.mp3", "z.m4a", "ü.aac", "歌.opus", "o.Ogg"]
    for name in [*wanted, "a.txt", ".hidden.wav", ".cache/x.wav", "b/._c.mp3", "wav", "readme.mp3.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert find_audio(tmp_path) == sorted(tmp_path / name for name in wanted)


def test_write_wav(tmp_path: Path) -> None:
    audio = np.array([[0.0, 0.5], [-1.0, 1.0], [-7.0, 7.0], [np.nan, np.inf]])
    path = tmp_path / "new" / "歌.wav"
    write_wav(path, audio, 24000)
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 2, 2)
    highest = 32767 / 32768
    assert np.array_equal(
        read_audio(path), np.array([[0, 0.5], [-1, highest], [-1, highest], [0, highest]], np.float32)
    )
    write_wav(path, audio[:2, 0], 24000)
    assert read_audio(path).shape == (2, 1)
    assert path.stat().st_mode & 0o777 == 0o666 & ~_mask()


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_write_wav_is_all_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken.wav").mkdir()
    (tmp_path / "taken.wav" / "inside").touch()
    with pytest.raises(UserError, match="taken"):
        write_wav(tmp_path / "taken.wav", np.zeros(10), 8000)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.wav"]
    with pytest.raises(ValueError, match="audio to write"):
        write_wav(tmp_path / "x.wav", np.zeros((2, 3, 4)), 8000)
    assert not (tmp_path / "x.wav").exists()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_file_in_pieces_is_the_file_written_at_once(channels: int, tmp_path: Path) -> None:
    audio = np.random.default_rng(0).normal(0, 0.6, (1000, channels))
    write_wav(tmp_path / "whole.wav", audio, 8000)
    with WaveWriter(tmp_path / "new" / "pieces.wav", 8000, channels) as writer:
        for part in np.split(audio, [0, 3, 700]):
            writer.append(part[:, 0] if channels == 1 else part)
        assert writer.frames == 1000
        assert not (tmp_path / "new" / "pieces.wav").exists()
    content = (tmp_path / "new" / "pieces.wav").read_bytes()
    assert content == (tmp_path / "whole.wav").read_bytes()
    with wave.open(str(tmp_path / "new" / "pieces.wav")) as file:
        assert (file.getnframes(), file.getnchannels(), file.getframerate()) == (1000, channels, 8000)
        assert len(content) == 44 + 1000 * channels * 2
    assert len(list((tmp_path / "new").iterdir())) == 1
    with pytest.raises(ValueError, match="is not open"):
        writer.append(audio)


def test_a_writer_without_pieces_leaves_an_empty_file(tmp_path: Path) -> None:
    with WaveWriter(tmp_path / "a.wav", 8000, 2):
        pass
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getnframes() == 0


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(10), 8000)
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(ValueError, match="must be \\[T, 2\\]"), WaveWriter(tmp_path / "a.wav", 8000, 2) as writer:
        writer.append(np.zeros((5, 2)))
        writer.append(np.zeros((5, 3)))
    assert (tmp_path / "a.wav").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_full_disk_is_told_in_one_line(pieces: int, tmp_path: Path) -> None:
    program = f"""
import resource, numpy, songbloom.errors
from songbloom.audio.files import WaveWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    with WaveWriter("song.wav", 8000, 1) as writer:
        for _ in range({pieces}):
            writer.append(numpy.zeros(40000 // {pieces}))
except songbloom.errors.UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "song.wav: cannot be written (File too large); free space or change the folder\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_more_than_a_wav_file_can_hold_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"holds 4 GB, which is 6\.8 hours here"),
        WaveWriter(tmp_path / "a.wav", 44100, 2) as writer,
    ):
        writer.frames = WAV_LIMIT // 4  # as if so many had been written
        writer.append(np.zeros((1, 2)))
    assert list(tmp_path.iterdir()) == []


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.floats(-1.5, 1.5, width=32), min_size=1, max_size=50), st.sampled_from([8000, 22050, 44100]))
def test_written_audio_comes_back_within_half_a_step(tmp_path: Path, values: list[float], rate: int) -> None:
    audio = np.asarray(values, np.float32)[:, None]
    write_wav(tmp_path / "a.wav", audio, rate)
    expected = np.clip(audio, -1, 32767 / 32768)
    assert np.abs(read_audio(tmp_path / "a.wav", sample_rate=rate) - expected).max() <= 0.5 / 32768 + 1e-9
