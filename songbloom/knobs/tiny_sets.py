"""Sets as small as every part can be and still be there: a run takes seconds on a CPU. For tests of real commands."""

from songbloom.hyperparams import Hyperparams

TINY_SETS: dict[str, Hyperparams] = {}

TINY_SETS["tiny_vqvae"] = Hyperparams(
    sr=8000,
    levels=2,
    downs_t=(3, 2),
    strides_t=(2, 2),
    emb_width=16,
    l_bins=32,
    commit=0.02,
    width=8,
    depth=2,
    dilation_growth_rate=3,
    sample_length=4096,
    bs=2,
    nworkers=0,
    labels=False,
)
TINY_SETS["tiny_vae"] = Hyperparams(
    vae=True,
    sr=8000,
    sample_length=2048,
    bs=2,
    nworkers=0,
    labels=False,
    vae_width=4,
    vae_multipliers=(1, 2),
    vae_strides=(4, 8),
    vae_dilations=(1, 3),
    vae_latent_dim=4,
    vae_spectral_n_fft=(256, 64),
    vae_waveform=1.0,
    vae_discriminator_width=4,
    vae_discriminator_n_fft=(256, 64),
    lr=0.002,
)
# Latents and sketch have 25 frames a second, so its VAE makes 320 samples one.
TINY_SETS["tiny_songbloom_vae"] = Hyperparams(
    TINY_SETS["tiny_vae"]
    | Hyperparams(sample_length=4 * 320, vae_multipliers=(1, 2, 2), vae_strides=(4, 8, 10), vae_dilations=(1,))
)
TINY_SETS["tiny_sketch"] = Hyperparams(
    sketch=True,
    sr=8000,
    sample_length_in_seconds=1,
    bs=2,
    nworkers=0,
    labels=False,
    ema=False,
    lr=0.003,
    lr_warmup=0.0,
    sketch_codes=16,
    sketch_start_rows=100,
    sketch_start_step=0,
    sketch_decoder=8,
    sketch_sr=8000,
    sketch_bands=16,
    sketch_cepstra=8,
    sketch_n_fft=256,
    sketch_pitch_n_fft=1024,
    sketch_octaves=4,
)
TINY_SETS["tiny_songbloom"] = Hyperparams(
    TINY_SETS["tiny_songbloom_vae"]
    | Hyperparams(
        vae=False,
        songbloom=True,
        sample_length=24 * 320,
        l_bins=16,
        patch_size=4,
        prior_width=32,
        heads=1,
        prior_depth=2,
        dit_depth=1,
        m_mlp=2.0,
        time_features=8,
        lyric_tokens=24,
        sentences=4,
        prompt_frames=6,
        lyrics_vocab="songbloom_ja",
        lyrics_english="arpabet",
        lr=0.003,
        lr_warmup=0.0,
        restore_vae="logs/tiny_songbloom_vae/checkpoint_latest.pth.tar",
        restore_sketch="logs/tiny_sketch/sketch_codebook.pt",
    )
)
_tiny_transformer = Hyperparams(
    labels=False,
    prior_width=32,
    prior_depth=3,
    heads=2,
    attn_order=2,
    blocks=8,
    bs=2,
    nworkers=0,
    restore_vqvae="logs/tiny_vqvae/checkpoint_latest.pth.tar",
)
TINY_SETS["tiny_prior"] = Hyperparams(level=1, n_ctx=128, sample_length=128 * 32, **_tiny_transformer)
TINY_SETS["tiny_upsampler"] = Hyperparams(
    level=0,
    n_ctx=256,
    sample_length=256 * 8,
    cond_width=16,
    cond_depth=2,
    cond_dilation_growth_rate=3,
    **_tiny_transformer,
)

_tiny_labels = Hyperparams(
    TINY_SETS["tiny_prior"]
    | Hyperparams(labels=True, labels_v3=True, max_bow_genre_size=1, min_duration=0.6, max_duration=300.0, t_bins=8)
)
_tiny_lyrics = _tiny_labels | Hyperparams(use_tokens=True, n_tokens=32, prior_depth=4, prime_loss_fraction=0.4)
TINY_SETS["tiny_labelled_prior"] = _tiny_labels
TINY_SETS["tiny_lyrics_prior"] = Hyperparams(
    _tiny_lyrics | Hyperparams(attn_order=6, prime_width=16, prime_depth=2, prime_heads=2)
)
TINY_SETS["tiny_single_enc_dec_prior"] = Hyperparams(_tiny_lyrics | Hyperparams(attn_order=9, single_enc_dec=True))
