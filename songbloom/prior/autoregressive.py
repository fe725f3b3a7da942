"""The autoregressive model over tokens: embeddings, a transformer, an output layer, and sampling from it.

Source: Dhariwal et al. 2020, *Jukebox: A Generative Model for Music*, section 4 and appendix B.2; the transformer is
the scalable variant of Child et al. 2019, *Generating Long Sequences with Sparse Transformers*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.prior.draws import Noise, check_sampling, draw_with, item_generators
from songbloom.prior.losses import linear_cross_entropy
from songbloom.prior.steppers import Given, Prepared, stepper_for
from songbloom.transformer.blocks import Transformer, TransformerConfig
from songbloom.transformer.lora import effective_weight
from songbloom.transformer.quantized import check_quantize

CHUNK_SIZE = 1024  # positions of a prompt fed at once: enough for full speed, and dense attention stays small


def sinusoids(length: int, width: int) -> Tensor:
    """``[length, width]`` sines and cosines of wavelengths from 2π to 20000π positions, of mean square 1.

    Source: Vaswani et al. 2017, *Attention Is All You Need*, section 3.5.
    """
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    pairs = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return (math.sqrt(2) * pairs.flatten(1)[:, :width]).float()


def _loss_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of the output layer's products in the loss.

    Published half-precision models keep the output layer in float32, so float16 does here. In bfloat16, whose range
    is float32's, the products are a good part of a small model's step and their rounding is that of every other layer.
    Logits that are handed out or drawn from are float32 products in any case.
    """
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def check_request(
    n_samples: int,
    prompt: Tensor | None,
    total: int,
    *,
    n_ctx: int,
    bins: int,
    chunk_size: int | None,
    out: Tensor | None,
    preds: Tensor | None,
) -> int:
    """The prompt's length, after all that can be wrong with a request to a model of ``n_ctx`` tokens of ``bins`` kinds
    has been looked at; the other arguments are those of :meth:`AutoregressiveModel.sample_steps`.

    Raises:
        UserError: names what cannot be met.
    """
    if n_samples < 1:
        raise UserError(f"n_samples is {n_samples}: at least 1 item must be sampled")
    if not 0 < total <= n_ctx:
        raise UserError(f"sample_tokens is {total}: it must be between 1 and n_ctx = {n_ctx}")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}: at least 1 position must be fed at once")
    for name, given, shape in (("out", out, [n_samples, total]), ("preds", preds, [n_samples, total, bins])):
        if given is not None and list(given.shape) != shape:
            raise UserError(f"{name} has shape {list(given.shape)} instead of {shape}")
    if prompt is None:
        return 0
    if prompt.ndim != 2 or len(prompt) != n_samples:
        raise UserError(f"a prompt of shape {list(prompt.shape)} for {n_samples} samples: it must be [{n_samples}, p]")
    if prompt.shape[1] > total:
        raise UserError(f"the prompt has {prompt.shape[1]} tokens, more than the {total} to be sampled")
    if prompt.numel():
        lowest, highest = int(prompt.min()), int(prompt.max())
        if lowest < 0 or highest >= bins:
            raise UserError(f"the prompt holds codes from {lowest} to {highest}: this model knows 0 to {bins - 1}")
    return prompt.shape[1]


class AutoregressiveModel(nn.Module):
    """p(token t | tokens before t, conditions), for sequences of ``n_ctx`` tokens of ``bins`` kinds.

    Args:
        transformer: width, context length, depth and so on; its ``init_scale`` also scales the embeddings.
        bins: size of the vocabulary.
        y_cond: each sequence begins with a given vector (the labels) in the place of the learned start token.
        merged_decoder: the output layer has its own weights and ``x_cond`` is added only before the transformer;
            otherwise the output layer is the embedding's table, and ``x_cond`` is added after the transformer as well.
        only_encode: no output layer: the model gives hidden states (an encoder of lyrics).
        emb_dropout: dropout of the embeddings.
        pos_init: start the position embedding as sinusoids, of the same size as its random start.
    """

    def __init__(
        self,
        transformer: TransformerConfig,
        *,
        bins: int,
        y_cond: bool = False,
        merged_decoder: bool = False,
        only_encode: bool = False,
        emb_dropout: float = 0.0,
        pos_init: bool = False,
    ) -> None:
        super().__init__()
        width, scale = transformer.width, transformer.init_scale
        self.bins, self.width, self.n_ctx = bins, width, transformer.n_ctx
        self.merged_decoder, self.only_encode = merged_decoder, only_encode
        self.embedding = nn.Embedding(bins, width)
        nn.init.normal_(self.embedding.weight, std=0.02 * scale)
        self.positions = nn.Parameter(torch.empty(self.n_ctx, width))
        if pos_init:
            with torch.no_grad():
                self.positions.copy_(0.01 * scale * sinusoids(self.n_ctx, width))
        else:
            nn.init.normal_(self.positions, std=0.01 * scale)
        self.start: nn.Parameter | None = None
        if not y_cond:
            self.start = nn.Parameter(torch.empty(1, width))
            nn.init.normal_(self.start, std=0.01 * scale)
        self.dropout = nn.Dropout(emb_dropout)
        self.transformer = Transformer(transformer)
        self._prepared = Prepared()
        self.output: nn.Linear | None = None
        if merged_decoder and not only_encode:
            self.output = nn.Linear(width, bins, bias=False)

    @property
    def output_weight(self) -> Tensor:
        """[bins, width]: the output layer's weights, which may be the embedding's."""
        if self.only_encode:
            raise RuntimeError("an encoder has no output layer")
        return effective_weight(self.embedding if self.output is None else self.output)

    def _start(self, batch: int, y_cond: Tensor | None) -> Tensor:
        """What stands before the first token: [N, 1, W]."""
        if self.start is None:
            if y_cond is None:
                raise RuntimeError("this model was built with y_cond, so it needs one [N, 1, W]")
            return y_cond
        if y_cond is not None:
            raise RuntimeError("this model was built without y_cond, so it takes none")
        return self.start.expand(batch, 1, -1)

    def _inputs(self, tokens: Tensor, x_cond: Tensor | None, y_cond: Tensor | None) -> Tensor:
        """What the transformer is fed: [N, n_ctx, W]."""
        if tokens.ndim != 2 or tokens.shape[1] != self.n_ctx:
            raise UserError(f"tokens of shape {list(tokens.shape)}: this model takes [batch, {self.n_ctx}]")
        x = torch.cat([self._start(len(tokens), y_cond), self.embedding(tokens[:, :-1])], dim=1)
        x = self.dropout(x) + self.dropout(self.positions)
        return x if x_cond is None else x + x_cond

    def hidden(
        self,
        tokens: Tensor,
        *,
        x_cond: Tensor | None = None,
        y_cond: Tensor | None = None,
        encoder_kv: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """What the output layer sees: ``tokens`` [N, n_ctx] int64 → [N, n_ctx, W] float32.

        Args:
            x_cond: [N, n_ctx, W] or [N, 1, W], added at each position.
            y_cond: [N, 1, W], the beginning of the sequence.
            encoder_kv: [N, encoder_dims, W], read by the layers of attention function 6.
            dtype: in which the transformer computes; None is float32.
        """
        x = self.transformer(self._inputs(tokens, x_cond, y_cond), encoder_kv, dtype=dtype)
        return x if x_cond is None or self.merged_decoder or self.only_encode else x + x_cond

    def logits(
        self,
        tokens: Tensor,
        *,
        x_cond: Tensor | None = None,
        y_cond: Tensor | None = None,
        encoder_kv: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Predictions for all positions, each from the tokens before it: [N, n_ctx, bins] float32."""
        hidden = self.hidden(tokens, x_cond=x_cond, y_cond=y_cond, encoder_kv=encoder_kv, dtype=dtype)
        return F.linear(hidden, self.output_weight.float())

    def forward(
        self,
        tokens: Tensor,
        *,
        x_cond: Tensor | None = None,
        y_cond: Tensor | None = None,
        encoder_kv: Tensor | None = None,
        weights: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss in bits.

        Args:
            weights: [n_ctx], how much each position counts; None counts all alike, which is bits per token.
            (the others as in :meth:`hidden`)

        Returns:
            The mean over the batch of ``sum(weights * bits)``, and ``bits`` [N, n_ctx], without a gradient.
        """
        hidden = self.hidden(tokens, x_cond=x_cond, y_cond=y_cond, encoder_kv=encoder_kv, dtype=dtype)
        if weights is None:
            weights = hidden.new_full((self.n_ctx,), 1 / self.n_ctx)
        loss, bits = linear_cross_entropy(
            hidden.flatten(0, 1),
            self.output_weight,
            tokens.flatten(),
            (weights.float() / len(tokens)).repeat(len(tokens)),
            dtype=_loss_dtype(dtype),
        )
        return loss, bits.view_as(tokens)

    @torch.no_grad()
    def attention(
        self,
        tokens: Tensor,
        *,
        wanted: Sequence[tuple[int, int]],
        first_query: int,
        keys: int,
        x_cond: Tensor | None = None,
        y_cond: Tensor | None = None,
        encoder_kv: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Softmax weights of chosen layers and heads, as :meth:`Transformer.head_weights` gives them.

        Args:
            wanted, first_query, keys: which of them.
            (the others as in :meth:`hidden`)

        Returns:
            [len(wanted), N, n_ctx - first_query, keys] float32.
        """
        x = self._inputs(tokens, x_cond, y_cond)
        return self.transformer.head_weights(
            x, encoder_kv, wanted=wanted, first_query=first_query, keys=keys, dtype=dtype
        )

    # ------------------------------------------------------------------------------------------------- sampling

    @torch.inference_mode()
    def sample_steps(
        self,
        n_samples: int,
        *,
        prompt: Tensor | None = None,
        x_cond: Tensor | None = None,
        y_cond: Tensor | None = None,
        encoder_kv: Tensor | None = None,
        sample_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        chunk_size: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        dtype: torch.dtype = torch.float32,
        quantize: str = "",
        lowest: int = 0,
        fast: bool = True,
        out: Tensor | None = None,
        preds: Tensor | None = None,
    ) -> Generator[int, None, None]:
        """Draw tokens one after the other, giving the caller a turn after each; the arguments are :meth:`sample`'s.

        Args:
            out: [n_samples, sample_tokens] int64, filled as it goes (the prompt first).
            preds: [n_samples, sample_tokens, bins] float32, filled with the logits before temperature and filters.

        Yields:
            How many positions of ``out`` are valid: the prompt's length at first, ``sample_tokens`` at the end.
        """
        total = self.n_ctx if sample_tokens is None else sample_tokens
        known = check_request(
            n_samples, prompt, total, n_ctx=self.n_ctx, bins=self.bins, chunk_size=chunk_size, out=out, preds=preds
        )
        check_sampling(temperature, top_k, top_p)
        check_quantize(quantize)
        generators = item_generators(n_samples, temperature, generators)
        tokens = out if out is not None else self.positions.new_empty((n_samples, total), dtype=torch.int64)
        if prompt is not None:
            tokens[:, :known] = prompt
        yield known
        if known == total and preds is None:
            return

        given = Given(
            self.transformer,
            effective_weight(self.embedding),
            self.positions,
            self.output_weight,
            n_samples,
            before=x_cond,
            after=None if self.merged_decoder else x_cond,
            encoder_kv=encoder_kv,
            dtype=dtype,
            quantize=quantize,
        )
        stepper = stepper_for(self, given, self._prepared, fast=fast)
        x = self._start(n_samples, y_cond)
        # Positions whose input is known before anything is drawn: the start and the prompt but for its last token.
        # The last token's own step is the first of the loop below.
        group = chunk_size or CHUNK_SIZE
        for begin in range(0, known, group):
            end = min(begin + group, known)
            inputs = self.embedding(tokens[:, max(begin - 1, 0) : end - 1])
            inputs = torch.cat([x, inputs], dim=1) if begin == 0 else inputs
            read = stepper.read(inputs, begin, wanted=preds is not None)
            if preds is not None and read is not None:
                preds[:, begin:end] = read
        noise = Noise(generators, self.bins, self.positions.device)
        drawn = tokens[:, known - 1].contiguous() if known else None
        for position in range(known, total):
            logits = stepper.first(x, position) if drawn is None else stepper.after(drawn, position)
            if preds is not None:
                preds[:, position] = logits
            if lowest:
                logits[:, :lowest] = float("-inf")
            drawn = draw_with(logits, noise, temperature=temperature, top_k=top_k, top_p=top_p)
            tokens[:, position] = drawn
            yield position + 1

    def sample(
        self,
        n_samples: int,
        *,
        prompt: Tensor | None = None,
        x_cond: Tensor | None = None,
        y_cond: Tensor | None = None,
        encoder_kv: Tensor | None = None,
        sample_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        chunk_size: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        dtype: torch.dtype = torch.float32,
        quantize: str = "",
        lowest: int = 0,
        fast: bool = True,
        on_token: Callable[[int], None] | None = None,
        preds: Tensor | None = None,
    ) -> Tensor:
        """Draw ``sample_tokens`` tokens an item, the prompt included.

        Args:
            n_samples: N, items drawn together.
            prompt: [N, p] int64, the beginning; None or p = 0 begins from nothing.
            x_cond, y_cond, encoder_kv: as in :meth:`hidden`.
            sample_tokens: length of the result, at most ``n_ctx``; None is ``n_ctx``.
            temperature: divides the logits; 0 takes the likeliest token and needs no generator.
            top_k: draw from the k likeliest tokens only; 0 is off.
            top_p: draw from the likeliest tokens that hold this much probability; 0 is off.
            chunk_size: positions of the prompt fed at once; None is :data:`CHUNK_SIZE`. Only memory and speed change.
            generators: one an item, so that an item's draws depend on its own generator alone; None seeds them
                0, 1, 2, …
            dtype: of the transformer and its caches.
            quantize: ``int8`` keeps the weights of the layers and of the output in 8 bits; empty: as they are.
            lowest: the lowest token that may be drawn; a prompt may hold any.
            fast: the fastest way there is here (:func:`songbloom.prior.steppers.stepper_for`); False is the plain path,
                the reference for the others, with weights as they are.
            on_token: called with the number of valid positions after the prompt and after each step.
            preds: [N, sample_tokens, bins] float32, filled with the logits before temperature and filters.

        Returns:
            [N, sample_tokens] int64.

        Raises:
            UserError: a request that cannot be met: shapes, ranges, settings.
        """
        total = self.n_ctx if sample_tokens is None else sample_tokens
        out = torch.zeros(n_samples, max(total, 0), dtype=torch.int64, device=self.positions.device)
        for done in self.sample_steps(
            n_samples,
            prompt=prompt,
            x_cond=x_cond,
            y_cond=y_cond,
            encoder_kv=encoder_kv,
            sample_tokens=sample_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            chunk_size=chunk_size,
            generators=generators,
            dtype=dtype,
            quantize=quantize,
            lowest=lowest,
            fast=fast,
            out=out,
            preds=preds,
        ):
            if on_token is not None:
                on_token(done)
        return out
