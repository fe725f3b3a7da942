"""Adapter files: there and back, read by peft, written by peft, laid over models, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from songbloom.errors import UserError
from songbloom.lora import files
from songbloom.lora.applying import Scaled, apply, check, level_of, parse, read_all, vocabulary_of
from songbloom.lora.places import linears, published_keys
from songbloom.lora.training import LoRA, LoRASettings, begin_from
from songbloom.lora.words import train_words
from songbloom.lyrics.phoneme_vocabulary import named
from songbloom.transformer.lora import bake, merged, rows_of
from tests.lora.models import adapted, codes_for, jukebox, low_ranks, songbloom, songbloom_loss, stir

MIXED = ("language_model.layers.0.query_key_value", "v_proj", "diffusion.*.query_key_value.key", "gate_up", "o_proj")
CASES = [
    (jukebox, ("q_proj", "v_proj", "mlp.up")),
    (jukebox, ("all-linear",)),
    (songbloom, MIXED),
    (songbloom, ("all-linear",)),
]


def changed(model: Any, targets: tuple[str, ...], **values: Any) -> LoRA:
    """A model with adapters that do something."""
    lora = LoRA(model, LoRASettings(rank=3, alpha=5.0, dropout=0.0, targets=targets, **values))
    stir(model)
    return lora


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_a_file_laid_over_the_base_gives_the_merged_weights(
    make: Any, targets: tuple[str, ...], tmp_path: Path
) -> None:
    trained = make()
    changed(trained, targets).export(tmp_path, 5, numbered=False)
    bake(trained)
    base = make()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapter = files.read(tmp_path)
    assert adapter.about["step"] == 5
    apply(base, [Scaled(adapter, 1.0)])
    for name, tensor in base.state_dict().items():
        torch.testing.assert_close(tensor, trained.state_dict()[name], rtol=1e-5, atol=1e-6)
    half = make()
    apply(half, [Scaled(adapter, 0.5)])
    for name, tensor in half.state_dict().items():
        expected = before[name] + (base.state_dict()[name] - before[name]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_several_adapters_add_up(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        model = jukebox()
        lora = changed(model, ("q_proj", "v_proj"))
        stir(model, seed)
        lora.export(tmp_path / name, 1, numbered=False)
    base, both = jukebox(), jukebox()
    wanted = read_all(f"{tmp_path}/a:0.5,{tmp_path}/b:-2")
    assert [each.scale for each in wanted] == [0.5, -2.0]
    apply(both, wanted)
    alone = [jukebox(), jukebox()]
    for model, each in zip(alone, wanted, strict=True):
        apply(model, [each])
    for name, tensor in both.state_dict().items():
        start = base.state_dict()[name]
        expected = start + sum(model.state_dict()[name] - start for model in alone)
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    assert wanted[0].adapter.digest != wanted[1].adapter.digest


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_training_goes_on_from_a_file(make: Any, targets: tuple[str, ...], tmp_path: Path) -> None:
    trained = make()
    changed(trained, targets).export(tmp_path, 1, numbered=False)
    again = make()
    LoRA(again, LoRASettings(rank=3, alpha=5.0, dropout=0.0, targets=targets))
    begin_from(again, files.read(tmp_path))
    for mine, theirs in zip(low_ranks(again), low_ranks(trained), strict=True):
        assert torch.equal(mine.A, theirs.A)
        torch.testing.assert_close(mine.B, theirs.B)
    other = make()
    LoRA(other, LoRASettings(rank=2, targets=targets))
    with pytest.raises(UserError, match="rank 2"):
        begin_from(other, files.read(tmp_path))


def test_all_that_was_trained_whole_comes_back(tmp_path: Path) -> None:
    for make in (jukebox, songbloom):
        trained: Any = make()
        lora = changed(trained, ("q_proj", "v_proj"), train_all=True)
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn(parameter.shape))
        lora.export(tmp_path / make.__name__, 1, numbered=False)
        bake(trained)
        base: Any = make()
        apply(base, read_all(str(tmp_path / make.__name__)))
        for name, tensor in base.state_dict().items():
            torch.testing.assert_close(tensor, trained.state_dict()[name], rtol=1e-5, atol=1e-5)


def test_new_phonemes_start_from_near_ones_and_travel_with_the_file(tmp_path: Path) -> None:
    known, wanted = named("songbloom").symbols, named("songbloom_ja").symbols
    song = songbloom(lyric_vocabulary=len(known))
    table = song.lyrics.tokens.weight.detach().clone()
    base = files.model_digest(song)
    rows = train_words(song, known, wanted, learned=False)
    assert rows is not None and song.config.lyric_vocabulary == len(wanted)
    place = {symbol: index for index, symbol in enumerate(wanted)}
    values = dict(zip(rows.ids.tolist(), rows.values.detach(), strict=True))
    torch.testing.assert_close(values[place["kw"]], (table[place["k"]] + table[place["W"]]) / 2)
    torch.testing.assert_close(values[place["o"]], (table[place["o1"]] + table[place["OW1"]]) / 2)
    assert place["AA1"] not in values  # learned, so left alone
    assert place["[prechorus]"] in song.config.structure_tokens
    lora = LoRA(
        song,
        LoRASettings(rank=2, targets=("v_proj",)),
        about={"base": base, "vocabulary": list(wanted), "known_rows": len(known)},
    )
    assert rows.values.requires_grad
    with torch.no_grad():
        rows.values.add_(0.5)
    stir(song)
    lora.export(tmp_path, 1, numbered=False)
    with merged(song):
        trained = song.lyrics.tokens.weight.detach().clone()

    plain = songbloom(lyric_vocabulary=len(known))
    apply(plain, read_all(str(tmp_path)))
    assert plain.config.lyric_vocabulary == len(wanted) == len(plain.lyrics.tokens.weight)
    torch.testing.assert_close(plain.lyrics.tokens.weight, trained)
    torch.testing.assert_close(songbloom_loss(plain), songbloom_loss(song), rtol=1e-4, atol=1e-5)


def test_words_of_ones_own_model_are_learned_already() -> None:
    known, wanted = named("songbloom").symbols, named("songbloom_ja").symbols
    song = songbloom(lyric_vocabulary=len(known))
    rows = train_words(song, known, wanted, learned=True)
    assert rows is not None and rows.ids.tolist() == list(range(len(known), len(wanted)))
    assert train_words(songbloom(lyric_vocabulary=len(known)), known, known, learned=True) is None
    everything = train_words(songbloom(lyric_vocabulary=len(known)), known, wanted, "all", learned=True)
    assert everything is not None and len(everything.ids) == len(wanted)
    none = songbloom(lyric_vocabulary=len(known))
    assert train_words(none, known, wanted, "none", learned=True) is None
    assert none.lyrics.tokens.weight[-1].any() and rows_of(none.lyrics.tokens) is None


# ------------------------------------------------------------------------------------------------------------- peft


def published_tree(model: nn.Module) -> nn.Module:
    """A tree of plain linear layers with the published names and this model's weights."""
    tree = nn.Module()
    for name, linear in linears(model):
        for key, weight in published_keys(model, f"{name}.weight", linear.weight.detach()).items():
            *path, leaf, _ = key.split(".")
            parent = tree
            for word in path:
                if not hasattr(parent, word):
                    parent.add_module(word, nn.Module())
                parent = getattr(parent, word)
            weight = weight.t() if key.endswith(".w") else weight
            plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            plain.weight.data = weight.clone()
            parent.add_module(leaf, plain)
    return tree


@pytest.mark.parametrize(("make", "targets"), CASES)
def test_peft_reads_our_files(make: Any, targets: tuple[str, ...], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    trained = make()
    changed(trained, targets).export(tmp_path, 1, numbered=False)
    config = json.loads((tmp_path / files.FOLDER / files.CONFIG).read_text())
    config["fan_in_fan_out"] = False  # the tree is of nn.Linear
    (tmp_path / files.FOLDER / files.CONFIG).write_text(json.dumps(config))
    loaded = peft.PeftModel.from_pretrained(published_tree(make()), tmp_path / files.FOLDER).merge_and_unload()
    bake(trained)
    expected = dict(published_tree(trained).named_parameters())
    found = dict(loaded.named_parameters())
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_we_read_pefts_files(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    tree = published_tree(songbloom())
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj", "to_out"],
        rank_pattern={"to_out": 3},
        alpha_pattern={"to_out": 4},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(tree, config)
    model.save_pretrained(str(tmp_path))
    merged_tree = dict(model.merge_and_unload().named_parameters())
    song = songbloom()
    apply(song, read_all(str(tmp_path)))
    for name, tensor in published_tree(song).named_parameters():
        torch.testing.assert_close(tensor, merged_tree[name], rtol=1e-5, atol=1e-6)


def test_files_have_the_documented_format(tmp_path: Path) -> None:
    """What https://huggingface.co/docs/peft (LoRA, checkpoint format) asks for."""
    changed(songbloom(), ("q_proj", "v_proj")).export(tmp_path, 1, numbered=False)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 3, 5, "none")
    raw = (tmp_path / "adapter/adapter_model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    entry = header["base_model.model.ar_transformer.layers.1.self_attn.v_proj.lora_B.weight"]
    assert entry["dtype"] == "F32" and entry["shape"] == [32, 3]
    assert header["__metadata__"]["format"] == "pt"
    assert "ar_transformer.layers.1.self_attn.v_proj" in config["target_modules"]
    assert len(raw) < 20_000


# ---------------------------------------------------------------------------------------------------------- mistakes


def test_wrong_adapters_are_refused_in_one_line(tmp_path: Path) -> None:
    changed(jukebox(), ("mlp.up",)).export(tmp_path / "ours", 1, numbered=False)
    adapter = files.read(tmp_path / "ours")
    check(jukebox(), adapter)
    for model, words in (
        (jukebox(m_mlp=2.0), "and [64, 32] in this model"),
        (jukebox(prior_depth=2), "which this model has not"),
        (songbloom(), "which this model has not"),
        (jukebox(seed=3), "was trained on other weights"),
    ):
        with pytest.raises(UserError) as told:
            apply(model, [Scaled(adapter, 1.0)])
        assert words in str(told.value) and "\n" not in str(told.value)
    assert level_of(Scaled(adapter, 1.0), {1: jukebox()}) == 1
    with pytest.raises(UserError, match="trained for level 0"):
        level_of(Scaled(files.AdapterFile(Path("x"), "", {}, about={"level": 0}), 1.0), {1: jukebox()})


def test_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter is there"):
        files.read(tmp_path)
    changed(jukebox(), ("mlp.up",)).export(tmp_path, 1, numbered=False)
    folder = tmp_path / files.FOLDER
    good = (folder / files.CONFIG).read_text()
    for text, words in (
        ("{", "is no JSON"),
        (json.dumps({**json.loads(good), "use_dora": True}), "uses DoRA"),
        (json.dumps({**json.loads(good), "peft_type": "IA3"}), "is a IA3 adapter"),
        (json.dumps({**json.loads(good), "bias": "all"}), "trains biases"),
    ):
        (folder / files.CONFIG).write_text(text)
        with pytest.raises(UserError, match=words):
            files.read(tmp_path)
    (folder / files.CONFIG).write_text(good)
    raw = (folder / files.TENSORS).read_bytes()
    (folder / files.TENSORS).write_bytes(raw[:-10])
    with pytest.raises(UserError, match="cut short"):
        files.read(tmp_path)


@pytest.mark.parametrize("text", ["a:b", ":0.5", "a:nan", "a:inf"])
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--lora="):
        parse(text)


def test_paths_and_scales() -> None:
    assert parse("a/b:0.8, c ,d:-1") == [("a/b", 0.8), ("c", 1.0), ("d", -1.0)]


def test_codes_of_a_laid_over_model_are_those_of_the_trained_one(tmp_path: Path) -> None:
    trained = adapted(jukebox(), LoRASettings(rank=3, alpha=9.0, targets=("all-linear",)))
    files.save(tmp_path, trained)
    base = jukebox()
    apply(base, read_all(str(tmp_path)))
    settings: dict[str, Any] = {"temperature": 0, "sample_tokens": 24}
    assert torch.equal(base.sample(2, **settings), trained.sample(2, **settings))
    assert not torch.equal(base.sample(2, **settings), jukebox().sample(2, **settings))
    assert codes_for(base).shape == (2, 128)


def test_several_adapters_do_the_same_in_any_order(tmp_path: Path) -> None:
    """Rows of words and weights trained whole add up, too, and a smaller vocabulary may come after a larger one."""
    known, wanted = named("songbloom").symbols, named("songbloom_ja").symbols
    size, grown = len(known), len(wanted)

    def exported(name: str, symbols: tuple[str, ...], shift: float) -> Tensor:
        """The lyric table of a model that was trained with these symbols."""
        song = songbloom(lyric_vocabulary=size)
        base = files.model_digest(song)
        rows = train_words(song, known, symbols, "all")
        assert rows is not None
        about = {"base": base, "vocabulary": list(symbols), "known_rows": size}
        lora = LoRA(song, LoRASettings(rank=2, targets=("v_proj",), train_all=True), about=about)
        with torch.no_grad():
            rows.values.add_(shift)
            song.language_model.norm.weight.add_(shift)
        lora.export(tmp_path / name, 1, numbered=False)
        with merged(song):
            return song.lyrics.tokens.weight.detach().clone()

    tables = {"ja": exported("ja", wanted, 0.5), "plain": exported("plain", known, 0.25)}
    exported("more", wanted, 0.75)
    laid = []
    for names in (("ja", "plain:2", "more:3"), ("plain:2", "more:3", "ja")):
        song = songbloom(lyric_vocabulary=size)
        before = song.lyrics.tokens.weight.detach().clone()
        norm = song.language_model.norm.weight.detach().clone()
        apply(song, read_all(",".join(f"{tmp_path}/{name}" for name in names)))
        table = song.lyrics.tokens.weight.detach()
        torch.testing.assert_close(table[:size], before + 0.5 + 2 * 0.25 + 3 * 0.75)
        torch.testing.assert_close(table[size:grown], tables["ja"][size:] + 3 * 0.75)
        torch.testing.assert_close(song.language_model.norm.weight.detach(), norm + 0.5 + 2 * 0.25 + 3 * 0.75)
        laid.append(table)
    torch.testing.assert_close(*laid)


def test_training_goes_on_from_rows_and_from_what_was_trained_whole(tmp_path: Path) -> None:
    known, wanted = named("songbloom").symbols, named("songbloom_ja").symbols

    def fresh(rows: str, *, train_all: bool) -> tuple[Any, LoRA]:
        song = songbloom(lyric_vocabulary=len(known))
        about = {"base": files.model_digest(song), "vocabulary": list(wanted), "known_rows": len(known)}
        train_words(song, known, wanted, rows)
        return song, LoRA(song, LoRASettings(rank=2, targets=("v_proj",), train_all=train_all), about=about)

    song, lora = fresh("auto", train_all=True)
    with torch.no_grad():
        for parameter in (p for p in song.parameters() if p.requires_grad):
            parameter.add_(0.25)
    lora.export(tmp_path, 1, numbered=False)
    again, _ = fresh("auto", train_all=True)
    begin_from(again, files.read(tmp_path))
    with merged(song), merged(again):
        for name, tensor in again.state_dict().items():
            torch.testing.assert_close(tensor, song.state_dict()[name], msg=name)
    for rows, train_all, words in (("auto", False, "lora_train_all"), ("none", True, "lora_train_rows")):
        other, _ = fresh(rows, train_all=train_all)
        with pytest.raises(UserError, match=words):
            begin_from(other, files.read(tmp_path))
    laid = songbloom(lyric_vocabulary=len(known))
    apply(laid, read_all(str(tmp_path)))
    with merged(song):
        torch.testing.assert_close(laid.lyrics.tokens.weight, song.lyrics.tokens.weight)


def test_new_rows_that_are_not_trained_are_those_of_training(tmp_path: Path) -> None:
    known, wanted = named("songbloom").symbols, named("songbloom_ja").symbols
    song = songbloom(lyric_vocabulary=len(known))
    about = {"base": files.model_digest(song), "vocabulary": list(wanted), "known_rows": len(known)}
    assert train_words(song, known, wanted, "none") is None
    LoRA(song, LoRASettings(rank=2, targets=("v_proj",)), about=about).export(tmp_path, 1, numbered=False)
    laid = songbloom(lyric_vocabulary=len(known))
    apply(laid, read_all(str(tmp_path)))
    assert bool(laid.lyrics.tokens.weight[len(known) :].any())
    torch.testing.assert_close(laid.lyrics.tokens.weight, song.lyrics.tokens.weight)


def test_adapters_with_other_words_do_not_go_together(tmp_path: Path) -> None:
    for name, symbols in (("a", ("", "x", "y")), ("b", ("", "y", "x", "z"))):
        song = songbloom()
        LoRA(song, LoRASettings(rank=2, targets=("v_proj",)), about={"vocabulary": list(symbols)}).export(
            tmp_path / name, 1, numbered=False
        )
    with pytest.raises(UserError, match="different symbols"):
        vocabulary_of(read_all(f"{tmp_path}/a,{tmp_path}/b"))


def test_a_numbered_checkpoint_means_the_adapter_of_its_step(tmp_path: Path) -> None:
    trained = jukebox()
    lora = changed(trained, ("q_proj",))
    for step in (2, 4):
        lora.export(tmp_path, step, numbered=True)
        (tmp_path / f"checkpoint_step_{step}.pth.tar").write_bytes(b"x")
    assert files.read(tmp_path / "checkpoint_step_2.pth.tar").about["step"] == 2
    (tmp_path / "checkpoint_step_3.pth.tar").write_bytes(b"x")
    with pytest.raises(UserError, match="no adapter is there"):
        files.read(tmp_path / "checkpoint_step_3.pth.tar")


@pytest.mark.parametrize(("content", "what"), [(b"hello\n", "text"), (b"\0\1\2", "other data"), (b"", "an empty file")])
def test_a_file_that_is_no_adapter_is_told_what_to_give(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"no adapter, but {what}; give a folder with adapter_model.safetensors"):
        read_all(str(path))
