"""The knobs that Jukebox does not have, in groups of our own. A new knob is written into one of them."""

from songbloom.hyperparams import Group, Knob, group

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
        "Text file of words that every sample of a prior that reads lyrics sings, in place of its songs'; how well "
        "they are heard is logged beside (docs/evaluation.md)",
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
    vae_multipliers=Knob(
        (1, 2, 4, 8, 16), "Channels after each block of the encoder, as multiples of vae_width", minimum=1
    ),
    vae_strides=Knob(
        (2, 4, 4, 6, 10), "How many moments each block of the encoder makes one; their product is the hop", minimum=2
    ),
    vae_dilations=Knob((1, 3, 9), "Dilations of the residual units of each block, one a unit", minimum=1),
    vae_latent_dim=Knob(64, "Numbers of a latent", minimum=1),
    vae_final_tanh=Knob(False, "Keep the output within ±1 by a tanh"),
    vae_spectral=Knob(1.0, "Weight of the spectral loss, over sum, difference, left and right", minimum=0),
    vae_spectral_n_fft=Knob(
        (2048, 1024, 512, 256, 128, 64, 32), "FFT sizes of the spectral loss; hops are a quarter", minimum=4
    ),
    vae_perceptual=Knob(True, "Weigh frequencies in the spectral loss as the ear does (A-weighting)"),
    vae_spectral_floor=Knob(
        1e-4,
        "Added to magnitudes before the spectral loss takes their logarithm: what is quieter hardly counts. A low "
        "one lets true silence and the valleys between harmonics decide the steps",
        minimum=0,
    ),
    vae_mel=Knob(
        0.0,
        "Weight of the mean difference of the logarithms of mel bands, at the sizes and with the floor of the spectral "
        "loss: formants and consonants are kept, which single magnitudes blur",
        minimum=0,
    ),
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
    muq_sr=Knob(
        0,
        "Rate that features hear in Hz, if it is to be checked: 24000 for MuQ, sketch_sr for built-in ones; 0: not",
        minimum=0,
    ),
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
    "Ours: the SongBloom prior (docs/songbloom_prior.md), which l_bins, prior_width, prior_depth, heads, m_mlp and "
    "c_res are for, too",
    songbloom=Knob(False, "The prior is a SongBloom: it writes sketch codes and a VAE's latents in turns; not a level"),
    restore_sketch=Knob("", "Sketch codebook: a file that --vq --hps=sketch_vq wrote, or another program's"),
    patch_size=Knob(16, "Frames of a patch: the sketch of one is written, then its latents, then the next", minimum=1),
    dit_depth=Knob(12, "Layers of the diffusion transformer, which writes latents", minimum=1),
    rotary_base=Knob(20000.0, "Base of the language model's rotary positions", minimum=1),
    dit_rotary_base=Knob(20000.0, "Base of the diffusion transformer's rotary positions", minimum=1),
    time_conditioning=Knob(
        "prepend",
        "How the diffusion transformer is told diffusion time: as a token before the rest, or by scales and shifts of "
        "each layer",
        choices=("prepend", "adaln"),
    ),
    time_features=Knob(256, "Fourier features of diffusion time, an even number", minimum=2),
    diffusion_objective=Knob(
        "rectified_flow",
        "What the diffusion transformer learns to predict (Liu et al. 2022; Salimans & Ho 2022)",
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
        "Begin with the weights that the set or --restore_prior names, which must be there; off: from scratch; None: "
        "with them where there are any",
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
