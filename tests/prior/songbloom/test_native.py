"""The C++ steps of songs against the plain modules, and that a song's numbers don't depend on the songs beside it."""

import ctypes
from dataclasses import replace

import pytest
import torch

from songbloom.prior.songbloom import native
from songbloom.prior.songbloom.generate import generate
from songbloom.prior.songbloom.native import NativeDiffusion, NativeLanguage, NativeMaps
from songbloom.transformer.native import loader
from tests.prior.songbloom.test_steps import CLOSE, MODELS, adapted, patch_inputs
from tests.prior.songbloom.tiny import SETTINGS, forbid_end, seeded, some_codes, some_conditions, tiny_prior, with_end

pytestmark = [
    pytest.mark.skipif(loader.library("song") is None, reason="the native steps cannot be built here"),
]
LANGUAGES = {
    "two heads": {"prior_depth": 3, "m_mlp": 2.6},
    "one wide head": {"heads": 1},
    "narrow heads": {"prior_width": 160, "heads": 5},
    "odd width": {"prior_width": 72, "heads": 2},
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def velocities(prior, inputs, t=0.4, copied_bytes=1 << 28, half=False):
    x, hidden, sketch, previous = inputs
    fast = NativeDiffusion(prior.diffusion, copied_bytes=copied_bytes, half=half)
    fast.begin(prior.diffusion.known(hidden, sketch, previous))
    return fast.velocity(x, torch.tensor(t))


def plain_velocities(prior, inputs, t=0.4):
    x, hidden, sketch, previous = inputs
    time = prior.diffusion.time(torch.tensor([t])).expand(len(x), -1)
    return prior.diffusion.velocity(x, time, prior.diffusion.known(hidden, sketch, previous))


def stepped(prior, song, rows, *, dtype=torch.float32, kept=None, step=None):
    """The outputs of a song's positions ``[rows, T, W]`` one by one, after two conditions; ``kept`` rows stay from
    the middle on."""
    model = prior.language_model
    generator = torch.Generator().manual_seed(0)
    prefixes = [torch.randn(37, model.config.prior_width, generator=generator).to(dtype) for _ in range(2)]
    cache = model.begin([model.read(prefix) for prefix in prefixes], rows, song.shape[1])
    if step is None:
        one = NativeLanguage(model, cache)
        step = one.step
    else:
        one, plain = None, step
        step = lambda x: plain(x, cache, fast=False)  # noqa: E731
    found = []
    for t, x in enumerate(song.to(dtype).split(1, dim=1)):
        if kept is not None and t == song.shape[1] // 2:
            cache.select(kept)
        found.append(step(x if kept is None or t < song.shape[1] // 2 else x[kept]))
    return found


def classifier_of(prior):
    return NativeMaps(prior.classifier.hidden, prior.classifier.output)


def test_structures_are_laid_out_alike():
    sizes = [loader.library("song").song_sizes(which) for which in range(len(native.STRUCTURES))]
    assert sizes == [ctypes.sizeof(structure) for structure in native.STRUCTURES]


@pytest.mark.parametrize("copied_bytes", [0, 1 << 28])
@pytest.mark.parametrize("model", MODELS)
def test_velocities_of_patch_after_patch_are_those_of_the_plain_transformer(model, copied_bytes):
    prior = tiny_prior(**MODELS[model])
    fast = NativeDiffusion(prior.diffusion, copied_bytes=copied_bytes)
    for seed, n in enumerate((2, 30, 1)):  # songs may end in between; many are several blocks of rows
        x, hidden, sketch, previous = patch_inputs(prior, n, seed)
        known = prior.diffusion.known(hidden, sketch, previous)
        fast.begin(known)
        for t in torch.tensor([1.0, 0.4, 0.0]):
            time = prior.diffusion.time(t[None]).expand(n, -1)
            torch.testing.assert_close(fast.velocity(x, t), prior.diffusion.velocity(x, time, known), **CLOSE)
            x = 0.5 * x + 0.1


@pytest.mark.parametrize("model", ["prepended time", "adaln"])
def test_a_songs_velocity_does_not_depend_on_the_songs_beside_it(model):
    prior = tiny_prior(**MODELS[model])
    inputs = patch_inputs(prior, 17, 0)
    together = velocities(prior, inputs)
    for first, count in ((0, 1), (5, 1), (3, 4), (16, 1)):
        part = [each[first : first + count] for each in inputs]
        assert torch.equal(velocities(prior, part), together[first : first + count])
    assert torch.equal(velocities(prior, inputs, copied_bytes=0), together)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rows_that_are_alike_are_computed_once_and_exactly(depth, monkeypatch):
    prior = tiny_prior(dit_depth=depth)
    inputs = patch_inputs(prior, 6, 0)
    for part in inputs[1:3]:
        part[4:] = 0  # the songs again, for guidance, without hidden vector and sketch

    def steps():
        fast = NativeDiffusion(prior.diffusion, copied_bytes=1 << 28)
        fast.begin(prior.diffusion.known(*inputs[1:]))
        return fast, fast.velocity(inputs[0], torch.tensor(0.4))

    fast, shifted = steps()
    assert fast._step.blind == 6  # the first norm shifts zeros, so they are not alike
    torch.testing.assert_close(shifted, plain_velocities(prior, inputs), **CLOSE)
    prior.diffusion.layers[0].attention_norm.bias.zero_()
    fast, once = steps()
    assert fast._step.blind == 4
    torch.testing.assert_close(once, plain_velocities(prior, inputs), **CLOSE)
    monkeypatch.setattr(NativeDiffusion, "_blind_from", lambda self, known: len(known))
    assert torch.equal(steps()[1], once)


@pytest.mark.parametrize("model", LANGUAGES)
@pytest.mark.parametrize("rows", [[0], [0, 1], [0, 0, 0, 0, 0, 0, 0, 1, 1]])
def test_the_language_model_steps_as_the_plain_one(model, rows):
    prior = tiny_prior(**LANGUAGES[model])
    song = torch.randn(len(rows), 40, prior.config.prior_width, generator=torch.Generator().manual_seed(1))
    kept = list(range(0, len(rows), 2))
    plain = stepped(prior, song, rows, kept=kept, step=prior.language_model.step)
    for one, other in zip(stepped(prior, song, rows, kept=kept), plain, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_rows_vectors_do_not_depend_on_the_rows_beside_it():
    prior = tiny_prior(prior_depth=3)
    rows = [0, 0, 0, 0, 0, 1, 1, 1]
    song = torch.randn(len(rows), 20, 64, generator=torch.Generator().manual_seed(1))
    together = torch.cat(stepped(prior, song, rows), dim=1)
    for row, condition in enumerate(rows):
        alone = torch.cat(stepped(prior, song[row, None], [condition]), dim=1)
        assert torch.equal(alone[0], together[row])
    classifier = classifier_of(prior)
    logits = classifier(together[:, -1])
    assert all(torch.equal(classifier(together[row, None, -1])[0], logits[row]) for row in range(len(rows)))


def test_weights_that_are_moved_to_large_pages_stay_the_same(monkeypatch):
    prior = tiny_prior()
    song = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
    places = [parameter.data_ptr() for parameter in prior.parameters()]
    steps, logits = stepped(prior, song, [0, 1]), classifier_of(prior)(song[:, 0])
    monkeypatch.setattr(native, "_REACH", 1)  # however small they are
    assert all(map(torch.equal, stepped(prior, song, [0, 1]), steps))
    assert torch.equal(classifier_of(prior)(song[:, 0]), logits)
    assert places == [parameter.data_ptr() for parameter in prior.parameters()]
    assert all(torch.equal(before[name], tensor) for name, tensor in prior.state_dict().items())


def test_logits_and_patches_are_those_of_the_plain_maps():
    prior = tiny_prior(l_bins=45)
    hidden = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    for n in (9, 1, 4):
        torch.testing.assert_close(classifier_of(prior)(hidden[:n]), prior.classifier(hidden[:n]), rtol=1e-4, atol=1e-4)
        latents = torch.randn(n, 3, 4, generator=torch.Generator().manual_seed(0))
        encoder = NativeMaps(prior.patch_encoder.hidden, prior.patch_encoder.output)
        torch.testing.assert_close(encoder(latents.flatten(1)), prior.patch_encoder(latents), **CLOSE)


@pytest.mark.parametrize("stored", [False, True])
def test_half_precision_is_near(stored):
    exact, prior = tiny_prior(prior_depth=3), tiny_prior(prior_depth=3)
    if stored:
        prior.store_matrices(torch.bfloat16)
    inputs = patch_inputs(prior, 3, 0)
    half = [inputs[0], *(each.bfloat16() for each in inputs[1:3]), inputs[3]]
    found, wanted = velocities(prior, half), plain_velocities(exact, inputs)
    assert found.dtype == torch.float32 and (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    song = torch.randn(3, 20, 64, generator=torch.Generator().manual_seed(1))
    found = torch.cat(stepped(prior, song, [0, 0, 1], dtype=torch.bfloat16), dim=1)
    wanted = torch.cat(stepped(exact, song, [0, 0, 1]), dim=1)
    assert found.dtype == torch.bfloat16 and (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    logits = classifier_of(prior)(wanted[:, -1])
    assert (logits - exact.classifier(wanted[:, -1])).abs().max() < 0.05 * logits.abs().max()


def test_adapters_that_are_not_merged_are_heard():
    without, prior = tiny_prior(), adapted(tiny_prior())
    inputs = patch_inputs(prior, 2, 0)
    found = velocities(prior, inputs)
    torch.testing.assert_close(found, plain_velocities(prior, inputs), **CLOSE)
    assert (found - velocities(without, inputs)).abs().max() > 1e-2
    song = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    found = torch.cat(stepped(prior, song, [0]), dim=1)
    torch.testing.assert_close(
        found, torch.cat(stepped(prior, song, [0], step=prior.language_model.step), dim=1), **CLOSE
    )
    assert (found - torch.cat(stepped(without, song, [0]), dim=1)).abs().max() > 1e-2


def test_what_does_not_fit_is_refused_and_nothing_of_nobody_is_nothing():
    prior = tiny_prior()
    x, *parts = patch_inputs(prior, 3, 0)
    known, t = prior.diffusion.known(*parts), torch.tensor(0.4)
    fast = NativeDiffusion(prior.diffusion, copied_bytes=1 << 28)
    with pytest.raises(ValueError, match="expected"):
        fast.begin(known[:, 1:])
    fast.begin(known)
    for wrong in (x[:2], x[:, :-1], x[..., 1:]):
        with pytest.raises(ValueError, match="expected"):
            fast.velocity(wrong, t)
    fast.begin(known[:0])
    assert fast.velocity(x[:0], t).shape == x[:0].shape
    model = prior.language_model
    cache = model.begin([model.read(torch.ones(5, 64))], [0, 0], 4)
    steps = NativeLanguage(model, cache)
    with pytest.raises(ValueError, match="expected"):
        steps.step(torch.ones(3, 1, 64))
    assert cache.length == 0 and steps.step(torch.ones(2, 1, 64)).shape == (2, 1, 64)
    with pytest.raises(ValueError, match="expected"):
        classifier_of(prior)(torch.ones(2, 63))
    assert classifier_of(prior)(torch.ones(0, 64)).shape == (0, prior.config.l_bins + 1)


def test_threads_change_nothing():
    prior, inputs = tiny_prior(prior_depth=3), patch_inputs(tiny_prior(), 5, 0)
    song = torch.randn(4, 12, 64, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            vectors = torch.cat(stepped(prior, song, [0, 0, 1, 1]), dim=1)
            found.append((velocities(prior, inputs), vectors, classifier_of(prior)(vectors[:, -1])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("guidance", ["none", "h", "global"])
def test_songs_of_a_batch_are_those_of_batches_of_one(guidance):
    prior = with_end(tiny_prior(), 6.0)
    settings = replace(SETTINGS, dit_cfg_type=guidance, cfg_diffusion=2.0, max_frames=36)
    conditions = some_conditions(prior, 1)
    together = generate(prior, conditions, settings, counts=[5], generators=seeded(1, 2, 3, 4, 5))
    assert len({len(song.tokens) for song in together}) > 1  # some end before others
    for seed, song in enumerate(together, 1):
        (alone,) = generate(prior, conditions, settings, generators=seeded(seed))
        assert torch.equal(alone.tokens, song.tokens) and torch.equal(alone.latents, song.latents)


def test_steps_are_native_where_they_can_be(monkeypatch):
    x = torch.ones(2, 2)
    assert native.available(x) and native.available(x.bfloat16())
    assert not native.available(x.half()) and not native.available(torch.ones(2, 2, device="meta"))
    with torch.enable_grad():
        assert not native.available(x)
    taken = []
    begin = NativeDiffusion.begin
    monkeypatch.setattr(NativeDiffusion, "begin", lambda self, known: (taken.append(1), begin(self, known))[1])
    monkeypatch.setattr(
        NativeLanguage, "step", lambda self, x, step=NativeLanguage.step: (taken.append(2), step(self, x))[1]
    )
    prior = forbid_end(tiny_prior())
    for more, patches, tokens in (({}, 3, 3 * 4), ({"precision": "bf16"}, 3, 3 * 4), ({"fast": False}, 0, 0)):
        taken.clear()
        generate(prior, some_conditions(prior, 1), SETTINGS, generators=seeded(1), **more)
        assert (taken.count(1), taken.count(2)) == (patches, tokens)
    taken.clear()
    sketch = list(some_codes(prior, 1, 9)[0])
    generate(prior, some_conditions(prior, 1), SETTINGS, generators=seeded(1), sketch=sketch)
    assert (taken.count(1), taken.count(2)) == (3, 0)  # the positions of a patch are one step of torch's


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["-march=x86-64", "-mavx2 -mfma"])
def test_other_machines_code_computes_the_same(machine, tmp_path, monkeypatch):
    if "-march=native" not in loader.machine_flags() or "avx2" not in loader.cpu_features():
        pytest.skip("needs a processor that runs both")
    flags = (*loader.FLAGS, *loader.thread_flags(), *machine.split())
    library = loader.load(flags, tmp_path, "song")
    monkeypatch.setattr(loader, "library", lambda source: library)
    for model in ("prepended time", "tiles that don't divide"):
        prior = tiny_prior(**MODELS[model])
        inputs = patch_inputs(prior, 5, 0)
        found = velocities(prior, inputs)
        torch.testing.assert_close(found, plain_velocities(prior, inputs), **CLOSE)
        assert torch.equal(velocities(prior, [each[2:3] for each in inputs]), found[2:3])
        assert torch.equal(velocities(prior, inputs, copied_bytes=0), found)
    prior = tiny_prior(prior_width=72, heads=2)
    song = torch.randn(5, 20, 72, generator=torch.Generator().manual_seed(1))
    rows = [0, 0, 0, 0, 1]
    found = torch.cat(stepped(prior, song, rows), dim=1)
    plain = torch.cat(stepped(prior, song, rows, step=prior.language_model.step), dim=1)
    torch.testing.assert_close(found, plain, **CLOSE)
    assert torch.equal(torch.cat(stepped(prior, song[1:2], [0]), dim=1), found[1:2])
