"""Real audio files of every kind for tests, written with real encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def song(seconds: float, rate: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Tones that glide, with clicks and noise bursts in between: something that shows a wrong place. ``[T, C]``."""
    draws = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    result = np.zeros((len(time), channels))
    for channel in range(channels):
        pitch = 220 * (1 + channel / 3) * (1 + 0.2 * np.sin(2 * np.pi * 0.7 * time))
        result[:, channel] = 0.25 * np.sin(2 * np.pi * np.cumsum(pitch) / rate)
    bursts = (np.sin(2 * np.pi * 1.3 * time) > 0.7)[:, None]
    result += 0.1 * bursts * draws.standard_normal(result.shape)
    for click in draws.integers(0, len(time), max(1, int(3 * seconds))):
        result[click : click + 30] *= 2
    return np.clip(result, -0.95, 0.95).astype(np.float32)


def encode(
    path: Path, audio: np.ndarray, rate: int, codec: str, *, container: str | None = None, **options: Any
) -> Path:
    """Write ``[T, C]`` with one of FFmpeg's encoders. ``options`` go to the container, ``bit_rate`` to the encoder."""
    import av

    bit_rate = options.pop("bit_rate", None)
    metadata = options.pop("metadata", {})
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[audio.shape[1]]
    with av.open(str(path), "w", format=container, options={k: str(v) for k, v in options.items()}) as target:
        target.metadata.update(metadata)
        stream: Any = target.add_stream(codec, rate=rate, layout=layout)
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio.T), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        convert = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
        for piece in [*convert.resample(frame), *convert.resample(None)]:
            for packet in stream.encode(piece):
                target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
    return path


# Kind → (suffix, sample rate). All kinds are stereo.
KINDS = {
    "wav": (".wav", 44100),
    "wav24": (".wav", 44100),
    "wavfloat": (".WAV", 22050),
    "flac": (".flac", 44100),
    "vorbis": (".ogg", 44100),
    "opus": (".opus", 48000),
    "opus_speech": (".opus", 48000),
    "mp3": (".mp3", 44100),
    "mp3_vbr": (".mp3", 44100),
    "mp3_vbr_bare": (".mp3", 44100),
    "mp3_low": (".mp3", 22050),
    "aac": (".m4a", 44100),
    "aac_adts": (".aac", 48000),
    "alac": (".m4a", 44100),
}
LOSSLESS = ("wav", "wav24", "wavfloat", "flac", "alac")
# Kinds whose container says exactly how long the song was; the others keep the encoder's delay and padding.
GAPLESS = (*LOSSLESS, "vorbis", "opus", "opus_speech", "mp3", "mp3_vbr", "mp3_low", "aac")


def write(kind: str, folder: Path, audio: np.ndarray) -> Path:
    """Write ``[T, 2]`` as a file of a kind, at that kind's rate."""
    suffix, rate = KINDS[kind]
    path = folder / f"{kind}{suffix}"
    if kind in ("wav", "wav24", "wavfloat", "flac"):
        subtype = {"wav": "PCM_16", "wav24": "PCM_24", "wavfloat": "FLOAT", "flac": "PCM_16"}[kind]
        soundfile.write(path, audio, rate, subtype=subtype, format="FLAC" if kind == "flac" else "WAV")
    elif kind == "vorbis":
        with soundfile.SoundFile(path, "w", rate, 2, format="OGG", subtype="VORBIS") as file:
            for start in range(0, len(audio), rate):  # libsndfile overruns its stack with some minutes at once
                file.write(audio[start : start + rate])
    elif kind == "opus":
        soundfile.write(path, audio, rate, format="OGG", subtype="OPUS")
    elif kind == "opus_speech":
        encode(path, audio, rate, "libopus", bit_rate=20000)
    elif kind.startswith("mp3_vbr"):
        soundfile.write(path, audio, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.6)
        if kind == "mp3_vbr_bare":  # without the first frame, which tells the length and the encoder's delay
            content = path.read_bytes()
            assert b"Xing" in content[:200]
            path.write_bytes(content[content.index(b"\xff\xfb", 4) :])
    elif kind == "mp3_low":
        encode(path, audio, rate, "libmp3lame", bit_rate=16000)
    elif kind == "mp3":
        soundfile.write(path, audio, rate, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
    elif kind == "aac":
        encode(path, audio, rate, "aac", container="ipod")
    elif kind == "aac_adts":
        encode(path, audio, rate, "aac", container="adts")
    elif kind == "alac":
        encode(path, audio, rate, "alac", container="ipod")
    return path
