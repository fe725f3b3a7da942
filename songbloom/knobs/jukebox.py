"""The knobs of the Jukebox release (Dhariwal et al. 2020, arXiv:2005.00341), with its names, groups and defaults.

Commands written for it run here. A knob marked ``ignored`` is accepted, does nothing, and says so when it is set.
"""

from songbloom.hyperparams import Group, Knob, group

_LAUNCHER = "it described the job launcher of the Jukebox authors"
_DEBUG = "it was a debugging switch of the Jukebox authors"
_UNUSED = "the Jukebox release has the key and never reads it"

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
    c_res=Knob(
        0,
        "1: recompute each layer in the backward pass, to save memory; on a CPU only where keeping all would take more "
        "than a quarter of what is free (the numbers are the same, the time is a third longer); 2: in any case",
        choices=(0, 1, 2),
    ),
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
    prime_c_res=Knob(0, "1: recompute each layer in the backward pass; 2: see c_res", choices=(0, 1, 2)),
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
