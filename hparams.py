"""Every knob with its meaning, and every named set of values.

To add a set of your own, register it at the end of this file and name it on the command line:

    HPARAMS_REGISTRY["my_vqvae"] = Hyperparams(sr=32000, levels=2, downs_t=(4, 3), strides_t=(2, 2), width=48)
    $ python train.py --hps=my_vqvae,easy --name=first_try …        (a later set wins over an earlier one)

Every key of a set must be a knob below. To add a knob, write it into one of the groups under "ours". The groups from
``rcall`` to ``distributed`` hold the names and defaults of the Jukebox release (Dhariwal et al. 2020,
arXiv:2005.00341), so commands written for it run here; a knob marked ``ignored`` is accepted, does nothing, and says so
when it is set. The file is long because it is the one place where every value stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from songbloom.errors import UserError, did_you_mean
from songbloom.hyperparams import COMMAND_LINE, DEFAULT_SOURCE, Group, Hyperparams, Knob, Knobs, group

if TYPE_CHECKING:
    from songbloom.data.metadata import Hook

_LAUNCHER = "it described the job launcher of the Jukebox authors"
_DEBUG = "it was a debugging switch of the Jukebox authors"
_UNUSED = "the Jukebox release has the key and never reads it"

# --- Jukebox's groups -----------------------------------------------------------------------------------------------

RCALL = group(
    "rcall",
    "Job launcher",
    rcall_command=Knob("<unknown_rcall_command>", "Command with which a job was launched", ignored=_LAUNCHER),
    git_commit=Knob("<unknown_git_commit>", "Commit from which a job was launched", ignored=_LAUNCHER),
)

SCRIPT = group(
    "script",
    "The run: its name, what it does, where its logs go",
    name=Knob("", "Name of the run; checkpoints and logs go to {local_logdir}/{name}"),
    debug_mem=Knob(False, "Print memory use", ignored=_DEBUG),
    debug_eval_files=Knob(False, "Evaluate on debugging files", ignored=_DEBUG),
    debug_speed=Knob(False, "Time the steps", ignored=_DEBUG),
    debug_iters=Knob(100, "Steps of a debugging run", ignored=_DEBUG),
    debug_batch=Knob(False, "Repeat one batch", ignored=_DEBUG),
    debug_grad_accum=Knob(False, "Check gradient accumulation", ignored=_DEBUG),
    debug_inputs=Knob(False, "Look at inputs", ignored=_DEBUG),
    local_path=Knob("", "Folder for local copies", ignored=_UNUSED),
    local_logdir=Knob("logs", "Folder that holds a folder for each run"),
    max_len=Knob(24, "Longest audio clip that is logged, in seconds", kind="int|float", minimum=0),
    max_log=Knob(32, "Most audio clips logged under one tag", minimum=0),
    save=Knob(True, "Write checkpoints"),
    save_iters=Knob(
        20000, "Steps from one kept checkpoint, with inputs and reconstructions logged, to the next", minimum=1
    ),
    seed=Knob(0, "Seed of everything random in training: weights, order of chunks, shifts, codebook restarts"),
    prior=Knob(False, "Train the prior of --level on codes of the codec --restore_vqvae, not a codec"),
    log_steps=Knob(100, "Steps from one logging of scalars to the next", minimum=1),
    func=Knob("", "Function to run", ignored=_UNUSED),
)

DATA = group(
    "data",
    "Songs, and how chunks are cut from them",
    audio_files_dir=Knob("", "Folder searched, with its subfolders, for audio files (or give --data_jsonl)"),
    finetune=Knob("", "Model to start from", ignored=_UNUSED + "; use --restore_vqvae or --restore_prior"),
    english_only=Knob(False, "Use English songs only", ignored=_UNUSED),
    bs=Knob(1, "Batch size of each rank in training, in chunks", minimum=1),
    bs_sample=Knob(1, "Items sampled when samples are drawn during training", minimum=1),
    nworkers=Knob(1, "Worker processes that load data, for each rank; 0 loads in the training process", minimum=0),
    aug_shift=Knob(False, "Shift each chunk by a random part of its length"),
    aug_blend=Knob(False, "Mix stereo to mono with a random balance, not equal parts"),
    train_test_split=Knob(0.9, "Share of the songs that is trained on; the others are the test set", minimum=0),
    train_shrink_factor=Knob(1.0, "Share of the training set that is used", ignored=_UNUSED),
    test_shrink_factor=Knob(1.0, "Share of the test set that is used", ignored=_UNUSED),
    p_unk=Knob(0.1, "Probability of hiding a label", ignored=_UNUSED),
    min_duration=Knob(
        None, "Shortest usable song, in seconds; None: one chunk. Lower end of timing labels", kind="float"
    ),
    max_duration=Knob(
        None,
        "Longest usable song (exclusive), in seconds; None: no limit. Upper end of timing labels. Of a SongBloom prior "
        "the longest segment: longer songs are cut",
        kind="float",
    ),
    n_tokens=Knob(0, "Lyric characters shown to the prior with each chunk; 0: no lyrics", minimum=0),
    n_vocab=Knob(0, "Size of the lyric vocabulary; it follows from --lyrics_vocab", minimum=0),
    use_tokens=Knob(False, "Condition on lyrics"),
    curr_epoch=Knob(-1, "Epoch to begin with; -1: the first, or where the checkpoint stopped", minimum=-1),
)

VQVAE = group(
    "vqvae",
    "The codec (hierarchical VQ-VAE): levels, codebooks, losses",
    restore_vqvae=Knob("", "Codec checkpoint: a file, or an address under https://openaipublic.azureedge.net/"),
    levels=Knob(2, "Levels of codes; level 0 is the finest", minimum=1),
    downs_t=Knob((1, 1), "Strided convolutions on each level, relative to the level below", minimum=1),
    strides_t=Knob((2, 2), "Stride of each of them; a level shortens time by stride ** downs", minimum=2),
    hvqvae_multipliers=Knob(None, "Factor on width and depth for each level; None: all 1", kind="ints", minimum=1),
    revival_threshold=Knob(
        1.0, "Average use below which a code restarts, when training goes on from a checkpoint", minimum=0
    ),
    emb_width=Knob(64, "Width of a code vector", minimum=1),
    l_bins=Knob(512, "Codes in each codebook", minimum=1),
    l_mu=Knob(0.99, "Decay of the codebook's moving averages", minimum=0, below=1),
    commit=Knob(1.0, "Weight of the commitment loss", minimum=0),
    spectral=Knob(0.0, "Weight of the spectral loss (one STFT size)", minimum=0),
    multispectral=Knob(1.0, "Weight of the multi-scale spectral loss", minimum=0),
    loss_fn=Knob("l2", "Loss between audio and reconstruction", choices=("l1", "l2", "linf", "lmix")),
    linf_k=Knob(2048, "Samples of each chunk, those with the largest errors, that the linf loss averages", minimum=1),
    lmix_l1=Knob(0.0, "Weight of l1 in the lmix loss", minimum=0),
    lmix_l2=Knob(0.0, "Weight of l2 in the lmix loss", minimum=0),
    lmix_linf=Knob(0.0, "Weight of linf in the lmix loss", minimum=0),
    use_bottleneck=Knob(True, "Quantise; without, the codec is a plain autoencoder"),
)

VQVAE_CONV_BLOCK = group(
    "vqvae_conv_block",
    "Residual convolution stacks of the codec",
    depth=Knob(3, "Residual blocks after each strided convolution", minimum=1),
    width=Knob(128, "Channels of the residual stacks", minimum=1),
    m_conv=Knob(1.0, "Channels inside a residual block, relative to width", minimum=0),
    dilation_growth_rate=Knob(1, "Dilation of block i is this ** i", minimum=1),
    dilation_cycle=Knob(None, "Blocks after which dilation begins again at 1; None: never", kind="int", minimum=1),
    vqvae_reverse_decoder_dilation=Knob(True, "In the decoder the largest dilation comes first"),
)

PRIOR = group(
    "prior",
    "The prior: which level it models, what it is conditioned on",
    restore_prior=Knob("", "Prior checkpoint to start from: a file, or an address as for --restore_vqvae"),
    restore_prior_ddp=Knob(False, "The checkpoint was saved from a wrapped model", ignored="both forms are recognised"),
    max_bow_genre_size=Knob(
        None,
        "Most genre words of a song; None: 1 with --labels_v3, else as many as the songs have",
        kind="int",
        minimum=1,
    ),
    y_bins=Knob(0, "Sizes of the label tables: (genres, artists); 0: as many as there are", kind="int|ints", minimum=0),
    level=Knob(0, "Level that this prior models; 0 is the finest", minimum=0),
    cond_levels=Knob(
        None, "Levels conditioned on", kind="int|ints", ignored=_UNUSED + "; it is always the level above"
    ),
    t_bins=Knob(64, "Bins of each timing label (total length, position, relative position)", minimum=1),
    y_cond_as_bias=Knob(False, "Add labels as a bias", ignored=_UNUSED),
    copy_input=Knob(False, "Show the first music codes in place of lyrics (to test the lyric path)"),
    merged_decoder=Knob(False, "Output weights of their own, and no conditioning added after the transformer"),
    single_enc_dec=Knob(False, "Lyrics and music in one sequence for one transformer, not an encoder for lyrics"),
    alignment_layer=Knob(None, "Layer whose attention shows where lyrics are sung", kind="int", minimum=0),
    alignment_head=Knob(None, "Head of that layer", kind="int", minimum=0),
)

PRIOR_ATTN_BLOCK = group(
    "prior_attn_block",
    "The prior's transformer",
    n_ctx=Knob(1024, "Context, in codes of its level", minimum=1),
    prior_depth=Knob(3, "Layers", minimum=1),
    prior_width=Knob(128, "Width of the residual stream", minimum=1),
    heads=Knob(1, "Attention heads", minimum=1),
    attn_order=Knob(
        0, "Which attention function each layer has: one of thirteen orders, 0: dense", choices=tuple(range(13))
    ),
    blocks=Knob(
        None,
        "Blocks into which sparse attention divides the context; needed unless attn_order is 0",
        kind="int",
        minimum=1,
    ),
    spread=Knob(None, "Positions of each block that summary attention (orders 3 to 5) sees", kind="int", minimum=1),
    attn_dropout=Knob(0.0, "Dropout on attention weights", minimum=0, below=1),
    resid_dropout=Knob(0.0, "Dropout on what attention and MLP add", minimum=0, below=1),
    emb_dropout=Knob(0.0, "Dropout on embeddings", minimum=0, below=1),
    zero_out=Knob(False, "Begin with zero output projections, so that each layer begins as the identity"),
    res_scale=Knob(False, "Scale what each layer adds by 1 / depth"),
    pos_init=Knob(False, "Begin with sinusoidal position embeddings"),
    init_scale=Knob(1.0, "Factor on the standard deviation of initial weights", minimum=0),
    m_attn=Knob(0.25, "Width of queries, keys and values, relative to prior_width", minimum=0),
    m_mlp=Knob(1.0, "Width inside the MLP, relative to prior_width", minimum=0),
    c_res=Knob(0, "1: recompute each layer in the backward pass, to save memory", choices=(0, 1)),
    c_attn=Knob(0, "1 to 3: recompute a growing part of attention in the backward pass", choices=(0, 1, 2, 3)),
    c_mlp=Knob(0, "1: recompute the MLP in the backward pass", choices=(0, 1)),
)

COND_CONV_BLOCK = group(
    "cond_conv_block",
    "The convolutional conditioner of an upsampler, which reads the codes of the level above",
    cond_depth=Knob(3, "Residual blocks before each strided convolution", minimum=1),
    cond_width=Knob(128, "Channels of the residual stacks", minimum=1),
    cond_m_conv=Knob(1.0, "Channels inside a residual block, relative to cond_width", minimum=0),
    cond_zero_out=Knob(False, "Begin with residual blocks that add nothing"),
    cond_res_scale=Knob(False, "Scale what each residual block adds by 1 / sqrt(cond_depth)"),
    cond_dilation_growth_rate=Knob(1, "Dilation of block i is this ** i", minimum=1),
    cond_dilation_cycle=Knob(None, "Blocks after which dilation begins again at 1; None: never", kind="int", minimum=1),
    cond_c_res=Knob(0, "1: recompute each block in the backward pass, to save memory", choices=(0, 1)),
)

SAMPLE = group(
    "sample",
    "Lengths for sampling",
    primed_chunk_size=Knob(
        None, "Codes of a prompt read at once", kind="int", ignored=_UNUSED + "; see sample.py --help"
    ),
    selected_artists=Knob("", "Artists to sample", ignored=_UNUSED),
    temp_top=Knob(1.0, "Temperature of the top level", ignored=_UNUSED + "; see sample.py --help"),
    temp_rest=Knob(0.99, "Temperature of the other levels", ignored=_UNUSED + "; see sample.py --help"),
    sample_length_in_seconds=Knob(
        24, "Length from which sample_length is derived when that is 0, in seconds", kind="int|float", minimum=0
    ),
    total_sample_length_in_seconds=Knob(
        240, "Length of the whole song that a sample is told to be part of, in seconds", kind="int|float", minimum=0
    ),
)

PRIME = group(
    "prime",
    "Lyrics in the prior's loss",
    prime_loss_fraction=Knob(0.1, "Weight of the loss on lyric characters", minimum=0),
    restore_decoder=Knob(
        "", "Checkpoint of a prior without lyrics to start from", ignored=_UNUSED + "; use --restore_prior"
    ),
)

PRIME_ATTN_BLOCK = group(
    "prime_attn_block",
    "The transformer that reads lyrics, where it is separate; see the prior's keys of the same names",
    prime_depth=Knob(3, "Layers", minimum=1),
    prime_width=Knob(128, "Width of the residual stream", minimum=1),
    prime_heads=Knob(1, "Attention heads", minimum=1),
    prime_attn_order=Knob(0, "Which attention function each layer has", choices=tuple(range(13))),
    prime_blocks=Knob(None, "Blocks into which sparse attention divides the lyrics", kind="int", minimum=1),
    prime_spread=Knob(None, "Positions of each block that summary attention sees", kind="int", minimum=1),
    prime_attn_dropout=Knob(0.0, "Dropout on attention weights", minimum=0, below=1),
    prime_resid_dropout=Knob(0.0, "Dropout on what attention and MLP add", minimum=0, below=1),
    prime_emb_dropout=Knob(0.0, "Dropout on embeddings", minimum=0, below=1),
    prime_zero_out=Knob(False, "Begin with zero output projections"),
    prime_res_scale=Knob(False, "Scale what each layer adds by 1 / depth"),
    prime_pos_init=Knob(False, "Begin with sinusoidal position embeddings"),
    prime_init_scale=Knob(1.0, "Factor on the standard deviation of initial weights", minimum=0),
    prime_m_attn=Knob(0.25, "Width of queries, keys and values, relative to prime_width", minimum=0),
    prime_m_mlp=Knob(1.0, "Width inside the MLP, relative to prime_width", minimum=0),
    prime_c_res=Knob(0, "1: recompute each layer in the backward pass", choices=(0, 1)),
    prime_c_attn=Knob(0, "1 to 3: recompute a growing part of attention in the backward pass", choices=(0, 1, 2, 3)),
    prime_c_mlp=Knob(0, "1: recompute the MLP in the backward pass", choices=(0, 1)),
    prime_rel_attn=Knob(False, "Relative attention", ignored=_UNUSED),
    prime_posemb_timescale=Knob(10000, "Longest wavelength of position embeddings", ignored=_UNUSED),
)

OPT = group(
    "opt",
    "Optimiser (Adam) and learning-rate schedule",
    epochs=Knob(10000, "Passes over the training set", minimum=0),
    lr=Knob(0.0003, "Peak learning rate", minimum=0),
    clip=Knob(1.0, "Gradients are scaled down to this norm", minimum=0),
    beta1=Knob(0.9, "Decay of Adam's first moment", minimum=0, below=1),
    beta2=Knob(0.999, "Decay of Adam's second moment", minimum=0, below=1),
    ignore_grad_norm=Knob(
        0, "Steps whose gradient norm is above this are skipped; 0: none", kind="int|float", minimum=0
    ),
    weight_decay=Knob(0.0, "Decoupled weight decay", minimum=0),
    eps=Knob(1e-08, "Added to the root of Adam's second moment, before bias correction", minimum=0),
    lr_warmup=Knob(100.0, "Steps of linear warm-up from zero", minimum=0),
    lr_decay=Knob(10000000000.0, "Steps: of one decay by lr_gamma, or of the whole linear or cosine decay", minimum=1),
    lr_gamma=Knob(1.0, "Factor on the learning rate after each lr_decay steps", minimum=0),
    lr_scale=Knob(1.0, "Factor on the whole schedule", minimum=0),
    lr_use_linear_decay=Knob(False, "Decay linearly to zero over lr_decay steps; training ends there"),
    lr_start_linear_decay=Knob(0, "Step at which linear or cosine decay begins", minimum=0),
    lr_use_cosine_decay=Knob(False, "Decay along a half cosine to zero over lr_decay steps; training ends there"),
)

FP16 = group(
    "fp16",
    "Half precision; see also --precision",
    fp16=Knob(False, "Train in fp16 (on a CPU bf16 takes its place)"),
    fp16_params=Knob(False, "Keep the matrices of the transformer in fp16"),
    fp16_loss_scale=Knob(None, "Fixed loss scale; None: adapted as training goes", kind="float", minimum=1),
    fp16_scale_window=Knob(1000.0, "Good steps in which the adapted loss scale doubles", minimum=1),
    fp16_opt=Knob(False, "Keep Adam's moments of fp16 parameters in scaled fp16"),
)

TRAIN_TEST_EVAL = group(
    "train_test_eval",
    "What a run does; averages of weights; resets",
    labels=Knob(True, "Condition on artist, genre and timing"),
    labels_v3=Knob(False, "Version 3 of the label tables and characters (one genre a song)"),
    dump=Knob(False, "Write arrays to disk", ignored=_UNUSED),
    ema=Knob(True, "Keep a moving average of the weights, for tests, samples and release"),
    ema_fused=Knob(True, "Average in flat buffers; accepted, and the numbers are the same either way"),
    cpu_ema=Knob(False, "Keep the average in main memory"),
    cpu_ema_freq=Knob(100, "Steps from one update of the average in main memory to the next", minimum=1),
    reset_best_loss=Knob(False, "Forget the best loss", ignored=_UNUSED + "; no best loss is kept"),
    reset_step=Knob(False, "Count steps from zero after restoring"),
    reset_opt=Knob(False, "Begin with a fresh optimiser after restoring"),
    reset_shd=Knob(False, "Begin with a fresh schedule after restoring", ignored=_UNUSED + "; use --reset_step"),
    train=Knob(False, "Train"),
    test=Knob(False, "Evaluate on the test set, after each epoch of training or alone"),
    sample=Knob(False, "Sample", ignored=_UNUSED + "; use sample.py"),
    sampler=Knob("ancestral", "Way of sampling", ignored=_UNUSED + "; use sample.py --mode"),
    codes_logdir=Knob("", "Folder of codes", ignored=_UNUSED + "; use sample.py --codes_file"),
    date=Knob(None, "Date of a run", kind="str|int", ignored=_UNUSED),
    labeller=Knob("top_genres", "Way of labelling", ignored=_UNUSED),
    label_line=Knob(0, "Line of a label file", ignored=_UNUSED),
    iters_before_update=Knob(1, "Batches whose gradients are added up for each optimiser step", minimum=1),
    grad_accum_iters=Knob(0, "Batches for each optimiser step", ignored=_UNUSED + "; use --iters_before_update"),
    mu=Knob(
        None, "Decay of the averaged weights; None: 1 - (global batch / 8) / 1000", kind="float", minimum=0, below=1
    ),
    piped=Knob(False, "Pipeline parallelism", ignored=_UNUSED),
    pipe_depth=Knob(8, "Stages of the pipeline", ignored=_UNUSED),
    break_train=Knob(
        10000000000.0, "Batches after which an epoch of training is cut short", ignored=_UNUSED + "; use --train_steps"
    ),
    break_test=Knob(10000000000.0, "Batches after which a test is cut short", ignored=_UNUSED),
    exit_train=Knob(10000000000.0, "Batches after which training ends", ignored=_UNUSED + "; use --train_steps"),
)

AUDIO = group(
    "audio",
    "Audio: rate, chunks, and the sizes of spectral losses",
    n_fft=Knob(1024, "FFT size", ignored=_UNUSED + "; the spectral loss has 2048"),
    hop_length=Knob(256, "Hop of an STFT, in samples", ignored=_UNUSED + "; the spectral loss has 256"),
    window_size=Knob(1024, "Window of an STFT, in samples", ignored=_UNUSED + "; the spectral loss has 1536"),
    sr=Knob(44100, "Sample rate of the model, in Hz; files are resampled to it", minimum=1),
    channels=Knob(2, "Channels read from files, before mixing to mono", minimum=1),
    wav=Knob("", "A wav file", ignored=_UNUSED),
    n_inps=Knob(1, "Inputs", ignored=_UNUSED),
    n_hops=Knob(2, "Hops", ignored=_UNUSED),
    n_segment=Knob(1, "Segments", ignored=_UNUSED),
    n_total_segment=Knob(1, "Segments in all", ignored=_UNUSED),
    n_segment_each=Knob(1, "Segments of each", ignored=_UNUSED),
    prime_chunks=Knob(4, "Chunks of a prompt", ignored=_UNUSED),
    sample_length=Knob(0, "Length of a chunk, in samples; 0: derived from sample_length_in_seconds", minimum=0),
    sample_hop_length=Knob(30000, "Hop of chunks, in samples", ignored=_UNUSED),
    max_silence_pad_length=Knob(0, "Silence added to a song, in samples", ignored=_UNUSED),
    ignore_boundaries=Knob(False, "Let a chunk reach over the end of a song", ignored=_UNUSED),
    use_nonrelative_specloss=Knob(
        True, "Spectral loss as a plain distance over the bandwidth, not relative to the target"
    ),
    multispec_loss_n_fft=Knob((2048, 1024, 512), "FFT sizes of the multi-scale spectral loss", minimum=1),
    multispec_loss_hop_length=Knob((240, 120, 50), "Their hops, in samples", minimum=1),
    multispec_loss_window_size=Knob((1200, 600, 240), "Their windows, in samples", minimum=1),
)

DISTRIBUTED = group(
    "distributed",
    "Training on several ranks",
    bucket=Knob(
        128, "Size of the buckets in which gradients are averaged over ranks, in MiB", kind="int|float", minimum=1
    ),
)

JUKEBOX_GROUPS: tuple[Group, ...] = (
    *(RCALL, SCRIPT, DATA, VQVAE, VQVAE_CONV_BLOCK, PRIOR, PRIOR_ATTN_BLOCK, COND_CONV_BLOCK, SAMPLE, PRIME),
    *(PRIME_ATTN_BLOCK, OPT, FP16, TRAIN_TEST_EVAL, AUDIO, DISTRIBUTED),
)

# --- ours: knobs that Jukebox does not have -------------------------------------------------------------------------

TASK = group(
    "task",
    "Ours: what is trained, and for how long",
    vq=Knob(False, "Train the codec, with --vae a VAE (what happens anyway without --prior)"),
    lora=Knob(False, "Train low-rank adapters of the prior --restore_prior, and leave its weights (docs/lora.md)"),
    train_steps=Knob(0, "Stop, with a checkpoint, at this optimiser step; 0: no limit", minimum=0),
    budget_minutes=Knob(
        0.0,
        "Stop, with a checkpoint, after so many minutes of training, those before a restart included; 0: no limit",
        minimum=0,
    ),
    sample_iters=Knob(12000, "Steps from one drawing of samples during training to the next; 0: never", minimum=0),
    eval_lyrics=Knob(
        "",
        "Text file of words that every sample of a SongBloom prior sings, in place of the batch's; how well they "
        "are heard is logged beside (docs/evaluation.md)",
    ),
    eval_iters=Knob(0, "Steps from one evaluation (--test) to the next; 0: after each epoch", minimum=0),
    checkpoint_minutes=Knob(
        10.0, "Also write checkpoint_latest whenever so many minutes have passed; 0: never", minimum=0
    ),
    save_epochs=Knob(0, "Also keep a numbered checkpoint after every so many passes; 0: none", minimum=0),
    keep_checkpoints=Knob(0, "Numbered checkpoints kept, the newest; 0: all", minimum=0),
)

LORA = group(
    "lora",
    "Ours: low-rank adapters (docs/lora.md)",
    use_lora=Knob(False, "The same as --lora"),
    restore_lora=Knob("", "Adapter to train on from: a folder of ours or of peft's, or the folder of a run"),
    lora_rank=Knob(16, "Rank of each adapter", minimum=1),
    lora_alpha=Knob(32.0, "What an adapter adds is scaled by lora_alpha / lora_rank", minimum=0),
    lora_dropout=Knob(0.05, "Dropout on an adapter's input", minimum=0, below=1),
    lora_target_modules=Knob(
        "q_proj,v_proj",
        "Layers that get adapters, comma separated: words of their names, patterns with * ? [, re:EXPRESSION, or "
        "all-linear",
    ),
    lora_train_all=Knob(False, "Train everything that has no adapter, too; only matrices with adapters stay"),
    lora_train_rows=Knob(
        "auto",
        "Rows of a SongBloom prior's lyric table that are trained: those of new symbols and of symbols that the "
        "published models have not learned, all, or none",
        choices=("auto", "all", "none"),
    ),
)

SOURCES = group(
    "sources",
    "Ours: where songs come from",
    data_jsonl=Knob("", "File with one JSON object a line: audio_path, and optionally artist, genre, lyrics, idx"),
)

VAE = group(
    "vae",
    "Ours: the stereo VAE, codec of the SongBloom family (docs/vae.md)",
    vae=Knob(False, "The codec is a VAE: several channels, continuous latents, one level; not a VQ-VAE"),
    restore_vae=Knob(
        "", "Weights of the VAE: a checkpoint of ours, a published .ckpt, or a song model's .pt that holds its VAE"
    ),
    vae_channels=Knob(2, "Channels of the audio; 2 is stereo. Files with others are mixed or copied", minimum=1),
    vae_width=Knob(128, "Channels of the layers at the audio's own rate", minimum=1),
    vae_multipliers=Knob((1, 2, 4, 8, 16), "Channels after each block of the encoder, in vae_widths", minimum=1),
    vae_strides=Knob(
        (2, 4, 4, 6, 10), "Moments that each block of the encoder makes one; their product is the hop", minimum=2
    ),
    vae_dilations=Knob((1, 3, 9), "Dilations of the residual units of each block, one a unit", minimum=1),
    vae_latent_dim=Knob(64, "Numbers of a latent", minimum=1),
    vae_final_tanh=Knob(False, "Keep the output within ±1 by a tanh"),
    vae_spectral=Knob(1.0, "Weight of the spectral loss, over sum, difference, left and right", minimum=0),
    vae_spectral_n_fft=Knob(
        (2048, 1024, 512, 256, 128, 64, 32), "FFT sizes of the spectral loss; hops are a quarter", minimum=4
    ),
    vae_perceptual=Knob(True, "Weigh frequencies in the spectral loss as the ear does (A-weighting)"),
    vae_waveform=Knob(0.0, "Weight of the mean absolute difference of samples", minimum=0),
    vae_kl=Knob(1e-4, "Weight of the latents' divergence from a normal law", minimum=0),
    vae_adversarial=Knob(0.0, "Weight of a discriminator's judgement; 0: no discriminator", minimum=0),
    vae_feature_matching=Knob(5.0, "Weight of the differences of the discriminator's features", minimum=0),
    vae_adversarial_start=Knob(
        0, "Batch from which on the discriminator's judgement counts; it learns from the first", minimum=0
    ),
    vae_discriminator_lr=Knob(0.0, "Peak learning rate of the discriminator; 0: that of the VAE", minimum=0),
    vae_discriminator_width=Knob(64, "Channels of the discriminator's layers", minimum=1),
    vae_discriminator_n_fft=Knob((2048, 1024, 512, 256, 128), "FFT sizes that the discriminator looks at", minimum=4),
)

SKETCH = group(
    "sketch",
    "Ours: the sketch codebook, which the SongBloom family's language model writes codes of (docs/sketch.md)",
    sketch=Knob(False, "The codec is a sketch codebook: with --vq it is trained on --data_jsonl or --audio_files_dir"),
    sketch_features=Knob(
        "", "Features that it is made for: builtin, muq or muq_package; empty: muq if --sketch_muq_path is given"
    ),
    sketch_muq_path=Knob("", "Folder of MuQ's weights, with config.json; for muq_package a hub name works too"),
    sketch_muq_layer=Knob(-1, "Which of MuQ's layers; -1 is the last"),
    sketch_width=Knob(0, "Numbers of a feature, if they are to be checked; 0: as the features have it", minimum=0),
    sketch_codes=Knob(16384, "Vectors of the codebook; l_bins of the prior must be the same", minimum=2),
    sketch_distance=Knob("euclidean", "How features are compared with them", choices=("euclidean", "cosine")),
    sketch_normalisation=Knob(
        "",
        "Features before that: as they are, by mean and spread of the first batch, or each frame by its own; empty: "
        "none for built-in features, else standard",
        choices=("", "none", "standard", "layer"),
    ),
    sketch_decay=Knob(0.99, "What the codebook's moving averages keep a step", minimum=0, below=1),
    sketch_start_rows=Knob(0, "Frames gathered for the k-means start; 0: twice the codes", minimum=0),
    sketch_start_rounds=Knob(10, "Rounds of k-means", minimum=0),
    sketch_start_step=Knob(
        500, "Steps that a network of built-in features (sketch_hidden) learns before frames are gathered", minimum=0
    ),
    sketch_revival=Knob(
        0.1, "A code used less than this share of an even use starts again at a frame of the batch", minimum=0, below=1
    ),
    sketch_commit=Knob(0.25, "Weight of how far a network's features lie from their codes", minimum=0),
    sketch_pitch=Knob(1.0, "Weight of the pitches against the shape of the spectrum in the loss", minimum=0),
    sketch_gain=Knob(12.0, "A network's examples are made louder or softer by up to so many decibels", minimum=0),
    sketch_decoder=Knob(128, "Channels of the decoder that tells what codes hold, and trains a network", minimum=1),
    sketch_sr=Knob(24000, "Sample rate that built-in features hear, in Hz; a multiple of 100", minimum=4000),
    sketch_bands=Knob(64, "Mel bands of their view of the spectrum's shape", minimum=1),
    sketch_cepstra=Knob(13, "Cepstral numbers that are kept of it; more of them tell pitch as well", minimum=1),
    sketch_words=Knob(0.85, "Weight of these numbers against the pitches in a feature", minimum=0),
    sketch_n_fft=Knob(1024, "FFT size of that view", minimum=2),
    sketch_pitch_n_fft=Knob(4096, "FFT size of the view of pitches", minimum=2),
    sketch_lowest_pitch=Knob(65.41, "Lowest pitch, in Hz", minimum=1),
    sketch_octaves=Knob(5, "Octaves above it that are heard, in quarter tones", minimum=1),
    sketch_hidden=Knob(0, "Channels of a network that learns to add to the features; 0: none", minimum=0),
    sketch_dilations=Knob((1, 2, 4), "Dilations of its residual units", minimum=1),
    sketch_output=Knob("", "Where the codebook's file is written; empty: sketch_codebook.pt in the run's folder"),
    recover_from=Knob(
        "",
        "Instead of training, recover the codebook that this model was trained with, from songs of its own: a name in "
        "MODELS, such as songbloom_150s (docs/sketch.md)",
    ),
    recover_tokens=Knob("", "Recover from songs that are there: a folder of audio files, each with its codes beside"),
    recover_layers=Knob("", "MuQ's layers to try, such as -1,10,6; the best is taken; empty: --sketch_muq_layer"),
    recover_songs=Knob(16, "Songs that it writes for that; one in five is kept to test what is recovered", minimum=2),
    recover_seconds=Knob(30.0, "Their length", minimum=1),
    recover_steps=Knob(0, "Steps of their diffusion; 0: as the model does", minimum=0),
)

SONGBLOOM = group(
    "songbloom",
    "Ours: the SongBloom prior (docs/songbloom_prior.md); l_bins, prior_width, prior_depth, heads, m_mlp and c_res too",
    songbloom=Knob(False, "The prior is a SongBloom: it writes sketch codes and a VAE's latents in turns; not a level"),
    restore_sketch=Knob("", "Sketch codebook: a file that --vq --hps=sketch_vq wrote, or another program's"),
    patch_size=Knob(16, "Frames of a patch: the sketch of one is written, then its latents, then the next", minimum=1),
    dit_depth=Knob(12, "Layers of the diffusion transformer, which writes latents", minimum=1),
    rotary_base=Knob(20000.0, "Base of the language model's rotary positions", minimum=1),
    dit_rotary_base=Knob(20000.0, "Base of the diffusion transformer's rotary positions", minimum=1),
    time_conditioning=Knob(
        "prepend",
        "How it is told diffusion time: as a token before the rest, or by scales and shifts of each layer",
        choices=("prepend", "adaln"),
    ),
    time_features=Knob(256, "Fourier features of diffusion time, an even number", minimum=2),
    diffusion_objective=Knob(
        "rectified_flow",
        "What it learns to predict (Liu et al. 2022; Salimans & Ho 2022)",
        choices=("rectified_flow", "v"),
    ),
    timestep_sampler=Knob(
        "logit_normal",
        "How training draws diffusion times",
        choices=("logit_normal", "uniform", "trunc_logit_normal"),
    ),
    lyric_tokens=Knob(600, "Positions for lyrics; shorter ones are filled, longer ones cut", minimum=1),
    sentences=Knob(50, "Sentences of a section that are told apart; later ones share the last place", minimum=2),
    prompt_frames=Knob(250, "Positions for the style prompt, 25 a second", minimum=1),
    init_std=Knob(0.02, "Standard deviation of linear maps and embeddings at the start", minimum=0),
    patch_dropout=Knob(
        0.05,
        "Probability of hiding a patch's hidden vector, and by another draw its sketch, from the diffusion",
        minimum=0,
    ),
    condition_dropout=Knob(0.1, "Probability of hiding lyrics and style prompt together; guidance needs it", minimum=0),
    lyric_dropout=Knob(0.0, "Probability of hiding the lyrics alone", minimum=0),
    prompt_dropout=Knob(0.1, "Probability of hiding the style prompt alone", minimum=0),
    dropout_by_batch=Knob(False, "Draw these once a batch, as the published model was trained, and not once a song"),
    flow_loss_fraction=Knob(0.1, "Weight of the latents' diffusion loss against the sketch's cross-entropy", minimum=0),
    seconds_per_tag=Knob(
        1.0,
        "Seconds of a section without words that one tag stands for: 1 in the 150 s models, 5 in the 240 s model",
        minimum=0,
    ),
)

SONGBLOOM_DATA = group(
    "songbloom_data",
    "Ours: songs for a SongBloom prior (docs/songbloom_training.md)",
    val_jsonl=Knob("", "Songs to evaluate on, as --data_jsonl; it counts more than --val_split"),
    val_split=Knob(0.0, "Share of the song groups kept for evaluation; a group is on one side", minimum=0, below=1),
    split_seed=Knob(1234, "Seed of that choice"),
    segment_strategy=Knob(
        "start",
        "What is taken of a song longer than a segment: its start, or another part each time",
        choices=("start", "random"),
    ),
    sketch_mode=Knob(
        "builtin",
        "Where sketch codes come from: files (sketch_path, sketch_tokens), MuQ's features, or built-in ones",
        choices=("precomputed", "muq", "builtin"),
    ),
    require_vq_path=Knob(False, "Refuse to train without --restore_sketch, with precomputed sketches too"),
    require_length_match=Knob(False, "Refuse a sketch that is not as long as its song's latents; else both are cut"),
    verify_lengths=Knob(False, "Before training compare the lengths of sketches and latents, and tell what differs"),
    verify_lengths_max=Knob(100, "Songs that are compared; 0: all", minimum=0),
    clean_lyrics=Knob(False, "Clean lyrics as the published program can (tags, punctuation)"),
    process_lyrics=Knob(True, "Read lyrics as words; off: they are phonemes already"),
    language=Knob(
        "auto", "Language of songs that don't name theirs", choices=("auto", "ja", "en", "zh", "phonemes", "published")
    ),
    prompt_seconds=Knob(
        0.0, "Style prompt of a song that names none, cut from elsewhere in it; 0: as long as prompt_frames", minimum=0
    ),
    use_cache=Knob(False, "Keep latents and sketches on disk, found by the content of audio, codec and settings"),
    rebuild_cache=Knob(False, "Make what the cache holds anew"),
    cache_dir=Knob("", "Folder of that cache; empty: $SONGBLOOM_CACHE/training"),
    cache_only=Knob(False, "Fill the cache and stop"),
    local_dir=Knob("", "Folder of downloaded weights; empty: $SONGBLOOM_CACHE, or ~/.cache/songbloom"),
    overwrite_split=Knob(False, "Make the split anew", ignored="a split follows from songs, share and seed each time"),
    log_length_mismatch=Knob(False, "Tell lengths that differ", ignored="they are always told"),
    max_mismatch_logs=Knob(20, "How many of them", ignored="they are counted; --verify_lengths names some"),
    muq_device=Knob("", "Where MuQ computes", ignored="it computes where the prior does"),
    muq_freeze_codebook=Knob(True, "Keep the codebook", ignored="it never changes while a prior is trained"),
    devices=Knob(1, "Devices", ignored="start one rank for each: mpiexec -n 4 python train.py …"),
    strategy=Knob("auto", "Way of sharing work", ignored="ranks share it"),
    lyric_processor=Knob("phoneme", "What lyrics become", ignored="--lyrics_vocab decides"),
    init_from_pretrained=Knob(
        None,
        "Begin with the weights that the set or --restore_prior names, which must be; off: from scratch; None: with "
        "them where there are any",
        kind="bool",
    ),
)

WANDB = group(
    "wandb",
    "Ours: Weights & Biases, beside TensorBoard",
    wandb=Knob(False, "Log there too; needs the wandb package"),
    wandb_project=Knob("songbloom", "Project"),
    wandb_entity=Knob("", "Account or team; empty: one's own"),
    wandb_name=Knob("", "Name of the run; empty: --name"),
    wandb_mode=Knob(
        "online", "offline writes files that `wandb sync` sends later", choices=("online", "offline", "disabled")
    ),
)

LABELS = group(
    "labels",
    "Ours: where labels come from, and how lyrics become tokens (docs/labels.md)",
    label_tables=Knob(
        "",
        "Folder with the id tables of artists and genres; empty: those of the checkpoint or beside the weights to "
        "start from, else made of the songs",
    ),
    get_metadata=Knob(
        "", "Function that knows artist, genre and lyrics of a song: a name in METADATA_HOOKS, or module:function"
    ),
    lyrics_vocab=Knob(
        "", "Vocabulary of the lyrics, such as ja_kana or ja_phonemes; empty: v3 with --labels_v3, else v2"
    ),
    lyrics_english=Knob(
        "katakana",
        "English words in Japanese lyrics: read as Japanese, spelled by the letters' names, kept as letters, or "
        "in English phonemes, which songbloom vocabularies have",
        choices=("katakana", "letters", "keep", "arpabet"),
    ),
    lyrics_reading=Knob(
        "auto",
        "How Japanese lyrics are read: with a dictionary, as kana only, or with a dictionary if there is one",
        choices=("auto", "dictionary", "kana"),
    ),
    alignment_loss_fraction=Knob(
        0.0,
        "Weight of the loss that teaches a head to look at the words that are sung, for songs whose word times are "
        "known: --alignment_layer and --alignment_head, else the first of the last layer that reads lyrics; 0: none",
        minimum=0,
    ),
)

MACHINE = group(
    "machine",
    "Ours: how the machine is used",
    device=Knob("", "Where to compute: cuda, mps or cpu; empty: the best there is"),
    precision=Knob(
        "",
        "Arithmetic; empty: fp32, or with --fp16 fp16 on CUDA and bf16 on a CPU",
        choices=("", "fp32", "bf16", "fp16"),
    ),
    torch_compile=Knob(False, "Compile the model with torch.compile"),
    use_apex=Knob(False, "Use the fused Adam of NVIDIA apex, if it is installed"),
    port=Knob(29500, "Port of rank 0", ignored="ranks agree on a free port by themselves"),
)

OUR_GROUPS: tuple[Group, ...] = (TASK, LORA, SOURCES, VAE, SKETCH, SONGBLOOM, SONGBLOOM_DATA, WANDB, LABELS, MACHINE)

KNOBS = Knobs(*JUKEBOX_GROUPS, *OUR_GROUPS)
DEFAULTS: dict[str, Hyperparams] = KNOBS.defaults()

# What train.py is told about itself; no part of a configuration.
TRAIN_COMMAND = group(
    "command",
    "The command itself",
    hps=Knob("teeny", "Named sets of hyperparameters, comma separated; a later one wins"),
    print_hps=Knob(False, "Print the merged hyperparameters and where each value came from, and stop"),
    help=Knob(False, "Print this, and stop"),
)

# Names that other trainers of SongBloom give to options: name → (our key, how many of theirs make one of ours, 0: it is
# no number). docs/songbloom_training.md lists them.
OTHER_NAMES: dict[str, tuple[str, float]] = {
    "data_dir": ("audio_files_dir", 0),
    "output": ("sketch_output", 0),
    "output_path": ("sketch_output", 0),
    "muq_model_id": ("sketch_muq_path", 0),
    "model_id": ("sketch_muq_path", 0),
    "muq_sr": ("sr", 0),
    "embedding_dim": ("sketch_width", 0),
    "codebook_size": ("sketch_codes", 0),
    "decay": ("sketch_decay", 0),
    "commitment_weight": ("sketch_commit", 0),
    "chunk_size": ("sample_length_in_seconds", 25),
    "min_frames": ("min_duration", 25),
    "save_every": ("save_epochs", 0),
    "batch_size": ("bs", 0),
    "accumulate_grad_batches": ("iters_before_update", 0),
    "max_epochs": ("epochs", 0),
    "max_steps": ("train_steps", 0),
    "warmup_steps": ("lr_warmup", 0),
    "lambda_flow": ("flow_loss_fraction", 0),
    "h_dropout": ("patch_dropout", 0),
    "num_workers": ("nworkers", 0),
    "output_dir": ("local_logdir", 0),
    "resume_from": ("restore_prior", 0),
    "muq_vq_path": ("restore_sketch", 0),
    "muq_codebook_size": ("l_bins", 0),
    "muq_vq_decay": ("sketch_decay", 0),
    "muq_commitment_weight": ("sketch_commit", 0),
    "muq_embed_dim": ("sketch_width", 0),
    "prompt_len": ("prompt_seconds", 0),
    "model_name": ("hps", 0),
    "steps": ("train_steps", 0),
}

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


# --- named sets: the Jukebox release --------------------------------------------------------------------------------

HPARAMS_REGISTRY: dict[str, Hyperparams] = {}

# Parts of other sets, not selectable by name. y_bins is (genres, artists).
labels = Hyperparams(y_bins=(120, 4111), t_bins=128, max_bow_genre_size=5, n_vocab=80)
labels_v3 = Hyperparams(y_bins=(604, 7898), t_bins=64, max_bow_genre_size=1, n_vocab=79)

_PUBLISHED = "https://openaipublic.azureedge.net/jukebox/models"

HPARAMS_REGISTRY["teeny"] = Hyperparams()
HPARAMS_REGISTRY["easy"] = Hyperparams(sr=22050)

# The published codec: 44.1 kHz, hops of 8, 32 and 128 samples (paper, section 3 and appendix B).
HPARAMS_REGISTRY["vqvae"] = Hyperparams(
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
HPARAMS_REGISTRY["upsampler_level_0"] = Hyperparams(
    level=0, restore_prior=f"{_PUBLISHED}/5b/prior_level_0.pth.tar", **upsamplers
)
HPARAMS_REGISTRY["upsampler_level_1"] = Hyperparams(
    level=1, cond_res_scale=True, restore_prior=f"{_PUBLISHED}/5b/prior_level_1.pth.tar", **upsamplers
)

# The published top-level priors: 5 billion parameters without and with lyrics, and 1 billion with lyrics.
HPARAMS_REGISTRY["prior_5b"] = Hyperparams(
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
HPARAMS_REGISTRY["prior_5b_lyrics"] = Hyperparams(
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
HPARAMS_REGISTRY["prior_1b_lyrics"] = Hyperparams(
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
HPARAMS_REGISTRY["small_vqvae"] = Hyperparams(
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
HPARAMS_REGISTRY["small_prior"] = Hyperparams(
    n_ctx=8192, prior_width=1024, prior_depth=48, heads=1, c_res=1, attn_order=2, blocks=64, init_scale=0.7
)
HPARAMS_REGISTRY["small_labelled_prior"] = Hyperparams(
    labels=True,
    labels_v3=True,
    y_bins=(10, 100),  # room for 9 genres and 99 artists besides the unknown ones; --y_bins=0: for as many as there are
    max_bow_genre_size=1,
    min_duration=60.0,
    max_duration=600.0,
    t_bins=64,
    **HPARAMS_REGISTRY["small_prior"],
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
HPARAMS_REGISTRY["small_single_enc_dec_prior"] = Hyperparams(
    prior_depth=48, attn_order=12, single_enc_dec=True, **_small_lyrics
)
HPARAMS_REGISTRY["small_sep_enc_dec_prior"] = Hyperparams(
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
HPARAMS_REGISTRY["small_upsampler"] = Hyperparams(
    cond_width=512,
    cond_depth=16,
    cond_dilation_growth_rate=3,
    cond_dilation_cycle=8,
    cond_c_res=1,
    **HPARAMS_REGISTRY["small_prior"],
)

HPARAMS_REGISTRY["all_fp16"] = Hyperparams(fp16=True, fp16_params=True, fp16_opt=True, fp16_scale_window=250)
HPARAMS_REGISTRY["cpu_ema"] = Hyperparams(ema=True, cpu_ema=True, cpu_ema_freq=100, ema_fused=False)

# --- named sets: ours -----------------------------------------------------------------------------------------------

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
    vae_multipliers=(8, 24, 48, 64),
    vae_strides=(8, 6, 8, 5),
    vae_dilations=(1, 3),
    vae_spectral_n_fft=(2048, 512, 128),
    vae_waveform=10.0,
    vae_kl=1e-4,
    lr=0.001,
    lr_warmup=10.0,
    mu=0.98,  # some hundreds of steps are all there is: a longer average would still be near the start
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
        mu=0.999,
        weight_decay=0.01,
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
HPARAMS_REGISTRY["demo_vae"] = Hyperparams(
    HPARAMS_REGISTRY["small_vae"] | Hyperparams(vae_latent_dim=32, vae_multipliers=(8, 16, 32, 48))
)
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
        restore_vae="logs/demo_vae/checkpoint_latest.pth.tar",
        restore_sketch="logs/demo_sketch/sketch_codebook.pt",
    )
)

# As small as every part can be and still be there; a run takes seconds on a CPU. For tests of the real commands.
HPARAMS_REGISTRY["tiny_vqvae"] = Hyperparams(
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
HPARAMS_REGISTRY["tiny_vae"] = Hyperparams(
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
HPARAMS_REGISTRY["tiny_songbloom_vae"] = Hyperparams(
    HPARAMS_REGISTRY["tiny_vae"]
    | Hyperparams(sample_length=4 * 320, vae_multipliers=(1, 2, 2), vae_strides=(4, 8, 10), vae_dilations=(1,))
)
HPARAMS_REGISTRY["tiny_sketch"] = Hyperparams(
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
HPARAMS_REGISTRY["tiny_songbloom"] = Hyperparams(
    HPARAMS_REGISTRY["tiny_songbloom_vae"]
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
HPARAMS_REGISTRY["tiny_prior"] = Hyperparams(level=1, n_ctx=128, sample_length=128 * 32, **_tiny_transformer)
HPARAMS_REGISTRY["tiny_upsampler"] = Hyperparams(
    level=0,
    n_ctx=256,
    sample_length=256 * 8,
    cond_width=16,
    cond_depth=2,
    cond_dilation_growth_rate=3,
    **_tiny_transformer,
)

_tiny_labels = Hyperparams(
    HPARAMS_REGISTRY["tiny_prior"]
    | Hyperparams(labels=True, labels_v3=True, max_bow_genre_size=1, min_duration=0.6, max_duration=300.0, t_bins=8)
)
_tiny_lyrics = _tiny_labels | Hyperparams(use_tokens=True, n_tokens=32, prior_depth=4, prime_loss_fraction=0.4)
HPARAMS_REGISTRY["tiny_labelled_prior"] = _tiny_labels
HPARAMS_REGISTRY["tiny_lyrics_prior"] = Hyperparams(
    _tiny_lyrics | Hyperparams(attn_order=6, prime_width=16, prime_depth=2, prime_heads=2)
)
HPARAMS_REGISTRY["tiny_single_enc_dec_prior"] = Hyperparams(
    _tiny_lyrics | Hyperparams(attn_order=9, single_enc_dec=True)
)

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
    levels = hps["levels"]
    for key in ("downs_t", "strides_t", "hvqvae_multipliers"):
        if hps[key] is not None and len(hps[key]) != levels:
            raise UserError(f"levels={levels} but {key}={hps[key]} has {len(hps[key])}: give one value a level")
    sizes = ("multispec_loss_n_fft", "multispec_loss_hop_length", "multispec_loss_window_size")
    if len({len(hps[key]) for key in sizes}) > 1:
        raise UserError(f"{', '.join(sizes)} need equally many values")
    if hps["lora"] or hps["use_lora"]:
        check_lora(hps)
    if hps["lr_use_linear_decay"] and hps["lr_use_cosine_decay"]:
        raise UserError("--lr_use_linear_decay and --lr_use_cosine_decay exclude each other: give one")
    if hps["vae"]:
        check_vae(hps)
    if hps["sketch"]:
        check_sketch(hps)
    elif hps["recover_from"] or hps["recover_tokens"]:
        raise UserError("--recover_from recovers a sketch codebook: add a set of one, such as --vq --hps=sketch_vq")
    if hps["vq"] and hps["prior"]:
        raise UserError("--vq trains the codec and --prior a prior: give one of them")
    if hps["songbloom"]:
        check_songbloom(hps)
    elif hps["prior"]:
        check_prior(hps)
        check_reading(hps)
        if not hps["restore_vqvae"]:
            raise UserError("--prior needs a trained codec: give --restore_vqvae=FILE")
        if hps["labels"] and hps["level"] == hps["levels"] - 1 and hps["max_duration"] is None:
            raise UserError(
                "labels=True tells the prior where in the song it is, and needs the length of the longest song: give "
                "--max_duration=SECONDS (and --min_duration), or --labels=False"
            )
        metadata_hook(hps["get_metadata"])


def settle_lora(hps: Hyperparams) -> None:
    """What training adapters means for other values: a prior is trained, and not averaged unless somebody asks.

    Runs are short and adapters begin as nothing, so an average over thousands of steps would be far behind them.
    """
    hps["lora"] = hps["lora"] or hps["use_lora"]
    if hps["lora"]:
        hps["prior"] = True
        if hps.sources.get("ema") == DEFAULT_SOURCE:
            hps["ema"] = False


def check_lora(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that training adapters must pass."""
    if hps["vq"]:
        raise UserError("--lora adapts a prior, and --vq trains a codec: give one of them")
    if not hps["restore_prior"]:
        raise UserError("--lora needs the weights that are adapted: give --restore_prior=FILE")


def check_vae(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that a VAE must pass."""
    from songbloom.vae.config import VAEConfig

    VAEConfig.from_hps(hps)
    if hps["prior"]:
        raise UserError("--prior with --vae: a prior models the codes of a VQ-VAE; leave out one of the two")
    if hps["restore_vqvae"]:
        raise UserError("--restore_vqvae with --vae: weights of a VAE are named by --restore_vae")


def check_sketch(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that a sketch codebook's training must pass."""
    from songbloom.sketch.builtin import BuiltinConfig
    from songbloom.sketch.training import SketchVQConfig

    SketchVQConfig.from_hps(hps)
    BuiltinConfig.from_hps(hps)
    if hps["prior"] or hps["vae"]:
        other = "--prior" if hps["prior"] else "--vae"
        raise UserError(f"{other} with a sketch codebook's set: a run trains one thing; leave out one of the two")
    if hps["labels"]:
        raise UserError("labels=True: a sketch codebook hears audio alone; --labels=False")
    if hps["ema"]:
        raise UserError("--ema: averaged weights don't fit a codebook that follows the raw ones; leave it out")


def check_songbloom(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that a SongBloom prior's training must pass."""
    if not hps["prior"] and not hps["vq"]:
        raise UserError("a SongBloom set trains a prior: add --prior")
    if hps["vq"]:
        raise UserError("--vq trains a codec, and this is a prior's set: --hps=sketch_vq trains a codebook, or --prior")
    if hps["labels"]:
        raise UserError(
            "labels=True: a SongBloom prior reads lyrics and a style prompt, no artist and genre; --labels=False"
        )
    if not hps["data_jsonl"]:
        where = f"; --audio_files_dir={hps['audio_files_dir']} knows no lyrics" if hps["audio_files_dir"] else ""
        raise UserError(f"a SongBloom prior needs songs with lyrics: give --data_jsonl=FILE{where}")
    if hps["require_vq_path"] and not hps["restore_sketch"]:
        raise UserError("--require_vq_path: no codebook is given; add --restore_sketch=FILE (or --muq-vq-path)")
    for key in ("patch_dropout", "condition_dropout", "lyric_dropout", "prompt_dropout"):
        if hps[key] > 1:
            raise UserError(f"{key}={hps[key]:g}: a probability lies between 0 and 1")


def check_prior(hps: Mapping[str, Any]) -> None:
    """The part of :func:`check` that every prior must pass, in training and in sampling."""
    if hps["level"] >= hps["levels"]:
        raise UserError(
            f"level={hps['level']} does not exist with levels={hps['levels']}: the top is {hps['levels'] - 1}"
        )
    if hps["labels"] and hps["y_bins"] and not (isinstance(hps["y_bins"], tuple) and len(hps["y_bins"]) == 2):
        raise UserError(
            f"labels=True needs y_bins=(genres, artists), not {hps['y_bins']}: give --y_bins=0 to take them from the "
            "data, or --labels=False"
        )


def check_reading(hps: Mapping[str, Any]) -> None:
    """Refuse to train a prior that is given words and has no layer that looks at them: it would never sing one.

    Words that stand before the music (``single_enc_dec``) are read by every layer that looks further back than a row.
    """
    from songbloom.transformer.patterns import ORDERS, AttentionFunction, layer_functions, reading_depth

    depth, order = hps["prior_depth"], hps["attn_order"]
    if not (hps["labels"] and hps["use_tokens"] and hps["n_tokens"]) or hps["single_enc_dec"]:
        return
    if AttentionFunction.ENCODER_DECODER in layer_functions(order, depth):
        return
    first = {each: reading_depth(each) for each in ORDERS}
    known = ", ".join(f"{each} (from prior_depth={least})" for each, least in first.items() if least)
    raise UserError(
        f"use_tokens=True, but none of prior_depth={depth} layers of attn_order={order} reads the words: orders that "
        f"do are {known}; or give --use_tokens=False"
    )


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
        usage = "usage: python train.py --hps=NAMES --name=NAME [--key=value | --key value | --flag | --no-flag] …"
        return Command(setup_hparams(""), knobs.help(usage, "sets: " + ", ".join(HPARAMS_REGISTRY)))
    told = {key: options.pop(key, knob.default) for key, knob in TRAIN_COMMAND.knobs.items()}
    hps = setup_hparams(told["hps"], options)
    settle_lora(hps)
    if told["print_hps"]:
        return Command(hps, f"hps = {told['hps']}\n{KNOBS.explain(hps)}")
    check(hps)
    if not (hps.train or hps.test or hps.recover_from or hps.recover_tokens):
        raise UserError("nothing to do: give --train, --test or both (or --help)")
    if not hps.name:
        raise UserError("the run needs a name: give --name=NAME; checkpoints and logs go to logs/NAME")
    return Command(hps, notices=KNOBS.notices(hps))


def renamed(arguments: Sequence[str]) -> list[str]:
    """A command line with our keys in place of :data:`OTHER_NAMES`; frames become seconds."""
    made, factor = [], 0.0
    for word in arguments:
        name, equals, text = word.removeprefix("--").partition("=")
        key, its_factor = OTHER_NAMES.get(name.replace("-", "_"), ("", 0.0)) if word.startswith("--") else ("", 0.0)
        if not key and word.startswith("--"):
            made.append(word)
            factor = 0.0
        elif not key:
            made.append(_scaled(word, factor))
            factor = 0.0
        else:
            made.append(f"--{key}" + (f"={_scaled(text, its_factor)}" if equals else ""))
            factor = 0.0 if equals else its_factor
    return made


_OTHER_VALUES: dict[str, dict[str, str]] = {
    "precision": {
        **{"32": "fp32", "32-true": "fp32", "bf16-mixed": "bf16", "bf16-true": "bf16"},
        **{"16": "fp16", "16-mixed": "fp16", "16-true": "fp16"},
    },
    "hps": {
        "songbloom_full_150s": "songbloom_150s",
        "songbloom_full_150s_dpo": "songbloom_150s_dpo",
        "songbloom_full_240s": "songbloom_240s",
    },
}


def with_our_values(arguments: Sequence[str]) -> list[str]:
    """A command line with our words in place of other trainers' for precisions and models."""
    made: list[str] = []
    key = ""
    for word in arguments:
        name, equals, text = word.removeprefix("--").partition("=")
        if word.startswith("--"):
            key = name.replace("-", "_")
            known = _OTHER_VALUES.get(key, {})
            made.append(f"--{name}={known.get(text, text)}" if equals else word)
        else:
            made.append(_OTHER_VALUES.get(key, {}).get(word, word))
            key = ""
    return made


def _scaled(text: str, factor: float) -> str:
    """A number divided by ``factor``, if that isn't 0; what is no number stays, to be told by the parser."""
    try:
        return f"{float(text) / factor:.10g}" if factor else text
    except ValueError:
        return text


REFERENCE_PAGE = Path(__file__).parent / "docs" / "hyperparameters.md"


def reference_page() -> str:
    """The text of ``docs/hyperparameters.md``; ``python hparams.py`` writes it."""
    return KNOBS.reference_page(
        "# Hyperparameters\n\n"
        "Written by `python hparams.py` from `hparams.py`, where every knob and every named set is defined. Give a "
        "value as\n`--key=value`; `train.py --hps=NAMES --print_hps` shows the merged values and where each came from."
    )


if __name__ == "__main__":
    REFERENCE_PAGE.write_text(reference_page(), encoding="utf-8")
    print(f"wrote {REFERENCE_PAGE}")
