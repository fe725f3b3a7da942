"""The named sets of the Jukebox release, under its names: published models, and small ones to train from scratch."""

from songbloom.hyperparams import Hyperparams

JUKEBOX_SETS: dict[str, Hyperparams] = {}

# Parts of other sets, not selectable by name. y_bins is (genres, artists).
labels = Hyperparams(y_bins=(120, 4111), t_bins=128, max_bow_genre_size=5, n_vocab=80)
labels_v3 = Hyperparams(y_bins=(604, 7898), t_bins=64, max_bow_genre_size=1, n_vocab=79)

_PUBLISHED = "https://openaipublic.azureedge.net/jukebox/models"

JUKEBOX_SETS["teeny"] = Hyperparams()
JUKEBOX_SETS["easy"] = Hyperparams(sr=22050)

# The published codec: 44.1 kHz, hops of 8, 32 and 128 samples (paper, section 3 and appendix B).
JUKEBOX_SETS["vqvae"] = Hyperparams(
    levels=3,
    downs_t=(3, 2, 2),
    strides_t=(2, 2, 2),
    emb_width=64,
    l_bins=2048,
    l_mu=0.99,
    commit=0.02,
    spectral=0.0,
    multispectral=1.0,
    hvqvae_multipliers=(2, 1, 1),
    loss_fn="lmix",
    lmix_l2=1.0,
    lmix_linf=0.02,
    width=32,
    depth=4,
    m_conv=1.0,
    dilation_growth_rate=3,
    restore_vqvae=f"{_PUBLISHED}/5b/vqvae.pth.tar",
)

# What both published upsamplers share (about 1 billion parameters each).
upsamplers = Hyperparams(
    n_ctx=8192,
    prior_width=1920,
    prior_depth=72,
    heads=1,
    attn_order=2,
    blocks=128,
    init_scale=0.4,
    c_res=1,
    cond_width=1024,
    cond_depth=16,
    cond_dilation_growth_rate=3,
    cond_dilation_cycle=8,
    cond_c_res=1,
    use_tokens=False,
    prime_loss_fraction=0.0,
    fp16_params=False,
    **labels,
)
JUKEBOX_SETS["upsampler_level_0"] = Hyperparams(
    level=0, restore_prior=f"{_PUBLISHED}/5b/prior_level_0.pth.tar", **upsamplers
)
JUKEBOX_SETS["upsampler_level_1"] = Hyperparams(
    level=1, cond_res_scale=True, restore_prior=f"{_PUBLISHED}/5b/prior_level_1.pth.tar", **upsamplers
)

# The published top-level priors: 5 billion parameters without and with lyrics, and 1 billion with lyrics.
JUKEBOX_SETS["prior_5b"] = Hyperparams(
    level=2,
    n_ctx=8192,
    prior_width=4800,
    prior_depth=72,
    heads=8,
    attn_order=2,
    blocks=128,
    init_scale=0.1,
    c_res=1,
    beta2=0.925,
    min_duration=60.0,
    max_duration=600.0,
    use_tokens=False,
    n_tokens=0,
    prime_loss_fraction=0.0,
    merged_decoder=True,
    restore_prior=f"{_PUBLISHED}/5b/prior_level_2.pth.tar",
    fp16_params=True,
    **labels,
)
JUKEBOX_SETS["prior_5b_lyrics"] = Hyperparams(
    level=2,
    n_ctx=8192,
    prior_width=4800,
    prior_depth=79,
    heads=8,
    attn_order=10,
    blocks=128,
    init_scale=0.1,
    c_res=1,
    prime_width=1280,
    prime_depth=18,
    prime_heads=4,
    prime_attn_order=2,
    prime_blocks=32,
    prime_init_scale=0.7,
    prime_c_res=1,
    min_duration=23.8,
    max_duration=600.0,
    use_tokens=True,
    n_tokens=512,
    prime_loss_fraction=0.4,
    merged_decoder=True,
    restore_prior=f"{_PUBLISHED}/5b_lyrics/prior_level_2.pth.tar",
    fp16_params=True,
    alignment_layer=68,
    alignment_head=2,
    **labels,
)
JUKEBOX_SETS["prior_1b_lyrics"] = Hyperparams(
    level=2,
    n_ctx=6144,
    prior_width=2048,
    prior_depth=72,
    heads=2,
    attn_order=12,
    blocks=64,
    init_scale=0.2,
    c_res=1,
    labels_v3=True,
    min_duration=17.84,
    max_duration=600.0,
    use_tokens=True,
    n_tokens=384,
    prime_loss_fraction=0.4,
    single_enc_dec=True,
    restore_prior=f"{_PUBLISHED}/1b_lyrics/prior_level_2.pth.tar",
    fp16_params=False,
    alignment_layer=63,
    alignment_head=0,
    **labels_v3,
)

# Small models to train from scratch on one machine. The priors set no level: give --level and --levels.
JUKEBOX_SETS["small_vqvae"] = Hyperparams(
    sr=22050,
    levels=2,
    downs_t=(5, 3),
    strides_t=(2, 2),
    emb_width=64,
    l_bins=1024,
    l_mu=0.99,
    commit=0.02,
    spectral=0.0,
    multispectral=1.0,
    loss_fn="l2",
    width=32,
    depth=4,
    m_conv=1.0,
    dilation_growth_rate=3,
)
JUKEBOX_SETS["small_prior"] = Hyperparams(
    n_ctx=8192, prior_width=1024, prior_depth=48, heads=1, c_res=1, attn_order=2, blocks=64, init_scale=0.7
)
JUKEBOX_SETS["small_labelled_prior"] = Hyperparams(
    labels=True,
    labels_v3=True,
    y_bins=(10, 100),  # room for 9 genres and 99 artists besides the unknown ones; --y_bins=0: for as many as there are
    max_bow_genre_size=1,
    min_duration=60.0,
    max_duration=600.0,
    t_bins=64,
    **JUKEBOX_SETS["small_prior"],
)
_small_lyrics = Hyperparams(
    n_ctx=6144,
    prior_width=1024,
    heads=2,
    blocks=64,
    init_scale=0.7,
    c_res=1,
    prime_loss_fraction=0.4,
    labels=True,
    labels_v3=True,
    y_bins=(10, 100),
    max_bow_genre_size=1,
    min_duration=60.0,
    max_duration=600.0,
    t_bins=64,
    use_tokens=True,
    n_tokens=384,
    n_vocab=79,
)
JUKEBOX_SETS["small_single_enc_dec_prior"] = Hyperparams(
    prior_depth=48, attn_order=12, single_enc_dec=True, **_small_lyrics
)
JUKEBOX_SETS["small_sep_enc_dec_prior"] = Hyperparams(
    prior_depth=50,
    attn_order=8,
    prime_width=256,
    prime_depth=9,
    prime_heads=2,
    prime_attn_order=2,
    prime_blocks=32,
    prime_init_scale=0.7,
    prime_c_res=1,
    **_small_lyrics,
)
JUKEBOX_SETS["small_upsampler"] = Hyperparams(
    cond_width=512,
    cond_depth=16,
    cond_dilation_growth_rate=3,
    cond_dilation_cycle=8,
    cond_c_res=1,
    **JUKEBOX_SETS["small_prior"],
)

JUKEBOX_SETS["all_fp16"] = Hyperparams(fp16=True, fp16_params=True, fp16_opt=True, fp16_scale_window=250)
JUKEBOX_SETS["cpu_ema"] = Hyperparams(ema=True, cpu_ema=True, cpu_ema_freq=100, ema_fused=False)
