import pytest
import torch

from songbloom.errors import UserError
from songbloom.prior.draws import Noise, check_sampling, draw, draw_with, item_generators


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_draws_follow_the_softmax():
    """A chi-square statistic over 20000 draws; the seed is fixed, and 35 is beyond the 99.9 % point (31.3)."""
    torch.manual_seed(1)
    logits = torch.randn(12) * 2
    gens = generators(0)
    counts = torch.zeros(12)
    for _ in range(20000):
        counts[draw(logits[None], temperature=0.7, generators=gens)] += 1
    expected = (logits / 0.7).softmax(0) * 20000
    assert float(((counts - expected) ** 2 / expected).sum()) < 35


def test_zero_temperature_takes_the_largest():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(logits, temperature=0, generators=()), logits.argmax(-1))


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"top_p": 0.5}])
def test_filters_bound_what_can_be_drawn(settings):
    logits = torch.tensor([[3.0, 2.9, 2.8, 0.0, -1.0]])
    gens = generators(3)
    seen = {int(draw(logits, temperature=1.0, generators=gens, **settings)) for _ in range(300)}
    assert seen == ({0, 1, 2} if "top_k" in settings else {0, 1})


def test_an_item_is_drawn_from_its_own_generator():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(5))
    together = draw(logits, temperature=1.0, generators=generators(7, 8, 9, 10))
    alone = [int(draw(logits[i : i + 1], temperature=1.0, generators=generators(7 + i))) for i in range(4)]
    assert together.tolist() == alone


def test_a_device_without_float64_gets_what_the_others_draw():
    """Metal's: its noise stays on the CPU, in float64, and asks the device for nothing."""
    logits = torch.randn(2, 20)
    noise = Noise(generators(4, 5), 20, torch.device("mps"))
    made = draw_with(logits, noise, temperature=1.0)
    assert torch.equal(made, draw(logits, temperature=1.0, generators=generators(4, 5)))
    assert noise.next().dtype == torch.float64 and noise.next().device.type == "cpu"
    assert Noise((), 20, torch.device("mps")).next().shape == (0, 20)


def test_each_draw_takes_the_same_number_of_random_numbers():
    """So a generator's state says how many codes have been drawn, whatever they were and however they were filtered."""
    one, other = generators(4, 4)
    draw(torch.randn(1, 20), temperature=1.0, generators=[one])
    draw(torch.randn(1, 20), temperature=0.3, top_k=2, generators=[other])
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ((-0.1, 0, 0.0), "temperature"),
        ((float("nan"), 0, 0.0), "temperature"),
        ((1.0, -1, 0.0), "top_k"),
        ((1.0, 0, 1.5), "top_p"),
        ((1.0, 4, 0.5), "exclude"),
    ],
)
def test_settings_that_cannot_be_sampled_with(settings, word):
    with pytest.raises(UserError, match=word):
        check_sampling(*settings)


def test_generators_are_one_an_item():
    assert len(item_generators(3, 1.0, None)) == 3
    assert item_generators(3, 0, None) == ()
    with pytest.raises(UserError, match="2 generators for 3 samples"):
        item_generators(3, 1.0, generators(0, 1))
