"""Codebooks: nearest codes against the definition, files, and every way in which one doesn't fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from songbloom.errors import UserError
from songbloom.sketch import codebook as module
from songbloom.sketch.builtin import BuiltinFeatures
from songbloom.sketch.codebook import SketchCodebook, load_codebook, nearest_codes
from songbloom.sketch.tokeniser import SketchTokeniser, load_tokeniser
from tests.sketch.tiny import SIZES, muq_features, sound


def _numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _book(**changes: object) -> SketchCodebook:
    features = muq_features()
    return SketchCodebook(**{"vectors": _numbers(20, 16), "features": features.identity(), **changes})  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(2, 40),
    st.integers(1, 9),
    st.sampled_from(["cosine", "euclidean"]),
    st.integers(0, 99),
)
def test_nearest_is_nearest(rows: int, codes: int, width: int, distance: str, seed: int) -> None:
    x, vectors = _numbers(rows, width, seed=seed).double(), _numbers(codes, width, seed=seed + 1).double()
    if distance == "cosine":
        reference = 1 - F.cosine_similarity(x[:, None], vectors[None], dim=2)
    else:
        reference = (x[:, None] - vectors[None]).square().sum(dim=2)
    found = nearest_codes(x, vectors, distance)
    best = reference.min(dim=1).values
    torch.testing.assert_close(reference.gather(1, found[:, None])[:, 0], best, atol=1e-9, rtol=1e-9)


def test_memory_is_bounded_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, vectors = _numbers(1000, 8), _numbers(64, 8, seed=1)
    whole = nearest_codes(x, vectors, "euclidean")
    held: list[int] = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: held.append(len(a) * b.shape[1]) or product(a, b))
    monkeypatch.setattr(module, "SIMILARITIES_AT_ONCE", {"cpu": 640})
    assert torch.equal(nearest_codes(x, vectors, "euclidean"), whole)
    assert max(held) <= 640 and len(held) == 100


def test_normalisations() -> None:
    features = 3 * _numbers(2, 5, 16) + 1
    mean, std = _numbers(16, seed=5), _numbers(16, seed=6).abs() + 0.1
    for name, wanted in (
        ("none", features),
        ("layer", (features - features.mean(-1, keepdim=True)) / features.std(-1, keepdim=True, correction=0)),
        ("standard", (features - mean) / std),
    ):
        book = _book(normalisation=name, mean=mean, std=std)
        torch.testing.assert_close(book.rows(features), wanted, atol=1e-4, rtol=1e-4)
        codes = book.encode(features)
        assert codes.dtype == torch.int64 and codes.shape == (2, 5)
        distances = (wanted[:, :, None] - book.vectors).square().sum(-1)
        torch.testing.assert_close(distances.gather(2, codes[..., None])[..., 0], distances.amin(-1))
        torch.testing.assert_close(book.decode(codes), book.vectors[codes])


@pytest.mark.parametrize("normalisation", ["none", "standard"])
def test_a_file_gives_back_the_same(tmp_path: Path, normalisation: str) -> None:
    mean, std = _numbers(16, seed=5), _numbers(16, seed=6).abs()
    standard = normalisation == "standard"
    book = _book(
        normalisation=normalisation,
        mean=mean if standard else None,
        std=std if standard else None,
        trained={"steps": 7},
    )
    book.save(tmp_path / "book.pt")
    back = load_codebook(tmp_path / "book.pt", size=20)
    assert back.digest == book.digest and back.trained == {"steps": 7}
    features = _numbers(1, 30, 16)
    assert torch.equal(back.encode(features), book.encode(features))


def test_a_digest_tells_what_decides_codes() -> None:
    book = _book()
    changed = book.vectors.clone()
    changed[3, 2] += 1e-6
    others = [
        replace(book, vectors=changed),
        replace(book, distance="cosine"),
        replace(book, normalisation="layer"),
        replace(book, features={**book.features, "layer": 1}),
    ]
    assert len({book.digest, *(other.digest for other in others)}) == 5
    assert replace(book, trained={"steps": 1}).digest == book.digest


def test_missing_and_broken_files(tmp_path: Path) -> None:
    for nothing in (None, ""):
        with pytest.raises(UserError, match="no sketch codebook is given"):
            load_codebook(nothing)
    with pytest.raises(UserError, match="no such sketch codebook"):
        load_codebook(tmp_path / "none.pt")
    path = tmp_path / "book.pt"
    _book().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_codebook(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(UserError, match="it holds a Tensor"):
        load_codebook(path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="no sketch codebook is in it"):
        load_codebook(path)
    _book().save(path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "vectors": content["vectors"] + 1}, path)
    with pytest.raises(UserError, match="its digest doesn't fit"):
        load_codebook(path)
    torch.save({**content, "format": 99}, path)
    with pytest.raises(UserError, match="newer version"):
        load_codebook(path)
    torch.save({name: part for name, part in content.items() if name != "distance"}, path)
    with pytest.raises(UserError, match="parts missing"):
        load_codebook(path)


def test_a_codebook_that_does_not_fit(tmp_path: Path) -> None:
    book = _book()
    book.save(tmp_path / "book.pt")
    with pytest.raises(UserError, match=r"book\.pt: the sketch codebook has 20 codes and the model 16384"):
        load_codebook(tmp_path / "book.pt", size=16384)
    with pytest.raises(UserError, match="features of width 5 for a codebook of width 16"):
        book.encode(torch.zeros(1, 2, 5))
    with pytest.raises(UserError, match="no numbers"):
        book.encode(torch.full((1, 2, 16), float("nan")))
    with pytest.raises(UserError, match="another sketch codebook"):
        book.check_digest("0123")
    book.check_digest(book.digest)
    with pytest.raises(UserError, match="made for features 'muq' with name 'muq', but these have 'builtin'"):
        SketchTokeniser(BuiltinFeatures(SIZES), book)
    with pytest.raises(UserError, match="with layer 2, but these have 1"):
        SketchTokeniser(muq_features(layer=1), book)
    other = muq_features()
    other._fingerprint = "ff"
    with pytest.raises(UserError, match="with weights"):
        SketchTokeniser(other, book)


def test_codebooks_that_are_none() -> None:
    for change, told in (
        ({"vectors": torch.zeros(20, 16)}, "all the same"),
        ({"vectors": torch.full((20, 16), float("inf"))}, "no numbers"),
        ({"vectors": torch.zeros(16)}, "without vectors"),
        ({"vectors": _numbers(20, 8)}, "of width 8 for features of width 16"),
        ({"distance": "taxi"}, "distance is 'taxi'"),
        ({"normalisation": "max"}, "normalisation is 'max'"),
        ({"normalisation": "standard"}, "needs mean and std"),
    ):
        with pytest.raises(UserError, match=told):
            _book(**change)


def test_files_of_other_programs(tmp_path: Path) -> None:
    vectors = _numbers(20, 16)
    state = {"_codebook.embed": vectors[None], "_codebook.initted": torch.ones(1)}
    for number, content in enumerate((state, {"state_dict": state, "config": {}}, {"codebook.weight": vectors})):
        torch.save(content, tmp_path / f"{number}.pt")
        book = load_codebook(tmp_path / f"{number}.pt", size=20)
        assert torch.equal(book.vectors, vectors) and book.distance == "euclidean"
        SketchTokeniser(muq_features(), book)
        with pytest.raises(UserError, match="made for features 'muq'"):
            SketchTokeniser(BuiltinFeatures(SIZES), book)
    torch.save({**state, "_codebook.initted": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="never started"):
        load_codebook(tmp_path / "x.pt")


def test_built_in_features_travel_with_it(tmp_path: Path) -> None:
    features = BuiltinFeatures(SIZES, torch.Generator().manual_seed(4)).eval()
    book = SketchCodebook(_numbers(9, SIZES.width), features.identity(), "cosine", state=features.state_dict())
    book.save(tmp_path / "book.pt")
    tokeniser = load_tokeniser(tmp_path / "book.pt", size=9)
    audio = sound(1, 1.5, 8000)
    assert torch.equal(tokeniser.encode(audio, 8000), SketchTokeniser(features, book).encode(audio, 8000))
    assert tokeniser.digest == book.digest
    with pytest.raises(UserError, match="they travel in the codebook"):
        load_tokeniser(tmp_path / "book.pt", path="muq")


def test_layer_of_the_file_is_taken(tmp_path: Path) -> None:
    from tests.sketch.test_muq import _folder
    from tests.sketch.tiny import muq

    folder = tmp_path / "muq"
    folder.mkdir()
    _folder(folder, muq(), True)
    book = SketchCodebook(_numbers(9, 16), {"name": "muq", "layer": 1, "width": 16})
    book.save(tmp_path / "book.pt")
    assert load_tokeniser(tmp_path / "book.pt", path=folder).features.layer == 1
    with pytest.raises(UserError, match="did you mean 'muq'"):
        load_tokeniser(tmp_path / "book.pt", features="muqq")
