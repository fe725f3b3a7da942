"""The songs of a SongBloom run: checked, encoded once, cut into segments, and looked at before the first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import default_collate

from songbloom import allocator
from songbloom.data.cache import Cache
from songbloom.data.check import CheckSettings, check_before_training
from songbloom.data.fields import field
from songbloom.data.manifest import Song
from songbloom.data.songbloom_dataset import EncodedSong, Encoder, SongBloomDataset, WordSettings, songs_of
from songbloom.distributed import say, world
from songbloom.errors import UserError, counted
from songbloom.hyperparams import Hyperparams
from songbloom.lyrics.phoneme_vocabulary import PhonemeVocabulary
from songbloom.published.fetch import cache_folder as downloads_folder
from songbloom.sketch.codec import SketchedCodec
from songbloom.training.songbloom import VERDICT_ITEMS, SongBloomTask
from songbloom.training.state import TrainingState

LICENCES = "licences"  # in a SongBloom checkpoint's hps and in adapters: the terms of the songs
ANY_LENGTH = 1 << 40  # frames; sketches of other lengths are cut, and told by the encoder
# An adapter's A learns nothing while its B is zero; own rows learn where their symbols are sung.
ZERO_AT_FIRST = (".A", ".rows.values")


def checked_songs(hps: Hyperparams) -> tuple[list[Song], list[Song]]:
    """Songs to train on and songs to judge by; with the latter ``hps.test`` is on where there is training.

    ``hps.licences`` becomes the terms of the former, which checkpoints and adapters keep.

    Raises:
        UserError: what the lines of ``data_jsonl`` or ``val_jsonl`` say cannot be used.
    """
    check_data(hps)
    training, validation = songs_of(hps)
    hps[LICENCES] = tell_licences(training)
    hps.test = bool(validation) and (hps.test or hps.train)
    return training, validation


def tell_licences(songs: Sequence[Song]) -> list[str]:
    """Say under which terms songs stand, as their lines tell; those terms, the most frequent first."""
    counts = Counter(str(field(song.extra, "licence") or "").strip() for song in songs)
    untold = counts.pop("", 0)
    found = sorted(counts, key=lambda terms: (-counts[terms], terms))
    if found:
        shown = [f"{terms} ({counted(counts[terms], 'song')})" for terms in found]
        say(
            "licences of what is learned from: "
            + "; ".join(shown + [f"not told ({counted(untold, 'song')})"] * bool(untold))
        )
    return found


def check_data(hps: Hyperparams) -> None:
    """What ``python -m songbloom.data.check`` tells, against the settings of this run."""
    settings = CheckSettings(
        lyrics_vocab=hps.lyrics_vocab or "songbloom",
        english=hps.lyrics_english,
        reading=hps.lyrics_reading,
        language=hps.language if hps.process_lyrics else "phonemes",
        seconds_per_tag=hps.seconds_per_tag,
        max_tokens=0,  # what a segment's words are is known when they are cropped
        sample_rate=hps.sr,
        min_seconds=hps.patch_size / 25,
        sketch_codes=hps.l_bins,
        sketch_slack=2 if hps.require_length_match else ANY_LENGTH,
        prompt_seconds=hps.prompt_frames / 25,
        need_lyrics=False,
        need_sketch=hps.sketch_mode == "precomputed",
    )
    check_before_training(*(name for name in (hps.data_jsonl, hps.val_jsonl) if name), settings=settings)


def encoded_sets(
    hps: Hyperparams, folder: Path, songs: Sequence[Sequence[Song]], codec: SketchedCodec, vocabulary: PhonemeVocabulary
) -> list[SongBloomDataset | None]:
    """The data sets of songs, which are encoded where that has not been done before; all ranks call it together.

    Args:
        hps: hyperparameters.
        folder: of the run.
        songs: of each set, as :func:`songbloom.data.songbloom_dataset.songs_of` gives them.
        codec: that the prior learns.
        vocabulary: of the lyrics.

    Raises:
        UserError: a song cannot be read or encoded, or all are shorter than ``min_duration``.
    """
    encoder = Encoder(
        codec,
        Cache(cache_folder(hps, folder), rebuild=hps.rebuild_cache),
        hps.codec,
        hps.sketch_mode,
        vocabulary,
        WordSettings.from_hps(hps),
        hps.require_length_match,
        prompt_samples=hps.prompt_frames * codec.hop_lengths[0],
    )
    encoded = [encoder.songs(each, say) for each in songs]
    if encoder.mismatches:
        have = counted(len(encoder.mismatches), "sketch has another length", "sketches have other lengths")
        say(f"note: {have} than the latents; both are cut")
    if hps.verify_lengths:
        for line in encoder.verify([song for each in encoded for song in each], hps.verify_lengths_max):
            say(line)
    say(encoder.cache.report())
    allocator.give_back()  # training asks for other sizes than the codec did
    return [songbloom_set(hps, codec, encoder.cache, each) for each in encoded]


def cache_folder(hps: Hyperparams, folder: Path) -> Path:
    """Where encoded songs are kept: in the run's folder, or with ``use_cache`` where other runs find them too."""
    if not hps.use_cache:
        return folder / "encoded"
    return Path(hps.cache_dir).expanduser() if hps.cache_dir else downloads_folder() / "training"


def songbloom_set(
    hps: Hyperparams, codec: SketchedCodec, cache: Cache, songs: Sequence[EncodedSong]
) -> SongBloomDataset | None:
    """The data set of encoded songs; None of none."""
    if not songs:
        return None
    if not any(song.frames >= 25 * (hps.min_duration or 0) for song in songs):
        raise UserError(f"min_duration={hps.min_duration:g} s leaves none of {counted(len(songs), 'song')}: lower it")
    made = SongBloomDataset(
        [song for song in songs if song.frames >= 25 * (hps.min_duration or 0)],
        cache,
        segment=codec.frames(hps.sample_length or round(hps.sample_length_in_seconds * codec.sample_rate)),
        patch_size=hps.patch_size,
        lyric_tokens=hps.lyric_tokens,
        prompt_frames=hps.prompt_frames,
        prompt_length=round(hps.prompt_seconds * 25),
        strategy=hps.segment_strategy,
        seed=hps.seed,
    )
    if len(made.songs) < len(songs):
        least = f"min_duration={hps.min_duration:g} s" if hps.min_duration else "a patch"
        left_out = len(songs) - len(made.songs)
        say(f"note: {counted(left_out, 'song is', 'songs are')} shorter than {least} and left out")
    if made.cut_lyrics():
        say(
            f"note: {made.cut_lyrics()} of {len(made)} segments have more words than lyric_tokens={hps.lyric_tokens} "
            "hold; they are cut there"
        )
    return made


def look_before(
    task: SongBloomTask,
    songs: SongBloomDataset,
    state: TrainingState,
    *,
    pretrained: bool,
    same_codebook: bool = False,
) -> None:
    """Before the first step: what the model knows of the sketch tokens, and whether every tensor gets a gradient."""
    if state.step or not task.hps["train"]:
        return
    items = [songs[item] for item in range(min(len(songs), VERDICT_ITEMS))]
    batches = [task.batch_of(default_collate([item]), world().device) for item in items]
    for line in task.verdict(batches, pretrained=pretrained, same_codebook=same_codebook):
        say(line)
    task.check_gradients(batches[0], zero_allowed=ZERO_AT_FIRST)
