"""A prior of one level: labels, lyrics and codes above, then the autoregressive model of the level's own codes.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4. The top level's prior is unconditional
or labelled, and may read lyrics; those below are upsamplers, conditioned on the level directly above.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.prior.autoregressive import AutoregressiveModel, check_request
from songbloom.prior.conditioners import Conditions, UpsamplingConditioner, upsampling_conditioner
from songbloom.prior.config import PRECISIONS, Codec, PriorConfig, check, dtype_of
from songbloom.prior.guidance import WatchedHead, alignment_loss, taught_head
from songbloom.prior.labels import FIXED, LabelConditioner, label_conditioner
from songbloom.prior.lyric_encoder import LyricEncoder
from songbloom.transformer.patterns import AttentionFunction

__all__ = ["PRECISIONS", "Codec", "Conditions", "Prior", "PriorConfig", "dtype_of"]

# Functions by which each position of the music can see every lyric token: an encoder's, those that stand before it in
# its own sequence, and all of the sequence.
_READS_LYRICS = (AttentionFunction.ENCODER_DECODER, AttentionFunction.PRIME, AttentionFunction.DENSE)


def _item(batch: Tensor | None, index: int) -> Tensor | None:
    return None if batch is None else batch[index : index + 1]


def _together(items: Sequence[Tensor | None]) -> Tensor | None:
    """Items' tensors [1, ...] as one batch; None if they are None."""
    present = [item for item in items if item is not None]
    return torch.cat(present) if present else None


class Prior(nn.Module):
    """The model of one level's codes.

    Attributes:
        level: the level that it writes; ``levels`` is the tuple of these.
        n_ctx: codes of a window.
        n_tokens: lyric tokens of a window; 0 without lyrics.
        label_width: columns of a label vector, ``[total length, offset, window length (all in samples), artist id,
            genre ids padded with -1, lyric tokens]``; 0 without labels.
        hop_length: samples a code.
        sample_length: samples of a window.
        cond_downsample: codes of a window for each code above (None at the top).
        l_bins: size of the codebooks.
        z_shapes: for each level ``(codes,)``, of which this level's is ``n_ctx``.

    Raises:
        UserError: settings that don't fit the codec or each other.
    """

    def __init__(self, config: PriorConfig, codec: Codec) -> None:
        super().__init__()
        check(config, codec)
        level = config.level
        self.config = config
        self.level, self.levels = level, (level,)
        self.n_ctx, self.n_tokens, self.label_width = config.n_ctx, config.lyric_tokens, config.label_width
        self.l_bins = codec.l_bins
        self.hop_length = codec.hop_lengths[level]
        self.sample_length = self.n_ctx * self.hop_length
        self.z_shapes = [(shape[0] * self.n_ctx // codec.z_shapes[level][0],) for shape in codec.z_shapes]
        self.cond_downsample: int | None = None
        self.conditioner: UpsamplingConditioner | None = None
        if level + 1 < codec.levels:
            self.cond_downsample = codec.downsamples[level + 1]
            if self.n_ctx % self.cond_downsample:
                raise UserError(
                    f"n_ctx is {self.n_ctx}: at level {level} it must be a multiple of {self.cond_downsample},"
                    " the number of its codes for each code above"
                )
            self.conditioner = upsampling_conditioner(config, codec)
        self.label_conditioner: LabelConditioner | None = None
        if config.labels:
            self.label_conditioner = label_conditioner(config, self.sample_length, timed=self.conditioner is None)
        # Lyrics and music in one sequence share a vocabulary, in which the codes come after the lyric tokens.
        self._shift = config.lyric_bins(self.l_bins) if config.single_enc_dec else 0
        self.lyric_encoder: LyricEncoder | None = None
        if self.n_tokens and not config.single_enc_dec:
            self.lyric_encoder = LyricEncoder(
                config.encoder(),
                bins=config.lyric_bins(self.l_bins),
                width=config.prior_width,
                init_scale=config.init_scale,
                emb_dropout=config.prime_emb_dropout,
                pos_init=config.prime_pos_init,
            )
        self.autoregressive = AutoregressiveModel(
            config.transformer(),
            bins=self._shift + self.l_bins,
            y_cond=config.labels,
            merged_decoder=config.merged_decoder,
            emb_dropout=config.emb_dropout,
            pos_init=config.pos_init,
        )
        self._taught: WatchedHead | None = None  # the head that is taught to follow the words
        if config.alignment_loss_fraction:
            transformer, first = self.autoregressive.transformer, self.n_tokens if self._shift else 0
            self._taught = WatchedHead(transformer, *taught_head(config, self.lyric_heads()), first, self.n_tokens)

    # ------------------------------------------------------------------------------------------------ conditions

    def condition(self, upper_codes: Tensor | None, *, batch: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """What the codes above add at each position: [N, n_ctx / cond_downsample] → [N, n_ctx, W].

        None at the top.

        Args:
            dtype: bfloat16 runs the convolutions in it while training; otherwise all is float32, as published.

        Raises:
            UserError: codes are missing, too many, of a wrong shape, or given where nothing lies above.
        """
        if self.conditioner is None or self.cond_downsample is None:
            if upper_codes is not None:
                raise UserError(f"level {self.level} is the top level: it takes no codes from above")
            return None
        shape = [batch, self.n_ctx // self.cond_downsample]
        if upper_codes is None:
            raise UserError(f"level {self.level} needs the codes of level {self.level + 1}, of shape {shape}")
        given = list(upper_codes.shape)
        if given != shape:
            raise UserError(f"codes of level {self.level + 1} have shape {given}: level {self.level} needs {shape}")
        upper_codes = upper_codes.to(self.conditioner.norm.weight.device)
        reduced = dtype == torch.bfloat16 and self.training
        with torch.autocast(upper_codes.device.type, dtype) if reduced else contextlib.nullcontext():
            return self.conditioner(upper_codes)

    def _checked_labels(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """``labels`` if this prior reads any, after a look at their shape."""
        if labels is not None and labels.ndim == 2 and labels.shape[1] == 0:
            labels = None
        if not self.label_width:
            if labels is not None:
                raise UserError("labels were given, but this prior was built without them (--labels=False)")
            return None
        shape = [batch, self.label_width]
        meaning = f"4 numbers, {self.config.max_bow_genre_size} genre ids and {self.n_tokens} lyric tokens an item"
        if labels is None:
            raise UserError(f"this prior was built with labels: give them, whole numbers of shape {shape} ({meaning})")
        if list(labels.shape) != shape or labels.is_floating_point():
            raise UserError(
                f"labels of shape {list(labels.shape)} and type {labels.dtype}: this prior takes whole numbers of shape"
                f" {shape} ({meaning})"
            )
        return labels

    def conditions(
        self,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        batch: int,
        dtype: torch.dtype = torch.float32,
    ) -> Conditions:
        """What a window is given: codes above [N, n_ctx / cond_downsample] and labels [N, label_width] int64.

        Labels are best left on the CPU, where looking through them for mistakes does not wait for the device.

        Raises:
            UserError: codes or labels are missing, too many, of a wrong shape, or out of what the model knows.
        """
        labels = self._checked_labels(labels, batch)
        x_cond = self.condition(upper_codes, batch=batch, dtype=dtype)
        if labels is None or self.label_conditioner is None:
            return Conditions(x_cond)
        slots = FIXED + self.label_conditioner.genre_slots
        self.label_conditioner.check(labels[:, :slots])
        lyrics = labels[:, slots:]
        bins = self.config.lyric_bins(self.l_bins)
        if self.n_tokens and not bool(((lyrics >= 0) & (lyrics < bins)).all()):
            raise UserError(
                f"labels hold lyric tokens from {int(lyrics.min())} to {int(lyrics.max())}: this model knows 0 to"
                f" {bins - 1}; were they made with another vocabulary?"
            )
        device = self.autoregressive.positions.device
        labels = labels.to(device).long()
        y_cond, timing = self.label_conditioner(labels[:, :slots])
        return Conditions(timing if x_cond is None else x_cond, y_cond, labels[:, slots:] if self.n_tokens else None)

    def inputs(
        self, codes: Tensor | None, given: Conditions, *, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor | None, dict[str, Tensor | None]]:
        """The autoregressive model's own terms.

        Args:
            codes: [N, m] int64, any m.
            given: the window's conditions.
            dtype: what the lyric encoder computes in.

        Returns:
            Its tokens: the codes, with lyrics before them where both are one sequence; and ``x_cond``, ``y_cond``,
            ``encoder_kv`` as its methods take them.
        """
        x_cond, encoder_kv = given.x_cond, None
        if self._shift:
            assert given.lyrics is not None
            if x_cond is not None:
                x_cond = F.pad(x_cond, (0, 0, self.n_tokens, 0))  # lyrics hear of no position in the song
            codes = given.lyrics if codes is None else torch.cat([given.lyrics, codes + self._shift], dim=1)
        elif self.lyric_encoder is not None:
            encoder_kv = self.lyric_encoder(given.lyrics, dtype=dtype)
        return codes, {"x_cond": x_cond, "y_cond": given.y_cond, "encoder_kv": encoder_kv}

    def _whole_window(
        self, codes: Tensor, upper_codes: Tensor | None, labels: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Conditions, dict[str, Tensor | None]]:
        """Tokens, conditions and the autoregressive model's arguments for codes [N, n_ctx]."""
        if codes.ndim != 2 or codes.shape[1] != self.n_ctx:
            raise UserError(f"codes of shape {list(codes.shape)}: this model takes [batch, {self.n_ctx}]")
        given = self.conditions(upper_codes, labels, batch=len(codes), dtype=dtype)
        if self.config.copy_input and self.n_tokens:
            given = replace(given, lyrics=codes[:, : self.n_tokens])
        tokens, arguments = self.inputs(codes, given, dtype=dtype)
        assert tokens is not None
        return tokens, given, arguments

    # -------------------------------------------------------------------------------------------------- training

    def logits(
        self,
        codes: Tensor,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        precision: str | torch.dtype = "fp32",
    ) -> Tensor:
        """Predictions of all codes, each from the codes before it: [N, n_ctx, l_bins] float32."""
        dtype = dtype_of(precision)
        tokens, _, arguments = self._whole_window(codes, upper_codes, labels, dtype)
        logits = self.autoregressive.logits(tokens, **arguments, dtype=dtype)
        return logits[:, -self.n_ctx :, self._shift :]

    def forward(
        self,
        codes: Tensor,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        sung: Tensor | None = None,
        precision: str | torch.dtype = "fp32",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of ``codes`` [N, n_ctx] int64, in bits.

        With P lyric tokens and G codes it is ``(prime_loss_fraction * P * prime_loss + G * gen_loss) / (P + G)``;
        without lyrics bits a code. Given ``sung``, ``alignment_loss_fraction * alignment_loss`` is added.

        Args:
            upper_codes: [N, n_ctx / cond_downsample] int64, the codes of the level above (not at the top).
            labels: [N, label_width] int64, of this window; none in a prior without labels. With ``copy_input`` the
                first codes stand in for its lyric tokens.
            sung: [N, n_tokens, 2], when each lyric position is to be looked at, in samples from the window's
                beginning; NaN where nobody knows. Only read with ``alignment_loss_fraction``.
            precision: ``fp32``, ``bf16`` or ``fp16``: in which the transformers compute.

        Returns:
            The loss, and metrics without gradients: ``gen_loss`` (bits a code), ``bpd`` (the same) and ``prime_loss``
            (bits a lyric token; 0 without lyrics); given ``sung`` also ``alignment_loss``.
        """
        if sung is not None and self._taught is not None:
            with self._taught.watching():
                loss, metrics = self.forward(codes, upper_codes, labels, precision=precision)
            late = alignment_loss(self._taught.weights(), sung / self.hop_length)
            metrics["alignment_loss"] = late.detach()
            return loss + self.config.alignment_loss_fraction * late, metrics
        dtype = dtype_of(precision)
        tokens, given, arguments = self._whole_window(codes, upper_codes, labels, dtype)
        lyrics, music = self.n_tokens, self.n_ctx
        lyric_share = self.config.prime_loss_fraction * lyrics / (lyrics + music)
        music_share = music / (lyrics + music)
        if self._shift:
            weights = self.autoregressive.positions.new_full((lyrics + music,), music_share / music)
            weights[:lyrics] = lyric_share / lyrics
            loss, bits = self.autoregressive(tokens, **arguments, weights=weights, dtype=dtype)
            prime_loss, gen_loss = bits[:, :lyrics].mean(), bits[:, lyrics:].mean()
        else:
            loss, _ = self.autoregressive(tokens, **arguments, dtype=dtype)
            gen_loss = loss.detach()
            prime_loss = torch.zeros_like(gen_loss)
            if self.lyric_encoder is not None:
                assert given.lyrics is not None and arguments["encoder_kv"] is not None
                prime_loss = self.lyric_encoder.loss(arguments["encoder_kv"], given.lyrics)
                loss = lyric_share * prime_loss + music_share * loss
        return loss, {"bpd": gen_loss, "gen_loss": gen_loss, "prime_loss": prime_loss.detach()}

    # -------------------------------------------------------------------------------------------------- sampling

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """In eval mode within, as before afterwards."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def _sampling_inputs(
        self,
        batch: int,
        prompt: Tensor | None,
        upper_codes: Tensor | None,
        labels: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, dict[str, Tensor | None]]:
        """What :meth:`inputs` gives for a prompt [N, p] and the window's conditions.

        On a CPU items are taken one by one, because a batch of another size may round otherwise, and an item's codes
        are not to depend on how many are sampled with it.
        """
        parts = (prompt, upper_codes, labels)
        many = batch > 1 and all(part is None or len(part) == batch for part in parts)
        if many and self.autoregressive.positions.device.type == "cpu":
            # A mistake is told of below, in terms of the whole batch.
            with contextlib.suppress(UserError):
                each = [
                    self._sampling_inputs(1, _item(prompt, i), _item(upper_codes, i), _item(labels, i), dtype)
                    for i in range(batch)
                ]
                given = {name: _together([arguments[name] for _, arguments in each]) for name in each[0][1]}
                return _together([tokens for tokens, _ in each]), given
        return self.inputs(prompt, self.conditions(upper_codes, labels, batch=batch), dtype=dtype)

    @torch.inference_mode()
    def sample_steps(
        self,
        n_samples: int,
        *,
        prompt: Tensor | None = None,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        sample_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        chunk_size: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        precision: str | torch.dtype = "fp32",
        quantize: str = "",
        fast: bool = True,
        out: Tensor | None = None,
        preds: Tensor | None = None,
    ) -> Generator[int, None, None]:
        """Draw codes one after the other, giving the caller a turn after each; the arguments are :meth:`sample`'s.

        Args:
            out: [n_samples, sample_tokens] int64, filled as it goes (the prompt first).

        Yields:
            How many codes of ``out`` are valid: the prompt's length at first, ``sample_tokens`` at the end.
        """
        total = self.n_ctx if sample_tokens is None else sample_tokens
        # In this model's own numbers: those of the inner one are shifted by the lyrics.
        check_request(
            n_samples, prompt, total, n_ctx=self.n_ctx, bins=self.l_bins, chunk_size=chunk_size, out=out, preds=preds
        )
        dtype, device = dtype_of(precision), self.autoregressive.positions.device
        # Everything that is in one mode or the other happens here; decoding has no dropout.
        with self._evaluating():
            prompt = None if prompt is None else prompt.to(device)
            tokens, arguments = self._sampling_inputs(n_samples, prompt, upper_codes, labels, dtype)
        before, shift = (self.n_tokens, self._shift) if self._shift else (0, 0)
        shape = (n_samples, before + total)
        inner = out if out is not None and not shift else torch.zeros(shape, dtype=torch.int64, device=device)
        inner_preds = preds
        if shift and preds is not None:
            inner_preds = preds.new_zeros((*shape, shift + self.l_bins))
        written, shown = -1, 0
        for done in self.autoregressive.sample_steps(
            n_samples,
            prompt=tokens,
            **arguments,
            sample_tokens=before + total,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            chunk_size=chunk_size,
            generators=generators,
            dtype=dtype,
            quantize=quantize,
            lowest=0 if self.config.draw_lyric_ids else shift,
            fast=fast,
            out=inner,
            preds=inner_preds,
        ):
            if shift and out is not None:
                # Only where lyric ids may be drawn is there anything below a code's range; it is given as code 0.
                new = slice(max(written, 0), done - before)
                out[:, new] = (inner[:, before:][:, new] - shift).clamp_min(0)
            if shift and preds is not None and inner_preds is not None and written >= 0:
                # The prompt's are there from the second turn on.
                preds[:, shown : done - before] = inner_preds[:, before + shown : done, shift:]
                shown = done - before
            written = done - before
            yield written
        if shift and preds is not None and inner_preds is not None:
            preds[:, shown:] = inner_preds[:, before + shown :, shift:]

    @torch.no_grad()
    def sample(
        self,
        n_samples: int,
        *,
        prompt: Tensor | None = None,
        upper_codes: Tensor | None = None,
        labels: Tensor | None = None,
        sample_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        chunk_size: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        precision: str | torch.dtype = "fp32",
        quantize: str = "",
        fast: bool = True,
        on_token: Callable[[int], None] | None = None,
        preds: Tensor | None = None,
    ) -> Tensor:
        """Draw a window of codes, as :meth:`AutoregressiveModel.sample` does.

        Args:
            prompt: [n_samples, p] int64, the codes that the window begins with.
            upper_codes: [n_samples, n_ctx / cond_downsample] int64, the codes above the whole window (not at the top).
            labels: [n_samples, label_width] int64, of this window; none in a prior without labels. With ``copy_input``
                its lyric tokens are codes.
            sample_tokens: length of the result, the prompt included; None is ``n_ctx``.
            precision: ``fp32``, ``bf16`` or ``fp16``, of the transformers and their caches.
            quantize: ``int8`` keeps the weights of the layers and of the output in 8 bits; empty: as they are.
            on_token: called with the number of valid codes after the prompt and after each step.
            preds: [n_samples, sample_tokens, l_bins] float32, filled with the codes' logits.

        Returns:
            [n_samples, sample_tokens] int64, codes only.
        """
        total = self.n_ctx if sample_tokens is None else sample_tokens
        shape = (max(n_samples, 0), max(total, 0))
        out = torch.zeros(shape, dtype=torch.int64, device=self.autoregressive.positions.device)
        for done in self.sample_steps(
            n_samples,
            prompt=prompt,
            upper_codes=upper_codes,
            labels=labels,
            sample_tokens=sample_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            chunk_size=chunk_size,
            generators=generators,
            precision=precision,
            quantize=quantize,
            fast=fast,
            out=out,
            preds=preds,
        ):
            if on_token is not None:
                on_token(done)
        return out

    def window_of(self, codes_by_level: Sequence[Tensor], start: int, end: int) -> Tensor | None:
        """The codes above the window ``[start, end)`` of this level: [N, n_ctx / cond_downsample], or None at the top.

        Args:
            codes_by_level: codes of all levels, finest first, each [N, T_l]; only those of the level above are read.
            start, end: in this level's codes.

        Raises:
            UserError: the window doesn't begin and end between codes of the level above, isn't ``n_ctx`` long,
                or reaches beyond what the level above has.
        """
        if self.cond_downsample is None:
            return None
        step = self.cond_downsample
        if start % step or end % step:
            raise UserError(
                f"the window {start} to {end} of level {self.level} doesn't line up with level {self.level + 1}:"
                f" both ends must be multiples of {step}"
            )
        if start < 0 or end - start != self.n_ctx:
            raise UserError(f"the window {start} to {end} of level {self.level} must hold n_ctx = {self.n_ctx} codes")
        above = codes_by_level[self.level + 1]
        if above.shape[1] < end // step:
            raise UserError(
                f"level {self.level + 1} has {above.shape[1]} codes: the window {start} to {end} of level {self.level}"
                f" needs {end // step}, so sample level {self.level + 1} further first"
            )
        return above[:, start // step : end // step]

    # ------------------------------------------------------------------------------------------------- alignment

    def lyric_heads(self) -> list[tuple[int, int]]:
        """All (layer, head) by which every position of the music attends to every lyric token, in order.

        These are the layers that read an encoder's output, or the lyrics that stand before the music, or the whole
        sequence. Empty without lyrics.
        """
        if not self.n_tokens:
            return []
        functions = self.autoregressive.transformer.funcs
        reading = _READS_LYRICS if self._shift else _READS_LYRICS[:1]
        return [(layer, head) for layer, f in enumerate(functions) if f in reading for head in range(self.config.heads)]

    @torch.no_grad()
    def lyric_attention(
        self,
        codes: Tensor,
        labels: Tensor,
        upper_codes: Tensor | None = None,
        *,
        wanted: Sequence[tuple[int, int]],
        precision: str | torch.dtype = "fp32",
    ) -> Tensor:
        """Softmax weights from each code of a window to each of its lyric tokens.

        A weight is a share of all that its position attends to, so a row adds up to 1 in an encoder's layers, and to
        less where the music is attended to as well. Memory grows with what is wanted, not with depth.

        Args:
            codes: [N, n_ctx] int64.
            labels: [N, label_width] int64, of this window.
            upper_codes: as in :meth:`forward`.
            wanted: (layer, head) pairs of :meth:`lyric_heads`.

        Returns:
            [len(wanted), N, n_ctx, n_tokens] float32.

        Raises:
            UserError: the prior reads no lyrics, or a pair is none of :meth:`lyric_heads`.
        """
        heads = self.lyric_heads()
        for pair in wanted:
            if tuple(pair) not in heads:
                layers = ", ".join(map(str, sorted({layer for layer, _ in heads})))
                known = f"layers {layers} do, heads 0 to {self.config.heads - 1}" if heads else "no layer of it does"
                raise UserError(f"layer {pair[0]}, head {pair[1]} does not attend from music to lyrics: {known}")
        dtype = dtype_of(precision)
        with self._evaluating():
            codes = codes.to(self.autoregressive.positions.device)
            tokens, _, arguments = self._whole_window(codes, upper_codes, labels, dtype)
            return self.autoregressive.attention(
                tokens,
                wanted=wanted,
                first_query=self.n_tokens if self._shift else 0,
                keys=self.n_tokens,
                **arguments,
                dtype=dtype,
            )

    def cost(self, precision: str | torch.dtype = "fp32") -> dict[str, float]:
        """What the model costs, averaged over a window: the transformer's figures, the embeddings', the output layer's.

        Returns:
            ``parameters``; ``operations_per_token`` of a forward pass for each code of the window, the shares of the
            conditioner, the lyrics and their encoder included (a multiplication and an addition count as two; training
            costs three times as many); ``bytes_per_decoded_token``, what one new code of one item reads;
            ``cache_bytes_per_token`` and ``cache_bytes`` of an item.
        """
        model = self.autoregressive
        cost = dict(model.transformer.cost(dtype_of(precision)))
        head = model.output_weight
        positional = self.conditioner is not None or self.label_conditioner is not None
        rows = (3 if positional else 2) * model.width  # token, position, condition
        cost["parameters"] = sum(parameter.numel() for parameter in self.parameters())
        cost["operations_per_token"] += 2.0 * head.numel()
        cost["operations_per_token"] *= model.n_ctx / self.n_ctx  # lyrics in the sequence are computed for the codes
        cost["cache_bytes_per_token"] *= model.n_ctx / self.n_ctx
        cost["bytes_per_decoded_token"] += 4.0 * (head.numel() + rows)  # float32 whatever the transformer computes in
        if self.conditioner is not None:
            cost["operations_per_token"] += self.conditioner.operations_per_token()
        if self.lyric_encoder is not None:
            crossing = sum(
                layer.attention.key_value.weight.numel() for layer in model.transformer.stack if layer.attention.crosses
            )
            output = self.lyric_encoder.output.weight.numel()
            # The transformer's own figure leaves out what is computed once a lyric token instead of once a code.
            lyrics = self.lyric_encoder.operations() + 2.0 * self.n_tokens * (crossing + output)
            cost["operations_per_token"] += lyrics / self.n_ctx
        return cost
