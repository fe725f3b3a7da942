"""Every named configuration; add yours here.

Register a set of your own below ("yours") and name it on the command line:

    HPARAMS_REGISTRY["my_vqvae"] = Hyperparams(sr=32000, levels=2, downs_t=(4, 3), strides_t=(2, 2), width=48)
    $ python train.py --hps=my_vqvae,easy --name=first_try …        (a later set wins over an earlier one)

Every key of a set must be a knob. The knobs, with their meanings and defaults, stand in ``songbloom/knobs/``: those of
the Jukebox release in ``jukebox.py``, all others in ``ours.py``, where a new one is added. The sets of that release are
beside them in ``jukebox_sets.py``, and those of the tests in ``tiny_sets.py``.
"""

from __future__ import annotations

import songbloom  # noqa: F401  # isort: skip  # first of all: what it sets must be there when torch is loaded
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from songbloom.errors import UserError, did_you_mean
from songbloom.hyperparams import COMMAND_LINE, Hyperparams, Knobs
from songbloom.knobs.command_line import TRAIN_COMMAND, renamed, with_our_values
from songbloom.knobs.jukebox import JUKEBOX_GROUPS
from songbloom.knobs.jukebox_sets import JUKEBOX_SETS
from songbloom.knobs.jukebox_sets import labels as labels  # parts of sets, with the release's names
from songbloom.knobs.jukebox_sets import labels_v3 as labels_v3
from songbloom.knobs.jukebox_sets import upsamplers as upsamplers
from songbloom.knobs.ours import OUR_GROUPS
from songbloom.knobs.tiny_sets import TINY_SETS
from songbloom.training import checks

if TYPE_CHECKING:
    from songbloom.data.metadata import Hook

KNOBS = Knobs(*JUKEBOX_GROUPS, *OUR_GROUPS)
DEFAULTS: dict[str, Hyperparams] = KNOBS.defaults()

# Functions that know a song's metadata, for --get_metadata: name → function(path, test) → (artist, genre, lyrics). Add
# yours here or at the end of this file, METADATA_HOOKS["mine"] = my_function, or name it on the command line.
METADATA_HOOKS: dict[str, Hook] = {}


def metadata_hook(name: str) -> Hook | None:
    """The function that ``--get_metadata`` names; None for an empty name.

    Raises:
        UserError: there is none of this name.
    """
    if not name:
        return None
    if name in METADATA_HOOKS or ":" not in name:
        if name not in METADATA_HOOKS:
            near = did_you_mean(name, METADATA_HOOKS)
            raise UserError(
                f"--get_metadata={name}: METADATA_HOOKS of hparams.py has no such name{near}; add it there, or give "
                "module:function"
            )
        return METADATA_HOOKS[name]
    from songbloom.data.metadata import import_hook

    return import_hook(name)


# --- named sets: those that come with the program -------------------------------------------------------------------

HPARAMS_REGISTRY: dict[str, Hyperparams] = dict(JUKEBOX_SETS)

# The demo's hierarchy, small enough to learn something of sung Japanese within minutes on two CPU cores: 16 kHz, hops
# of 64 and 128 samples. Each prior's context: 8.2 s at the top, 4.1 s below.
HPARAMS_REGISTRY["demo_vqvae"] = Hyperparams(
    sr=16000,
    levels=2,
    downs_t=(2, 1),
    strides_t=(8, 2),  # 64 and 128 samples a code: 250 and 125 codes a second
    emb_width=64,
    l_bins=256,
    commit=0.02,
    loss_fn="l2",
    width=48,
    depth=3,
    dilation_growth_rate=3,
    sample_length=4096,  # many short pieces of many songs teach more in a minute than few long ones
    bs=8,
    lr=0.002,
    lr_warmup=20.0,
    mu=0.99,  # some hundreds of steps are all there is: a longer average would still be near the start
    labels=False,
    aug_shift=True,
    aug_blend=True,
)
_demo_transformer = Hyperparams(
    labels=False,
    heads=2,
    attn_order=2,
    # In three minutes a small model that sees everything many times learns more than a large one that doesn't.
    prior_width=128,
    prior_depth=4,
    n_ctx=1024,
    blocks=32,
    init_scale=1.0,
    lr=0.005,
    lr_warmup=50.0,
    mu=0.99,
    aug_shift=True,
    aug_blend=True,
    bs=4,
    restore_vqvae="logs/demo_vqvae/checkpoint_latest.pth.tar",
)
HPARAMS_REGISTRY["demo_prior"] = Hyperparams(level=1, sample_length=1024 * 128, **_demo_transformer)
HPARAMS_REGISTRY["demo_upsampler"] = Hyperparams(
    level=0,
    sample_length=1024 * 64,
    cond_width=64,
    cond_depth=4,
    cond_dilation_growth_rate=3,
    **_demo_transformer,
)

# A lyrics prior for sung Japanese beside demo_prior, of its size: in a window of 8.2 s up to 50 phonemes are sung.
HPARAMS_REGISTRY["demo_ja_prior"] = Hyperparams(
    HPARAMS_REGISTRY["demo_prior"]
    | Hyperparams(
        labels=True,
        labels_v3=True,
        max_bow_genre_size=1,
        min_duration=9.0,
        max_duration=120.0,
        t_bins=64,
        use_tokens=True,
        n_tokens=64,
        lyrics_vocab="ja_phonemes",
        attn_order=6,  # every fourth layer reads the words
        prior_depth=4,
        prime_width=128,
        prime_depth=2,
        prime_heads=2,
        prime_loss_fraction=0.4,
        alignment_loss_fraction=0.3,  # the corpus knows when its words are sung
    )
)

# The shortest way to a head that follows the words: one level of 31 codes a second, windows of 4 s with some 15
# phonemes. It learns one song of the sung corpus within some hundred steps (docs/alignment.md).
HPARAMS_REGISTRY["align_vqvae"] = Hyperparams(
    HPARAMS_REGISTRY["demo_vqvae"] | Hyperparams(levels=1, downs_t=(3,), strides_t=(8,), sample_length=16384)
)
HPARAMS_REGISTRY["align_prior"] = Hyperparams(
    HPARAMS_REGISTRY["demo_ja_prior"]
    | Hyperparams(
        level=0,
        n_ctx=128,
        sample_length=128 * 512,
        blocks=16,
        n_tokens=24,
        t_bins=1,  # told where in the song it is, it would learn that by heart and read nothing
        lr=0.002,
        bs=16,
        restore_vqvae="logs/align_vqvae/checkpoint_latest.pth.tar",
    )
)

# The published stereo VAE (48 kHz, 25 latents of 64 numbers a second), trained as its json tells. Its weights may be
# used for academic purposes only and are not downloaded: give --restore_vae=FILE, or train it anew.
HPARAMS_REGISTRY["songbloom_vae"] = Hyperparams(
    vae=True,
    sr=48000,
    sample_length=34 * 1920,  # 1.36 s
    labels=False,
    vae_adversarial=0.1,
    vae_discriminator_lr=3e-4,
    lr=1.5e-4,
    beta1=0.8,
    beta2=0.99,
    weight_decay=0.001,
)
# A stereo VAE of the same latent rate for a machine without a GPU: nearly all of its weights work at low rates, where
# they cost little. Without a discriminator it is the waveform's loss that tells phases right from wrong.
HPARAMS_REGISTRY["small_vae"] = Hyperparams(
    vae=True,
    sr=48000,
    sample_length=6 * 1920,  # 0.24 s: many short pieces of many songs teach more in a minute than few long ones
    bs=4,
    labels=False,
    vae_width=4,
    vae_multipliers=(24, 64),  # few layers learn phases where many stay silent (docs/vae.md)
    vae_strides=(48, 40),
    vae_dilations=(1,),
    vae_spectral_n_fft=(2048, 512, 128),
    vae_spectral_floor=0.05,
    vae_waveform=30.0,
    vae_kl=1e-4,
    lr=0.001,
    lr_warmup=30.0,
    beta2=0.99,  # gradients of spectra come in bursts
    mu=0.99,  # some hundreds of steps are all there is: a longer average would still be near the start
    aug_shift=True,
)

# The published SongBloom models (spec: the released yaml files). Names after hf:// are files of the hub; a local folder
# can stand in their place. 48 kHz stereo, 25 frames a second, latents of the published VAE.
HPARAMS_REGISTRY["songbloom_150s"] = Hyperparams(
    HPARAMS_REGISTRY["songbloom_vae"]
    | Hyperparams(
        vae=False,
        songbloom=True,
        sample_length=0,
        sample_length_in_seconds=150,
        l_bins=16384,
        prior_width=1536,
        heads=24,
        prior_depth=36,
        dit_depth=12,
        m_mlp=4.0,
        c_res=1,
        lyrics_vocab="songbloom",
        lyrics_english="arpabet",
        restore_prior="hf://CypressYang/SongBloom/songbloom_full_150s.pt",
        sketch_mode="precomputed",  # the codebook that these models were trained with was never published
        lr=1e-4,
        lr_warmup=100.0,
        lr_use_cosine_decay=True,
        eval_iters=500,
        sample_iters=500,  # adapters are trained for a few thousand steps: hear them on the way
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.01,
        bs=1,
    )
)
HPARAMS_REGISTRY["songbloom_150s_dpo"] = Hyperparams(
    HPARAMS_REGISTRY["songbloom_150s"]
    | Hyperparams(restore_prior="hf://CypressYang/SongBloom/songbloom_full_150s_dpo.pt")
)
HPARAMS_REGISTRY["songbloom_240s"] = Hyperparams(
    HPARAMS_REGISTRY["songbloom_150s"]
    | Hyperparams(
        sample_length_in_seconds=240,
        rotary_base=40000.0,
        lyric_tokens=1000,
        seconds_per_tag=5.0,
        restore_prior="hf://CypressYang/SongBloom_long/songbloom_full_240s.pt",
    )
)
# A SongBloom of one's own, codec and codebook included: one GPU, or a patient laptop.
HPARAMS_REGISTRY["small_songbloom"] = Hyperparams(
    HPARAMS_REGISTRY["small_vae"]
    | Hyperparams(
        vae=False,
        songbloom=True,
        sample_length=0,
        sample_length_in_seconds=30,
        l_bins=1024,
        prior_width=512,
        heads=8,
        prior_depth=8,
        dit_depth=4,
        m_mlp=4.0,
        c_res=1,
        lyric_tokens=400,
        lyrics_vocab="songbloom_ja",
        lyrics_english="arpabet",
        segment_strategy="random",
        lr=3e-4,
        lr_warmup=200.0,
        lr_use_cosine_decay=True,
        eval_iters=500,
        sample_iters=500,
        mu=0.999,
        weight_decay=0.01,
        beta2=0.999,
        restore_vae="logs/small_vae/checkpoint_latest.pth.tar",
        restore_sketch="logs/small_sketch/sketch_codebook.pt",
    )
)
# Codebooks of sketches. A code should be used some twenty times in what the moving averages remember, which is
# bs * frames / (1 - sketch_decay) frames.
HPARAMS_REGISTRY["sketch_vq"] = Hyperparams(
    sketch=True,
    sr=24000,
    sample_length_in_seconds=10,
    bs=16,
    labels=False,
    ema=False,
    aug_shift=True,
    lr=0.003,
    lr_warmup=20.0,
    sketch_codes=16384,
    sketch_start_rows=65536,  # 44 minutes of song
)
HPARAMS_REGISTRY["small_sketch"] = Hyperparams(
    HPARAMS_REGISTRY["sketch_vq"] | Hyperparams(sketch_codes=1024, sketch_start_rows=16384, bs=8)
)
HPARAMS_REGISTRY["demo_sketch"] = Hyperparams(
    HPARAMS_REGISTRY["sketch_vq"]
    | Hyperparams(sketch_codes=256, sketch_start_rows=12800, sketch_decoder=64, bs=8, sample_length_in_seconds=4)
)
# The demo's: minutes on two CPU cores, after a VAE and a codebook that take minutes too. Segments of 7.7 s, 12 patches.
HPARAMS_REGISTRY["demo_vae"] = Hyperparams(HPARAMS_REGISTRY["small_vae"] | Hyperparams(vae_latent_dim=32))
HPARAMS_REGISTRY["demo_songbloom"] = Hyperparams(
    HPARAMS_REGISTRY["demo_vae"]
    | Hyperparams(
        vae=False,
        songbloom=True,
        sample_length=192 * 1920,
        l_bins=256,
        prior_width=128,
        heads=2,
        prior_depth=4,
        dit_depth=2,
        m_mlp=4.0,
        time_features=64,
        lyric_tokens=96,
        prompt_frames=50,
        lyrics_vocab="songbloom_ja",
        lyrics_english="arpabet",
        segment_strategy="random",
        lr=0.002,
        lr_warmup=50.0,
        mu=0.99,
        bs=4,
        beta2=0.999,
        restore_vae="logs/demo_vae/checkpoint_latest.pth.tar",
        restore_sketch="logs/demo_sketch/sketch_codebook.pt",
    )
)
# A singer alone, 12 kHz mono, in lines of some seconds: as much as can be learned to be understood on one core in an
# hour and a half (docs/songbloom_proof.md). Its VAE is shallow: a layer of 4 ms pieces and one of 40 ms are enough for
# so narrow a sound, and after some minutes are far ahead of the four layers of the other small sets.
HPARAMS_REGISTRY["voice_vae"] = Hyperparams(
    HPARAMS_REGISTRY["small_vae"]
    | Hyperparams(
        sr=12000,
        sample_length=16 * 480,
        bs=2,
        nworkers=0,
        vae_channels=1,
        vae_width=4,
        vae_multipliers=(24, 64),
        vae_strides=(24, 20),
        vae_dilations=(1,),
        vae_latent_dim=96,
        vae_spectral_n_fft=(1024, 512, 256, 128),
        vae_spectral_floor=0.05,
        vae_waveform=30.0,
        lr=0.001,
        lr_warmup=100.0,
        lr_decay=13000,
        lr_use_cosine_decay=True,
        beta2=0.99,
        mu=0.998,
    )
)
HPARAMS_REGISTRY["voice_sketch"] = Hyperparams(
    HPARAMS_REGISTRY["demo_sketch"]
    | Hyperparams(sr=12000, sketch_codes=128, sketch_start_rows=4000, sample_length_in_seconds=2, nworkers=0)
)
HPARAMS_REGISTRY["voice_songbloom"] = Hyperparams(
    HPARAMS_REGISTRY["voice_vae"]
    | Hyperparams(
        vae=False,
        songbloom=True,
        sample_length=160 * 480,  # 6.4 s, 10 patches
        l_bins=128,
        prior_width=192,
        heads=3,
        prior_depth=3,
        dit_depth=4,
        m_mlp=4.0,
        time_features=64,
        lyric_tokens=48,
        prompt_frames=25,
        lyrics_vocab="songbloom_ja",
        lyrics_english="arpabet",
        lr=0.001,
        lr_warmup=50.0,
        lr_decay=1000,
        beta2=0.999,
        mu=0.98,
        bs=6,
        restore_vae="logs/voice_vae/checkpoint_latest.pth.tar",
        restore_sketch="logs/voice_sketch/sketch_codebook.pt",
    )
)

HPARAMS_REGISTRY |= TINY_SETS

# --- named sets: yours ----------------------------------------------------------------------------------------------

# --- merging and the training command -------------------------------------------------------------------------------


def setup_hparams(
    names: str | Iterable[str], overrides: Mapping[str, Any] | None = None, source: str = COMMAND_LINE
) -> Hyperparams:
    """Defaults, then the named sets in order, then ``overrides``; a later value wins.

    Args:
        names: names in ``HPARAMS_REGISTRY``, comma separated or a sequence.
        overrides: key → value, checked as the sets are.
        source: what ``sources`` of the result says of the overrides.

    Raises:
        UserError: an unknown name or key (with the nearest match), or a value of the wrong type.
    """
    return KNOBS.merge(HPARAMS_REGISTRY, names, overrides, source)


def check(hps: Mapping[str, Any]) -> None:
    """Whether the values of a merged configuration fit each other, as far as one can tell without data.

    Raises:
        UserError: names the keys that do not fit and what to change.
    """
    checks.check(hps)
    if hps["prior"] and not hps["songbloom"]:
        metadata_hook(hps["get_metadata"])


@dataclass(frozen=True)
class Command:
    """What a command line asks for.

    Attributes:
        hps: the merged hyperparameters.
        text: if not empty, print this and stop (``--help``, ``--print_hps``).
        notices: lines to print before work begins.
    """

    hps: Hyperparams
    text: str = ""
    notices: list[str] = field(default_factory=list)


def training_command(arguments: Sequence[str]) -> Command:
    """``train.py``'s command line (without the program's name), merged and checked.

    Raises:
        UserError: whatever a person mistyped, in one line.
    """
    knobs = Knobs(TRAIN_COMMAND, *KNOBS.groups)
    options = knobs.parse(with_our_values(renamed(arguments)))
    if options.get("help"):
        usage = (
            "usage: python train.py --hps=NAMES --name=NAME [--key=value | --key value | --flag | --no-flag] …\n\n"
            "Trains a codec, then priors on its codes; the same command goes on where it was stopped. An example\n"
            "(docs/training.md has more):\n"
            "  python train.py --hps=small_vqvae --name=small_vqvae --audio_files_dir=songs --train\n"
            "  python train.py --hps=small_vqvae,small_prior --name=small_prior --audio_files_dir=songs --prior \\\n"
            "      --restore_vqvae=logs/small_vqvae/checkpoint_latest.pth.tar --labels=False --train\n"
            "Several GPUs or machines: mpiexec -n 4 python train.py … (docs/launch.md)"
        )
        return Command(setup_hparams(""), knobs.help(usage, "sets: " + ", ".join(HPARAMS_REGISTRY)))
    told = {key: options.pop(key, knob.default) for key, knob in TRAIN_COMMAND.knobs.items()}
    hps = setup_hparams(told["hps"], options)
    checks.settle_lora(hps)
    if told["print_hps"]:
        return Command(hps, f"hps = {told['hps']}\n{KNOBS.explain(hps)}")
    check(hps)
    if not (hps.train or hps.test or hps.recover_from or hps.recover_tokens):
        raise UserError("nothing to do: give --train, --test or both (or --help)")
    if not hps.name:
        raise UserError("the run needs a name: give --name=NAME; checkpoints and logs go to logs/NAME")
    return Command(hps, notices=[*KNOBS.notices(hps), *checks.without_effect(hps)])


REFERENCE_PAGE = Path(__file__).parent / "docs" / "hyperparameters.md"


def reference_page() -> str:
    """The text of ``docs/hyperparameters.md``; ``python hparams.py`` writes it."""
    return KNOBS.reference_page(
        "# Hyperparameters\n\n"
        "Written by `python hparams.py` from `songbloom/knobs/`, where every knob is defined; named sets stand in "
        "`hparams.py`.\nGive a value as `--key=value`; `train.py --hps=NAMES --print_hps` shows the merged values and "
        "where each came from."
    )


def main(arguments: Sequence[str]) -> int:
    """Write the reference page, unless help is asked for."""
    if {"--help", "-h"} & set(arguments):
        print(
            f"usage: python hparams.py\n\nWrites {REFERENCE_PAGE}, every key with its meaning, from songbloom/knobs/."
        )
        print("It takes no options: python train.py --help tells every key here, and --print_hps merged values.")
        return 0
    if arguments:
        print(f"error: python hparams.py takes no options, and was given {arguments[0]!r}; see --help", file=sys.stderr)
        return 2
    REFERENCE_PAGE.write_text(reference_page(), encoding="utf-8")
    print(f"wrote {REFERENCE_PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
