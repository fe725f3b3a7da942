"""The registry, the defaults and the training command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import hparams
from songbloom.errors import UserError
from songbloom.hyperparams import Hyperparams
from tests import programs

# Number of overrides of each published set, and values of those that no golden file merges.
PUBLISHED_SETS = {
    **{"teeny": 0, "easy": 1, "vqvae": 18, "upsampler_level_0": 22, "upsampler_level_1": 23, "prior_5b": 22},
    **{"prior_5b_lyrics": 30, "prior_1b_lyrics": 24, "small_vqvae": 15, "small_prior": 8, "small_labelled_prior": 15},
    **{"small_single_enc_dec_prior": 20, "small_sep_enc_dec_prior": 26, "small_upsampler": 13},
    **{"all_fp16": 4, "cpu_ema": 4},
}
AZURE = "https://openaipublic.azureedge.net/jukebox/models"
PUBLISHED_VALUES: dict[str, dict[str, Any]] = {
    "upsampler_level_0": {"level": 0, "restore_prior": f"{AZURE}/5b/prior_level_0.pth.tar", "cond_width": 1024},
    "prior_5b": {"restore_prior": f"{AZURE}/5b/prior_level_2.pth.tar", "n_tokens": 0, "min_duration": 60.0},
    "prior_5b_lyrics": {
        **{"prior_depth": 79, "attn_order": 10, "prime_width": 1280, "prime_depth": 18, "prime_heads": 4},
        **{"n_tokens": 512, "prime_blocks": 32, "prime_init_scale": 0.7, "min_duration": 23.8, "alignment_head": 2},
    },
    "small_labelled_prior": {"y_bins": (10, 100), "t_bins": 64, "prior_depth": 48, "max_bow_genre_size": 1},
    "small_single_enc_dec_prior": {"n_ctx": 6144, "attn_order": 12, "single_enc_dec": True, "n_tokens": 384},
    "small_sep_enc_dec_prior": {"prior_depth": 50, "attn_order": 8, "prime_width": 256, "prime_depth": 9, "heads": 2},
    "small_upsampler": {"cond_width": 512, "cond_depth": 16, "cond_dilation_growth_rate": 3, "cond_dilation_cycle": 8},
}
PUBLISHED_COMMANDS = [
    "--hps=small_vqvae --name=small_vqvae --sample_length=262144 --bs=4 --audio_files_dir=songs --labels=False --train "
    "--aug_shift --aug_blend",
    "--hps=small_vqvae,small_prior,all_fp16,cpu_ema --name=small_prior --sample_length=2097152 --bs=4 "
    "--audio_files_dir=songs --labels=False --train --test --aug_shift --aug_blend --prior --levels=2 --level=1 "
    "--weight_decay=0.01 --save_iters=1000 --restore_vqvae=logs/small_vqvae/checkpoint_latest.pth.tar",
    "--hps=small_vqvae,small_upsampler,all_fp16,cpu_ema --name=small_upsampler --sample_length=262144 --bs=4 "
    "--audio_files_dir=songs --labels=False --train --test --aug_shift --aug_blend --prior --levels=2 --level=0 "
    "--weight_decay=0.01 --save_iters=1000 --restore_vqvae=logs/small_vqvae/checkpoint_latest.pth.tar",
    "--hps=vqvae,prior_1b_lyrics,all_fp16,cpu_ema --name=finetuned --sample_length=1048576 --bs=1 --aug_shift "
    "--aug_blend --audio_files_dir=songs --labels=True --train --test --prior --levels=3 --level=2 "
    "--weight_decay=0.01 --save_iters=1000 --lr_use_linear_decay --lr_start_linear_decay=1000 --lr_decay=500",
]
RUN = ["--name=x", "--train"]
PRIOR_RUN = [*RUN, "--prior", "--labels=False", "--restore_vqvae=x.pth.tar"]
WORDS_RUN = [*PRIOR_RUN, "--labels", "--max_duration=300", "--use_tokens", "--n_tokens=64", "--prior_depth=4"]


def test_jukebox_has_198_keys_and_ours_are_apart() -> None:
    jukebox = {key for one in hparams.JUKEBOX_GROUPS for key in one.knobs}
    ours = {key for one in hparams.OUR_GROUPS for key in one.knobs}
    assert len(jukebox) == 198
    assert not jukebox & ours
    assert set(hparams.KNOBS) == jukebox | ours
    assert sum(map(len, hparams.DEFAULTS.values())) == len(hparams.KNOBS)


@pytest.mark.parametrize("key", hparams.KNOBS)
def test_every_knob_says_what_it_is(key: str) -> None:
    knob = hparams.KNOBS[key]
    assert len(knob.meaning) >= 4
    assert "\n" not in knob.help_line()


@pytest.mark.parametrize("name", PUBLISHED_SETS)
def test_published_sets(name: str) -> None:
    assert len(hparams.HPARAMS_REGISTRY[name]) == PUBLISHED_SETS[name]
    values = PUBLISHED_VALUES.get(name, {})
    assert {key: hparams.HPARAMS_REGISTRY[name][key] for key in values} == values


@pytest.mark.parametrize("name", ["labels", "labels_v3", "upsamplers"])
def test_parts_of_sets_cannot_be_named(name: str) -> None:
    assert isinstance(getattr(hparams, name), Hyperparams)
    with pytest.raises(UserError, match=f"no set of hyperparameters is named '{name}'"):
        hparams.setup_hparams(name)


@pytest.mark.parametrize("name", hparams.HPARAMS_REGISTRY)
def test_every_set_passes_its_own_check(name: str) -> None:
    hps = hparams.setup_hparams(name)
    assert all(hps.sources[key] == f"set {name!r}" for key in hparams.HPARAMS_REGISTRY[name])


def test_a_set_that_a_person_registers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hparams.HPARAMS_REGISTRY, "mine", Hyperparams(sr=32000))
    assert hparams.setup_hparams("small_vqvae,mine").sr == 32000


@pytest.mark.parametrize("command", PUBLISHED_COMMANDS)
def test_published_commands_are_understood(command: str) -> None:
    asked = hparams.training_command(command.split())
    assert asked.text == ""
    assert asked.notices == []
    assert asked.hps.sources["name"] == "command line"
    assert asked.hps.train is True


@pytest.mark.parametrize("family", ["demo", "tiny"])
def test_our_own_families_fit_together(family: str) -> None:
    hparams.training_command([f"--hps={family}_vqvae", *RUN])
    for part, level in (("prior", 1), ("upsampler", 0)):
        hps = hparams.training_command([f"--hps={family}_vqvae,{family}_{part}", "--prior", *RUN]).hps
        downsamples = [stride**down for stride, down in zip(hps.strides_t, hps.downs_t, strict=True)]
        hop = downsamples[0] if level == 0 else downsamples[0] * downsamples[1]
        assert (hps.level, hps.labels) == (level, False)
        assert hps.sample_length == hps.n_ctx * hop
        assert hps.sample_length % (downsamples[0] * downsamples[1]) == 0
        assert hps.n_ctx % hps.blocks == 0


def test_help_and_print_hps() -> None:
    text = hparams.training_command(["--help"]).text
    for key, knob in hparams.KNOBS.items():
        assert f"--{key}={knob.default!r}" in text
        assert knob.meaning in text
    assert "demo_vqvae" in text
    text = hparams.training_command(["--hps=easy,demo_vqvae", "--print_hps", "--bs=3"]).text
    assert re.search(r"^  sr +=? *= 16000 +set 'demo_vqvae'$", text, re.MULTILINE)
    assert re.search(r"^  bs +=? *= 3 +command line$", text, re.MULTILINE)


def test_options_that_count_only_beside_another_are_noticed() -> None:
    told = hparams.training_command([*RUN, "--lora-rank=8", "--wandb-mode=offline"]).notices
    assert told == [
        "note: --lora_rank=8 does nothing without --lora: all weights are trained",
        "note: --wandb_mode='offline' does nothing without --wandb: TensorBoard alone is written",
    ]
    assert hparams.training_command([*RUN, "--no-wandb", "--wandb-mode=offline"]).notices == []
    assert hparams.training_command([*RUN, "--wandb", "--wandb-mode=offline"]).notices == []


def test_an_ignored_key_is_noticed() -> None:
    asked = hparams.training_command([*RUN, "--temp_top=0.5", "--debug_iters=100"])
    assert [line.split()[1] for line in asked.notices] == ["temp_top=0.5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do: give --train"),
        (["--train"], "the run needs a name"),
        (["--hps=smal_vqvae", *RUN], r"'smal_vqvae' \(did you mean 'small_vqvae'\?\)"),
        ([*RUN, "--sample_lenght=3"], r"--sample_lenght \(did you mean '--sample_length'\?\)"),
        ([*RUN, "--precision=fp61"], r"not 'fp61' \(did you mean 'fp16'\?\)"),
        ([*RUN, "--levels=3"], r"levels=3 but downs_t=\(1, 1\) has 2: give one value a level"),
        ([*RUN, "--hvqvae_multipliers=2,1,1"], "hvqvae_multipliers"),
        ([*RUN, "--multispec_loss_n_fft=512"], "equally many values"),
        ([*RUN, "--lora"], "--lora needs the weights that are adapted"),
        ([*RUN, "--lr_use_linear_decay", "--lr_use_cosine_decay"], "exclude each other"),
        ([*RUN, "--vq", "--prior"], "--vq trains the codec"),
        ([*PRIOR_RUN, "--labels", "--y_bins=3"], "labels=True needs y_bins.*--y_bins=0"),
        ([*PRIOR_RUN, "--labels", "--level=1"], "needs the length of the longest song: give --max_duration"),
        ([*PRIOR_RUN, "--get_metadata=mine"], "METADATA_HOOKS of hparams.py has no such name"),
        ([*PRIOR_RUN, "--get_metadata=no_such_module:f"], "'no_such_module' cannot be imported"),
        ([*PRIOR_RUN, "--lyrics_english=spoken"], "lyrics_english is one of 'katakana', 'letters', 'keep'"),
        ([*PRIOR_RUN, "--level=2"], "level=2 does not exist with levels=2: the top is 1"),
        ([*PRIOR_RUN, "--restore_vqvae="], "--prior needs a trained codec"),
        ([*WORDS_RUN, "--attn_order=2"], r"attn_order=2 reads the words: .* 6 \(from prior_depth=4\), 7 \(.*=16\), 8 "),
        ([*WORDS_RUN, "--attn_order=10", "--prior_depth=18"], r"none of prior_depth=18 .* 10 \(from prior_depth=19\)"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        hparams.training_command(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--attn_order=6"],
        ["--attn_order=10", "--prior_depth=19"],
        ["--attn_order=2", "--single_enc_dec"],
        ["--attn_order=2", "--use_tokens=False"],
    ],
)
def test_a_prior_that_reads_its_words_or_is_given_none_is_trained(arguments: list[str]) -> None:
    asked = hparams.training_command([*WORDS_RUN, *arguments])
    assert f"--attn_order={asked.hps.attn_order}" in arguments


def test_examples_of_the_help_are_commands() -> None:
    told = hparams.training_command(["--help"]).text.partition("[command]")[0].replace("\\\n", " ")
    examples = [line for line in told.splitlines() if line.startswith("  python train.py ")]
    assert [hparams.training_command(shlex.split(line)[2:]).hps.prior for line in examples] == [False, True]


def test_the_reference_page_is_up_to_date() -> None:
    page = hparams.REFERENCE_PAGE
    assert page.read_text(encoding="utf-8") == hparams.reference_page(), "write it again: python hparams.py"


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["-h"], 0), (["--hepl"], 2), (["--x", "--help"], 0)])
def test_help_of_the_page_s_writer(words: list[str], status: int, tmp_path: Path) -> None:
    before = hparams.REFERENCE_PAGE.stat().st_mtime_ns
    done = programs.run(tmp_path, str(programs.ROOT / "hparams.py"), *words)
    told, other = (done.stdout, done.stderr)[:: -1 if status else 1]
    assert done.returncode == status and not other and hparams.REFERENCE_PAGE.stat().st_mtime_ns == before
    if status:
        assert told.count("\n") == 1 and "--hepl" in told and "--help" in told
    else:
        assert told.startswith("usage: python hparams.py\n") and "train.py --help" in told


@pytest.mark.parametrize("option", ["--beta1=1", "--beta2=1", "--mu=1.5", "--l_mu=1", "--attn_dropout=1"])
def test_what_must_stay_below_one(option: str) -> None:
    with pytest.raises(UserError, match="must be below 1"):
        hparams.training_command(["--hps=tiny_vqvae", "--name=x", "--train", option])
