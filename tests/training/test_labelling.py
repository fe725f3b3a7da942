"""Priors with labels in training: what follows from the data, what checkpoints keep, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import make_models
from hparams import METADATA_HOOKS, setup_hparams
from songbloom.architecture import compare_architecture
from songbloom.data.label_tables import LabelTables
from songbloom.data.manifest import Song
from songbloom.errors import UserError
from songbloom.hyperparams import COMMAND_LINE
from songbloom.published import fetch
from songbloom.training import checkpoint
from songbloom.training.labelling import complete_labels, complete_vocabulary, labeller_of
from tests.training.runs import built, latest, write_songs

ROWS = [
    {"artist": "Mei", "genre": "folk", "lyrics": "[verse] la la la"},
    {"artist": "Ken", "genre": "rock", "lyrics": "hello hello"},
    {"artist": "宇多田", "genre": "folk"},
    {},
    {"artist": "Mei", "lyrics": "la"},
]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs with a JSON file beside each."""
    folder = write_songs(tmp_path_factory.mktemp("labelled") / "songs")
    for number, row in enumerate(ROWS):
        (folder / f"song_{number}.json").write_text(json.dumps(row))
    return folder


@pytest.fixture(scope="module")
def codec(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("codec")
    built("tiny_vqvae", "c", folder, songs, train_steps=1).run()
    return str(folder / "c" / checkpoint.LATEST)


def trainer(kind: str, folder: Path, songs: Path, codec: str, **values: Any) -> Any:
    settings = {"prior": True, "restore_vqvae": codec, "train_steps": 2} | values
    return built(f"tiny_vqvae,tiny_{kind}_prior", "p", folder, songs, **settings)


@pytest.mark.parametrize("kind", ["labelled", "lyrics", "single_enc_dec"])
def test_priors_train_and_keep_their_tables(kind: str, tmp_path: Path, songs: Path, codec: str) -> None:
    trained = trainer(kind, tmp_path, songs, codec, test=True, sample_iters=2)
    trained.run()
    hps = latest(tmp_path, "p")["hps"]
    assert hps["y_bins"] == (3, 4) and hps["max_bow_genre_size"] == 1
    assert hps["label_ids"]["artists"] == {"unknown": 0, "ken": 1, "mei": 2, "宇多田": 3}
    reads = kind != "labelled"
    assert trained.task.labeller.width == trained.task.model.label_width == (5 + 32 if reads else 5)
    assert (hps["lyrics_vocab"], hps["n_vocab"]) == (("v3", 79) if reads else ("", 0))
    beside = json.loads((tmp_path / "p" / "checkpoint_latest.json").read_text())
    assert beside["hps"]["label_ids"] == hps["label_ids"]


def test_labels_reach_the_model(tmp_path: Path, songs: Path, codec: str) -> None:
    task = trainer("lyrics", tmp_path, songs, codec)
    batch = next(iter(task._batches(task.train_set, 0, 0, shuffle=False)))
    codes, upper, labels, sung = task.task.prepare(batch)
    assert upper is None and sung is None and labels is batch.labels and labels.shape == (2, 37)
    other = labels.clone()
    other[:, -1] = 7
    model = task.task.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        assert model(codes, None, labels)[0] != model(codes, None, other)[0]


def test_a_run_goes_on_with_its_ids_whatever_songs_come(
    tmp_path: Path, songs: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer("labelled", tmp_path, songs, codec).run()
    more = write_songs(tmp_path / "more")
    (more / "song_0.json").write_text(json.dumps({"artist": "Aki", "genre": "folk"}))
    again = trainer("labelled", tmp_path, more, codec, train_steps=3, train_test_split=1.0)
    assert again.hps["y_bins"] == (3, 4) and again.hps["label_ids"] == latest(tmp_path, "p")["hps"]["label_ids"]
    assert "note: artist 'Aki' is in no table of this model" in capsys.readouterr().out
    again.run()
    assert latest(tmp_path, "p")["step"] == 3


def test_weights_bring_their_ids_along(tmp_path: Path, songs: Path, codec: str) -> None:
    trainer("labelled", tmp_path, songs, codec).run()
    more = write_songs(tmp_path / "more")
    restored = str(tmp_path / "p" / checkpoint.LATEST)
    values: dict[str, Any] = {"prior": True, "restore_vqvae": codec, "restore_prior": restored, "train_steps": 1}
    tuned = built("tiny_vqvae,tiny_labelled_prior", "q", tmp_path, more, **values)
    assert tuned.hps["label_ids"] == latest(tmp_path, "p")["hps"]["label_ids"]


def test_tables_of_a_folder_and_their_room(tmp_path: Path, songs: Path, codec: str) -> None:
    tables = LabelTables(3, {"unknown": 0, "mei": 5}, {"unknown": 0, "folk": 2})
    tables.write(tmp_path / "tables")
    values: dict[str, Any] = {"label_tables": str(tmp_path / "tables")}
    made = trainer("labelled", tmp_path, songs, codec, **values)
    assert made.hps["y_bins"] == (3, 6) and made.task.labeller.tables == tables
    made = trainer("labelled", tmp_path, songs, codec, y_bins=(10, 100), **values)
    assert made.task.model.label_conditioner.artist.num_embeddings == 100
    with pytest.raises(UserError, match=r"y_bins=\(10, 3\) has room for 3 artists, and the tables have 6"):
        trainer("labelled", tmp_path, songs, codec, y_bins=(10, 3), **values)
    with pytest.raises(UserError, match=r"lacks v2_artist_ids\.txt"):
        trainer("labelled", tmp_path, songs, codec, labels_v3=False, **values)


def test_a_bag_of_genre_words_is_as_large_as_needed(tmp_path: Path) -> None:
    listed = [Song(Path("/a.wav"), "Mei", "indie folk rock"), Song(Path("/b.wav"), "Mei", "folk")]
    hps = setup_hparams("tiny_vqvae,tiny_labelled_prior", {"labels_v3": False, "max_bow_genre_size": None})
    complete_labels(hps, {}, lambda: listed)
    assert hps.max_bow_genre_size == 3 and hps.y_bins == (4, 2)
    assert labeller_of(hps, sample_length=10).width == 7
    LabelTables.build(listed, 2).write(tmp_path)
    hps = setup_hparams("tiny_vqvae,tiny_labelled_prior", {"labels_v3": False, "max_bow_genre_size": None})
    hps.label_tables = str(tmp_path)
    complete_labels(hps, {}, lambda: listed)
    assert hps.max_bow_genre_size == 3
    complete_labels(hps, {"label_ids": hps.label_ids, "max_bow_genre_size": 3}, lambda: [])
    assert hps.max_bow_genre_size == 3


def test_hooks_are_registered_by_name(tmp_path: Path, songs: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METADATA_HOOKS, "mine", lambda path, test: (Path(path).stem, None, None))
    made = trainer("labelled", tmp_path, songs, codec, get_metadata="mine")
    assert sorted(made.hps["label_ids"]["artists"]) == [*(f"song_{i}" for i in range(5)), "unknown"]
    assert {int(made.train_set[i]["labels"][3]) for i in range(len(made.train_set))} <= {1, 2, 3, 4, 5}


def test_the_vocabulary_gives_its_size() -> None:
    hps = setup_hparams("small_vqvae,small_sep_enc_dec_prior")
    complete_vocabulary(hps)
    assert (hps.lyrics_vocab, hps.n_vocab) == ("v3", 79)
    hps = setup_hparams("small_vqvae,small_sep_enc_dec_prior", {"lyrics_vocab": "ja_kana"})
    complete_vocabulary(hps)
    assert hps.n_vocab > 79
    hps = setup_hparams("small_vqvae,small_sep_enc_dec_prior", {"lyrics_vocab": "ja_kana", "n_vocab": 79}, COMMAND_LINE)
    with pytest.raises(UserError, match=r"--n_vocab=79, but vocabulary 'ja_kana' has .*: leave --n_vocab out"):
        complete_vocabulary(hps)
    with pytest.raises(UserError, match="no vocabulary 'ja_kanna'"):
        complete_vocabulary(setup_hparams("tiny_vqvae,tiny_lyrics_prior", {"lyrics_vocab": "ja_kanna"}))


def test_what_is_derived_is_not_compared() -> None:
    asked = setup_hparams("tiny_vqvae,tiny_lyrics_prior")
    saved = {**asked, "y_bins": (3, 4), "n_vocab": 79, "lyrics_vocab": "v3"}
    assert compare_architecture(saved, asked, "prior") == []
    (line,) = compare_architecture(saved, {**asked, "lyrics_vocab": "ja_kana"}, "prior")
    assert line == "lyrics_vocab is 'v3' in the checkpoint, 'ja_kana' asked for"


# --- sampling takes them from the checkpoint -------------------------------------------------------------------------


def test_sampling_needs_no_other_files(tmp_path: Path, songs: Path, codec: str) -> None:
    trainer("lyrics", tmp_path, songs, codec, lyrics_vocab="ja_kana", lyrics_english="letters").run()
    files = {"tiny_vqvae": codec, "tiny_lyrics_prior": str(tmp_path / "p" / checkpoint.LATEST)}
    _, (prior,) = make_models.make_model("tiny_lyrics", "meta", {}, [1], checkpoints=files)
    settings = make_models.settings_of("tiny_lyrics", "tiny_lyrics_prior", checkpoints=files)
    labeller = make_models.make_labeller(settings, prior)
    assert labeller is not None and labeller.vocabulary.name == "ja_kana" and labeller.width == prior.label_width
    assert labeller.tables.artists["宇多田"] == 3 and labeller.options["english"] == "letters"
    told: list[str] = []
    make_models.make_labeller(settings, prior, told.append)
    assert told == []
    settings.label_tables = str(tmp_path)
    make_models.make_labeller(settings, prior, told.append)
    (line,) = told
    assert line.startswith(f"note: {tmp_path} is not read: ") and line.endswith(
        "holds the ids that it was trained with"
    )
    settings.lyrics_vocab = "v2"
    with pytest.raises(UserError, match=r"was trained with a vocabulary of .* symbols, and 'v2' has 80"):
        make_models.make_labeller(settings, prior)


def test_tables_beside_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without tables of its own, as published ones are."""
    weights = tmp_path / "prior.pth.tar"
    checkpoint.save(weights, {"model": {"x": torch.zeros(1)}})
    assert make_models.tables_of(str(weights), 3) is None
    tables = LabelTables(3, {"unknown": 0, "mei": 1}, {"unknown": 0})
    tables.write(tmp_path)
    assert make_models.tables_of(str(weights), 3) == tables
    assert make_models.tables_of(str(weights), 2) is None and make_models.tables_of("", 3) is None
    monkeypatch.setenv("SONGBLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_download", None)  # a publisher's tables are not where its weights are
    address = f"{fetch.REMOTE_PREFIX}jukebox/models/1b_lyrics/prior_level_2.pth.tar"
    assert make_models.tables_of(address, 3) is None
    tables.write(fetch.target_of(address).parent)
    assert make_models.tables_of(address, 3) == tables
