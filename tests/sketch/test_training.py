"""Training: k-means start, averages, revival, going on, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from songbloom.errors import UserError
from songbloom.sketch.codebook import load_codebook
from songbloom.sketch.quantiser import Quantiser, perplexity
from songbloom.sketch.tokeniser import SketchTokeniser, load_tokeniser
from songbloom.sketch.training import SketchVQ, SketchVQConfig
from tests.sketch.tiny import muq_features, sound, trainer


def _clusters(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows around eight centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.randn(8, 6, generator=torch.Generator().manual_seed(99))
    which = torch.randint(8, (rows,), generator=generator)
    return centres[which] + 0.1 * torch.randn(rows, 6, generator=generator), centres


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_k_means_finds_clusters(distance: str) -> None:
    quantiser = Quantiser(32, 6, distance=distance, start_rows=150, start_rounds=15, seed=1).train()
    for step in range(3):
        rows, centres = _clusters(60, step)
        rows = quantiser.project(rows)
        codes, vectors, numbers = quantiser(rows)
        if step < 2:
            assert not quantiser.ready and (codes == -1).all() and torch.equal(vectors, rows) and not numbers
    assert quantiser.ready and not quantiser.waiting
    for step in range(60):
        _, _, numbers = quantiser(quantiser.project(_clusters(120, 10 + step)[0]))
    distances = torch.cdist(quantiser.project(centres), quantiser.vectors)
    assert distances.amin(dim=1).max() < 0.2 and numbers["error"] < 0.02
    assert numbers["usage"] > 0.8 and 8 < numbers["perplexity"] <= 32


def test_averages_follow_the_definition() -> None:
    quantiser = Quantiser(3, 2, distance="euclidean", decay=0.8, start_rows=3, start_rounds=0, revival=0.0).train()
    quantiser(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    vectors, uses, sums = quantiser.vectors.clone(), quantiser.uses.clone(), quantiser.sums.clone()
    rows = torch.tensor([[1.0, 0.0], [9.0, 1.0], [2.0, 1.0], [1.0, 8.0]])
    codes, looked_up, _ = quantiser(rows)
    assert torch.equal(codes, torch.cdist(rows, vectors).argmin(dim=1)) and torch.equal(looked_up, vectors[codes])
    for code in range(3):
        mine = rows[codes == code]
        wanted_uses = 0.8 * uses[code] + 0.2 * len(mine)
        wanted = (0.8 * sums[code] + 0.2 * mine.sum(dim=0)) / wanted_uses
        torch.testing.assert_close(quantiser.uses[code], wanted_uses)
        torch.testing.assert_close(quantiser.vectors[code], wanted)


def test_dead_codes_start_again_among_the_rows() -> None:
    quantiser = Quantiser(8, 6, distance="euclidean", decay=0.5, start_rows=60, revival=0.1).train()
    quantiser(_clusters(60)[0])
    with torch.no_grad():
        for part in (quantiser.vectors, quantiser.sums):
            part[:5] += 1000.0  # five codes that no row is near to
    lost = [quantiser(_clusters(60, 1 + step)[0])[2] for step in range(12)]
    assert sum(float(numbers["revived"]) for numbers in lost) >= 5
    assert quantiser.vectors.abs().max() < 100
    assert lost[-1]["perplexity"] > 5
    still = Quantiser(8, 6, distance="euclidean", decay=0.5, start_rows=60, revival=0.0).train()
    still(_clusters(60)[0])
    still.vectors[:5] += 1000.0
    still.sums[:5] += 1000.0 * still.uses[:5, None]
    for step in range(6):
        numbers = still(_clusters(60, 1 + step)[0])[2]
    assert numbers["revived"] == 0 and (still.vectors[:5] > 500).all()


def test_what_overflowed_is_not_learned_from() -> None:
    quantiser = Quantiser(8, 6, start_rows=60).train()
    quantiser(quantiser.project(torch.full((60, 6), float("nan"))))
    assert not quantiser.ready and not quantiser.waiting
    quantiser(quantiser.project(_clusters(60)[0]))
    before = quantiser.state()
    quantiser(torch.full((5, 6), float("nan")))
    assert torch.equal(quantiser.sums, before["sums"]) and torch.equal(quantiser.uses, before["uses"])
    assert quantiser.vectors.isfinite().all()


def test_perplexity_counts_even_use() -> None:
    assert perplexity(torch.ones(16)).item() == pytest.approx(16, rel=1e-5)
    assert perplexity(torch.tensor([5.0, 0, 0, 0])).item() == pytest.approx(1, rel=1e-5)


def _steps(model: SketchVQ, optimiser: torch.optim.Optimizer, first: int, last: int) -> list[dict[str, Tensor]]:
    made = []
    for step in range(first, last):
        loss, numbers = model(sound(3, 1.0, model.sample_rate, seed=step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        made.append({"loss": loss.detach(), **numbers})
    return made


def _adam(model: SketchVQ) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def test_built_in_features_learn_with_the_codebook(tmp_path: Path) -> None:
    model = trainer(sketch_codes=32)
    numbers = _steps(model, _adam(model), 0, 60)
    assert [float(n["started"]) for n in numbers[:3]] == [0.0, 1.0, 1.0]  # 75 frames a step, 100 wanted
    assert numbers[-1]["shape_error"] < 0.6 * numbers[0]["shape_error"]
    assert numbers[-1]["pitch_error"] < 0.8 * numbers[0]["pitch_error"]
    assert numbers[-1]["perplexity"] > 8 and numbers[-1]["usage"] > 0.5
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    model.eval()
    _, told = model(sound(2, 1.0, 8000, seed=999))
    assert {"shape_error", "pitch_error", "melody", "error", "perplexity"} <= set(told)
    model.codebook().save(tmp_path / "book.pt")
    tokeniser = load_tokeniser(tmp_path / "book.pt", size=32)
    audio = sound(2, 3.0, 8000, seed=1000)
    codes = tokeniser.encode(audio, 8000)
    assert codes.shape == (2, 75) and len(codes.unique()) > 3
    assert load_codebook(tmp_path / "book.pt").trained["steps"] == 60
    # What training quantises to is what the file gives.
    rows = model.quantiser.project(model.features.extract(audio, 8000)).flatten(0, 1)
    assert torch.equal(model.quantiser(rows)[0].view(2, 75), codes)
    # Loudness isn't heard: nearly all codes stay.
    assert (tokeniser.encode(0.5 * audio, 8000) == codes).float().mean() > 0.7


def test_the_codebook_waits_for_the_features() -> None:
    model = trainer(sketch_start_step=3)
    numbers = _steps(model, _adam(model), 0, 6)
    assert [float(n["started"]) for n in numbers] == [0, 0, 0, 0, 1, 1]
    frozen = trainer(muq_features(), sketch_start_step=3)
    assert [float(n["started"]) for n in _steps(frozen, _adam(frozen), 0, 2)] == [0, 1]


def test_eval_mode_learns_nothing() -> None:
    model = trainer()
    _steps(model, _adam(model), 0, 3)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again = model(sound(2, 1.0, 8000))[0], model(sound(2, 1.0, 8000))[0]
    assert torch.equal(first, again) and model.steps == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_frozen_features_stay_and_are_normalised(tmp_path: Path) -> None:
    features = muq_features()
    model = trainer(features)
    weights = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    numbers = _steps(model, _adam(model), 0, 12)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in features.state_dict().items())
    assert not any(name.startswith("model.") or "conformer" in name for name in model.state_dict())
    heard = features.extract(sound(3, 1.0, 24000, seed=0), 24000).flatten(0, 1)
    torch.testing.assert_close(model.mean, heard.mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.std, heard.std(dim=0, correction=0), atol=1e-5, rtol=1e-3)
    assert 0 < numbers[-1]["error"] < 1
    book = model.codebook()
    assert (book.distance, book.normalisation, book.state) == ("euclidean", "standard", None)
    book.save(tmp_path / "book.pt")
    codes = SketchTokeniser(features, load_codebook(tmp_path / "book.pt")).encode(sound(1, 2.0, 48000, 2), 48000)
    assert codes.shape == (1, 50) and len(codes.unique()) > 2


@pytest.mark.parametrize("stop", [1, 4])
def test_stopped_and_resumed_is_undisturbed(stop: int, tmp_path: Path) -> None:
    """Before the k-means start, with rows still waiting, and after it."""
    whole = trainer(sketch_start_rows=200)
    _steps(whole, _adam(whole), 0, 7)
    first = trainer(sketch_start_rows=200)
    optimiser = _adam(first)
    _steps(first, optimiser, 0, stop)
    content = {"model": first.state_dict(), "codebook": first.codebook_state(), "optimizer": optimiser.state_dict()}
    torch.save(content, tmp_path / "c.pt")
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    second = trainer(sketch_start_rows=200)
    second.load_state_dict(content["model"])
    second.load_codebook_state(content["codebook"])
    optimiser = _adam(second)
    optimiser.load_state_dict(content["optimizer"])
    _steps(second, optimiser, stop, 7)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert torch.equal(whole.quantiser.sums, second.quantiser.sums)


def test_mistakes_are_told() -> None:
    model = trainer()
    with pytest.raises(UserError, match=r"has not started: 0 of 100 frames"):
        model.codebook()
    with pytest.raises(UserError, match="no frame of 40 ms"):
        model(torch.zeros(1, 100, 1))
    with pytest.raises(UserError, match="built-in features are made here"):
        SketchVQ(SketchVQConfig(sketch_features="muq"))
    state = trainer(sketch_codes=8).codebook_state()
    with pytest.raises(UserError, match=r"sketch codebook of \[8, 104\]"):
        model.load_codebook_state(state)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sketch_normalisation": "max"}, "sketch_normalisation"),
        ({"sketch_distance": "taxi"}, "sketch_distance"),
        ({"sketch_codes": 1}, "at least 2"),
        ({"sketch_decay": 1.0}, "sketch_decay is 1.0"),
        ({"sketch_commit": -1}, "sketch_commit"),
        ({"sample_length": 10}, "no frame of 40 ms"),
    ]
    for change, told in wrong:
        with pytest.raises(UserError, match=told):
            trainer(**change)
