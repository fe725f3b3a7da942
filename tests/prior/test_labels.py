import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from songbloom.errors import UserError
from songbloom.prior.labels import LabelConditioner, Timing
from songbloom.prior.prior import Prior, PriorConfig
from tests.prior.test_prior import CONDITIONER, SMALL, codec, codes_of

RATE = 100
LABELS = {"labels": True, "sr": RATE, "y_bins": (5, 7), "t_bins": 8, "max_bow_genre_size": 3}
LABELS |= {"min_duration": 6.0, "max_duration": 60.0}  # a window of the top level is 5.76 s long


def build(level=2, seed=0, **hps):
    torch.manual_seed(seed)
    prior = Prior(PriorConfig.from_hps({**SMALL, **CONDITIONER, **LABELS, "level": level, **hps}), codec()).eval()
    with torch.no_grad():
        for name, p in prior.named_parameters():
            p.copy_(0.3 * torch.randn(p.shape) + (1.0 if "norm.weight" in name else 0.0))
    return prior


def labels_of(*rows, window=576):
    """Rows of ``(seconds, offset in seconds, artist, genres…)``."""
    return torch.tensor([[int(s * RATE), int(o * RATE), window, artist, *genres] for s, o, artist, *genres in rows])


# The second window reaches beyond the end of its song.
TWO = labels_of((30, 1, 6, 0, 4, -1), (12.5, 9, 0, 2, -1, -1))


def who_and_what(prior, y):
    """Artist and genre words, added up one by one."""
    conditioner = prior.label_conditioner
    voices = []
    for _, _, _, artist, *genres in y.tolist():
        rows = [conditioner.artist.weight[artist], *(conditioner.genre.weight[genre] for genre in genres if genre >= 0)]
        voices.append(torch.stack(rows).sum(0, keepdim=True))
    return torch.stack(voices)


def when(prior, y):
    """Timing, from float64 arithmetic on single numbers."""
    conditioner, bins, low, high = prior.label_conditioner, 8, RATE * 6, RATE * 60
    times = []
    for total, offset, length, *_ in y.tolist():
        begin, end = offset / total, min(1, (offset + length) / total)
        rows = []
        for t in (position / prior.n_ctx for position in range(prior.n_ctx)):
            rows.append(
                conditioner.total_length.embedding.weight[int(bins * (total - low) / (high - low))]
                + conditioner.absolute_position.embedding.weight[int(bins * (offset + length * t) / high)]
                + conditioner.relative_position.embedding.weight[int(bins * (begin + (end - begin) * t))]
            )
        times.append(torch.stack(rows))
    return torch.stack(times)


def test_who_what_and_when():
    prior = build()
    given = prior.conditions(labels=TWO, batch=2)
    torch.testing.assert_close(given.y_cond, who_and_what(prior, TWO))
    torch.testing.assert_close(given.x_cond, when(prior, TWO))
    assert given.lyrics is None


def test_below_the_top_only_who_and_what():
    prior, upper = build(0), codes_of(2, 6)
    assert not any("position" in name for name in prior.label_conditioner.state_dict())
    given = prior.conditions(upper, TWO, batch=2)
    torch.testing.assert_close(given.y_cond, who_and_what(prior, TWO))
    torch.testing.assert_close(given.x_cond, prior.condition(upper, batch=2))
    elsewhere = labels_of((3000, 2000, 6, 0, 4, -1), (1, 5, 0, 2, -1, -1))  # times that no timing label could hold
    assert torch.equal(prior.logits(codes_of(2, 24), upper, TWO), prior.logits(codes_of(2, 24), upper, elsewhere))


@pytest.mark.parametrize("column", range(7))
def test_every_label_is_heard(column):
    prior, codes = build(), codes_of(2, 24)
    changed = TWO.clone()
    changed[0, column] = {0: 5500, 1: 2000, 2: 300, 3: 1, 4: 3, 5: -1, 6: 1}[column]
    difference = (prior.logits(codes, labels=changed) - prior.logits(codes, labels=TWO)).abs().amax((1, 2))
    assert difference[0] > 1e-3 and difference[1] == 0


def test_unused_genre_slots_say_nothing_and_the_order_of_words_does_not_matter():
    prior = build()
    same = labels_of((30, 1, 6, -1, 4, 0), (12.5, 9, 0, -1, -1, 2))
    torch.testing.assert_close(
        prior.conditions(labels=same, batch=2).y_cond, prior.conditions(labels=TWO, batch=2).y_cond
    )
    none = labels_of((30, 0, 6, -1, -1, -1))
    assert torch.equal(prior.conditions(labels=none, batch=1).y_cond[0], prior.label_conditioner.artist.weight[6][None])


def test_gradients_reach_the_tables_that_were_used():
    prior = build().train()
    loss, _ = prior(codes_of(2, 24), labels=TWO)
    loss.backward()
    used = prior.label_conditioner.genre.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [True, False, True, False, True]
    assert (prior.label_conditioner.artist.weight.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [0, 6]
    assert all(p.grad is not None for p in prior.parameters())


@pytest.mark.parametrize("fast", [True, False])
def test_sampling_hears_them_as_the_loss_does(fast):
    prior = build()
    preds = torch.zeros(2, 24, 13)
    codes = prior.sample(2, labels=TWO, preds=preds, fast=fast)
    torch.testing.assert_close(preds, prior.logits(codes, labels=TWO).detach(), rtol=1e-4, atol=1e-4)
    alone = prior.sample(1, labels=TWO[1:], generators=[torch.Generator().manual_seed(1)], fast=fast)
    assert torch.equal(alone[0], codes[1])


@settings(max_examples=200, deadline=None)
@example(bins=100, seconds=599.99999, share=0.5, rate=44100, window=44100)  # 26460000 samples, less one
@example(bins=100, seconds=599.99999, share=1 - 2e-7, rate=44100, window=4)
@given(
    bins=st.integers(1, 130),
    seconds=st.floats(2, 700),
    share=st.floats(0, 1),
    rate=st.sampled_from([8000, 22050, 44100]),
    window=st.integers(1, 20 * 44100),
)
def test_any_window_that_passes_the_check_has_its_embeddings(bins, seconds, share, rate, window):
    """Rounding at the ends of the ranges must not reach beyond a table."""
    timing = Timing(bins, 64, rate, 2.0, 600.0)
    conditioner = LabelConditioner(genres=2, artists=2, genre_slots=1, width=2, timing=timing)
    total = int(seconds * rate)
    y = torch.tensor([[total, int(share * total), window, 0, 0]])
    if not (2 <= total / rate < 600 and y[0, 1] < total and y[0, 1] + window <= 600 * rate):
        with pytest.raises(UserError, match="item 0"):
            conditioner.check(y)
        return
    conditioner.check(y)
    voice, times = conditioner(y)
    assert voice.shape == (1, 1, 2) and times.shape == (1, 64, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(30, 0, 7, 0, 0, 0)], "item 0: artist id 7 is unknown: this model knows 0 to 6"),
        ([(30, 0, -1, 0, 0, 0)], "artist id -1"),
        ([(30, 0, 0, 0, 0, 0), (30, 0, 0, 5, -1, -1)], r"item 1: genre ids \[5, -1, -1\]: this model knows 0 to 4"),
        ([(30, 0, 0, -2, 0, 0)], "genre ids"),
        ([(5.5, 0, 0, 0, 0, 0)], r"a song of 5.50 s: this model knows songs from 6 s \(min_duration\) up to, not"),
        ([(60, 0, 0, 0, 0, 0)], "a song of 60.00 s"),
        ([(30, 30, 0, 0, 0, 0)], "window from 30.00 s to 35.76 s does not begin within its song of 30.00 s"),
        ([(30, -1, 0, 0, 0, 0)], "does not begin within"),
        ([(59, 58, 0, 0, 0, 0)], r"window from 58.00 s to 63.76 s ends after 60 s \(max_duration\)"),
    ],
)
def test_labels_that_the_model_does_not_know(rows, message):
    with pytest.raises(UserError, match=message) as caught:
        build().conditions(labels=labels_of(*rows), batch=len(rows))
    assert "\n" not in str(caught.value)


def test_labels_of_a_wrong_shape():
    prior, codes = build(), codes_of(2, 24)
    assert prior.label_width == 7
    with pytest.raises(UserError, match=r"built with labels: give them, whole numbers of shape \[2, 7\]"):
        prior(codes)
    for wrong in (TWO[:1], TWO[:, :6], TWO.float(), torch.cat([TWO, TWO], 1), TWO[0]):
        with pytest.raises(UserError, match=r"this prior takes whole numbers of shape \[2, 7\]"):
            prior.sample(2, labels=wrong)
    with pytest.raises(UserError, match="built with labels"):
        prior(codes, labels=torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(UserError, match=r"takes whole numbers of shape \[batch, 7\]"):
        prior.label_conditioner.check(TWO[:, :5])
    without = Prior(PriorConfig.from_hps({**SMALL, "level": 2}), codec())
    assert without.label_width == 0
    without(codes, labels=torch.zeros(2, 0, dtype=torch.int64))  # labels that say nothing
    with pytest.raises(UserError, match="built without them"):
        without(codes, labels=TWO)


@pytest.mark.parametrize(
    ("hps", "message"),
    [
        ({"y_bins": 0}, r"needs y_bins=\(genres, artists\), not 0: set --y_bins, or give --labels=False"),
        ({"y_bins": (0, 3)}, "needs y_bins"),
        ({"max_bow_genre_size": None}, "set --max_bow_genre_size"),
        ({"max_duration": None}, "give --max_duration=SECONDS"),
        ({"min_duration": 60}, "min_duration=60 s must be less than max_duration=60 s"),
        ({"min_duration": 1, "max_duration": 5}, "max_duration=5 s is less than one window of 5.76 s"),
    ],
)
def test_settings_that_do_not_fit(hps, message):
    with pytest.raises(UserError, match=message):
        build(**hps)


def test_the_shortest_song_is_by_default_a_window_in_whole_seconds():
    assert build(min_duration=None).label_conditioner.timing.min_duration == 6.0
    assert build(0, max_duration=None).label_conditioner.timing is None  # no timing below the top, so no need of it


def test_tables_start_small():
    torch.manual_seed(0)
    config = PriorConfig.from_hps({**SMALL, **LABELS, "level": 2, "y_bins": (300, 400), "t_bins": 300})
    prior = Prior(config, codec())
    for name, table in prior.label_conditioner.named_parameters():
        assert float(table.detach().std()) == pytest.approx(0.01, rel=0.1), name
