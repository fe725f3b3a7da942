"""``jukebox_e2e_sampling*``: a codec and its priors writing whole songs, in every mode, and which words they sing when.

All runs are greedy: temperature 0 takes the likeliest code, so every code has to be the very one.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from songbloom.data.label_tables import LabelTables, parse_table
from songbloom.data.labels import Labeller, Labels
from songbloom.lyrics.vocabulary import vocabulary
from songbloom.prior.prior import Prior, PriorConfig
from songbloom.published.jukebox import prior as published_prior
from songbloom.published.jukebox import vqvae as published_vqvae
from songbloom.sampling import heads, prompts, sampler, windows
from songbloom.sampling.run import DATA
from songbloom.training.tasks import halve_matrices
from songbloom.vqvae.vqvae import VQVAE, VQVAEConfig
from tests.golden.report import Golden

AUDIO = 1e-4  # of the standard deviation
ATTENTION = {"abs": 2e-5, "rel": 1e-5}
MODES = ("ancestral", "primed", "upsample", "continue")


class Case:
    """One file: the whole model with its drawn weights, its labels and how each level is sampled."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.length, self.items = golden.given("sample_length"), golden.given("n_samples")
        self.vqvae = self._codec()
        self.hps = golden.given("prior_hps")
        self.priors = [self._prior(level) for level in range(len(self.hps))]
        self.labellers, self.labels = self._labels()
        settings = zip(*(golden.given(key) for key in ("hop_fraction", "max_batch_sizes", "chunk_sizes")), strict=True)
        self.settings = {
            level: sampler.LevelSettings(
                temperature=0.0, hop_fraction=hop_fraction, max_batch_size=largest, chunk_size=chunk
            )
            for level, (hop_fraction, largest, chunk) in enumerate(settings)
        }

    def _codec(self) -> VQVAE:
        hps, state = self.golden.given("vqvae_hps"), self.golden.given("vqvae")
        hop = math.prod(stride**down for stride, down in zip(hps["strides_t"], hps["downs_t"], strict=True))
        defaults = {"channels": 1, "sample_length": self.length // hop * hop}
        vqvae = VQVAE(VQVAEConfig.from_hps({**defaults, **hps})).eval()
        assert published_vqvae.is_published(state)
        vqvae.load_state_dict(published_vqvae.from_published(state), strict=True)
        back = published_vqvae.to_published(vqvae.state_dict())
        assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
        return vqvae

    def _prior(self, level: int) -> Prior:
        hps, state = self.hps[level], self.golden.given("priors", level)
        # The files hold what the published sampler draws, which is a lyric token's id now and then.
        config = PriorConfig.from_hps({"level": level, **hps, "draw_lyric_ids": True})
        codec = SimpleNamespace(
            levels=self.vqvae.levels,
            l_bins=self.vqvae.l_bins,
            downsamples=self.vqvae.downsamples,
            hop_lengths=self.vqvae.hop_lengths,
            z_shapes=self.vqvae.z_shapes,
        )
        prior = Prior(config, codec).eval()
        if hps.get("fp16_params"):
            halve_matrices(prior)
        prior.load_state_dict(published_prior.from_published(state, tied=not hps.get("merged_decoder")), strict=True)
        return prior

    def _labels(self) -> tuple[dict[int, Labeller], dict[int, Labels]]:
        """What each level's prior is told, held against the file's own label vectors."""
        golden, metas = self.golden, self.golden.given("metas")
        tables = {
            version: LabelTables(
                version, *(parse_table(golden.given("id_lists", f"v{version}_{kind}")) for kind in ("artist", "genre"))
            )
            for version in (2, 3)
            if golden.has("id_lists", f"v{version}_artist")
        }
        labellers, labels = {}, {}
        for prior, hps in zip(self.priors, self.hps, strict=True):
            if not prior.label_width:
                if golden.has("y", prior.level):
                    golden.given("y", prior.level)  # None, or of width 0
                continue
            version = 3 if hps.get("labels_v3") else 2
            labeller = Labeller(
                tables[version],
                vocabulary(f"v{version}"),
                max_bow_genre_size=hps["max_bow_genre_size"],
                n_tokens=prior.n_tokens,
                sample_length=prior.sample_length,
                sr=hps.get("sr", 44100),
                wordless=prior.config.copy_input,
                notice=lambda line: None,
            )
            asked = [metas[item % len(metas)] for item in range(self.items)]
            labellers[prior.level], labels[prior.level] = labeller, labeller.batch(asked)
            golden.expect("y", prior.level, got=labels[prior.level].y, name="y")
        return labellers, labels

    def windows_of(self, level: int) -> sampler.Labels | None:
        """The label vectors of a level's windows, as :class:`songbloom.sampling.labelling.LevelLabels` gives them."""
        if level not in self.labels:
            return None
        labeller, labels, prior = self.labellers[level], self.labels[level], self.priors[level]
        return lambda start, part: labeller.shifted(labels[part], start, prior)[0]

    def sampled(self, codes: list[Tensor], levels: range, changes: dict[str, Any]) -> list[Tensor]:
        """All levels' codes once ``levels`` are written."""
        totals = {level: self.length // self.vqvae.hop_lengths[level] for level in levels}
        seeds = sampler.item_seeds(0, range(self.items))
        settings = {level: replace(each, **changes) for level, each in self.settings.items()}
        labels = {level: found for level in levels if (found := self.windows_of(level)) is not None}
        short = [level for level in levels if totals[level] < self.priors[level].n_ctx and codes[level].shape[1]]
        if not short:
            return sampler.sample(self.priors.__getitem__, codes, totals, settings, seeds=seeds, labels=labels)
        # The published sampler asks its only, partial window for `total` codes more, prompt or no prompt.
        codes = list(codes)
        for level in reversed(levels):
            prior, have = self.priors[level], codes[level].shape[1]
            common: dict[str, Any] = {"seeds": seeds, "labels": labels.get(level)}
            if level in short:
                window = windows.partial_window(have, totals[level], prior.n_ctx)
                new = sampler.sample_window(prior, codes, window, settings[level], **common)
                codes[level] = torch.cat([codes[level], new], dim=1)
            else:
                codes[level] = sampler.sample_level(prior, codes, totals[level], settings[level], **common)
        return codes

    # ------------------------------------------------------------------------------------------------- the modes

    def beginning(self, mode: str) -> tuple[list[Tensor], range]:
        """Codes that a mode starts from, and the levels that it writes."""
        golden, levels = self.golden, range(self.vqvae.levels)
        if mode == "primed":
            samples = golden.given(mode, "prompt_samples")
            sound = golden.given("x_prompt")
            return self.vqvae.encode(sound[:, :samples], bs_chunks=len(sound)), levels
        if mode == "upsample":
            codes = prompts.empty_codes(self.items, self.vqvae.levels)
            codes[-1] = golden.given(mode, "top")
            return codes, levels[:-1]
        if mode == "continue":
            before = golden.look("ancestral", "zs")
            return prompts.cut(before, golden.given(mode, "cut_samples"), self.vqvae.hop_lengths), levels
        return prompts.empty_codes(self.items, self.vqvae.levels), levels

    def check_mode(self, mode: str) -> None:
        golden = self.golden
        codes, levels = self.beginning(mode)
        ways: dict[str, dict[str, Any]] = {"": {}}
        if mode == "ancestral":
            ways[" (whole prompts, all items)"] = {"max_batch_size": self.items, "chunk_size": None}
        for way, changes in ways.items():
            written = self.sampled(codes, levels, changes)
            golden.expect(mode, "zs", got=written, name=f"{mode}.zs{way}")
        want = golden.look(mode, "x_level0")
        audio = self.vqvae.decode(written, 0, bs_chunks=self.items)
        golden.expect(mode, "x_level0", got=audio, abs=AUDIO * float(want.std()), name=f"{mode}.x_level0")
        pieces = list(self.vqvae.decode_pieces(written, 0, piece=17))
        golden.expect(
            mode, "x_level0", got=torch.cat(pieces, dim=1), abs=AUDIO * float(want.std()), name=f"{mode}.x in pieces"
        )
        self.check_files(mode, levels)

    def check_files(self, mode: str, levels: range) -> None:
        """The files that every program of this family writes a run to; each has pages of its own besides."""
        golden = self.golden
        golden.given(mode, "min_margin")
        names = [DATA, "index.html", *(f"item_{item}.wav" for item in range(self.items))]
        files = set(golden.given(mode, "files"))
        assert {f"level_{level}/{name}" for level in levels for name in names} <= files, sorted(files)
        assert {"zs", "labels", "sampling_kwargs"} <= set(golden.given(mode, "data_keys"))

    # ----------------------------------------------------------------------------------------------- alignment

    def check_alignment(self) -> None:
        """The matrices of the ancestral run's top level."""
        golden, level = self.golden, self.vqvae.levels - 1
        prior, hps = self.priors[level], self.hps[level]
        if not golden.look("alignment"):
            golden.given("alignment")
            return
        head = hps["alignment_layer"], hps["alignment_head"]
        codes, labels = golden.look("ancestral", "zs", level), self.labels[level]
        hop = int(self.settings[level].hop_fraction * prior.n_ctx)
        for item in range(self.items):
            ((_, matrix),) = heads.matrices(
                prior, self.labellers[level], codes[item], labels[item : item + 1], [head], hop=hop
            )
            golden.expect("alignment", item, got=torch.from_numpy(matrix), name="alignment", **ATTENTION)


def check(golden: Golden) -> None:
    case = Case(golden)
    for mode in MODES:
        if golden.has(mode):
            case.check_mode(mode)
    golden.given("x_prompt")
    if golden.has("alignment"):
        case.check_alignment()


CHECKS = {"jukebox_e2e_sampling": check}
