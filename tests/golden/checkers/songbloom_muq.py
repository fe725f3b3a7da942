"""``songbloom_muq*``: a small MuQ, stage by stage, from audio to features and to the codes of its mel targets."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from songbloom.published.songbloom.muq import config_from_published, from_published, muq_of, to_published
from songbloom.sketch.muq import MuQ
from tests.golden.report import Golden

NEAR: dict[str, Any] = {"abs": 1e-5, "rel": 1e-4}


def _model(golden: Golden) -> MuQ:
    config = config_from_published(json.loads(golden.given("config")), json.loads(golden.given("w2v2_config")))
    state = golden.given("state_dict")
    model = muq_of(state, config)
    ours = from_published(state)
    back = from_published(to_published(model.state_dict()))
    assert set(back) == set(ours)
    assert all(torch.allclose(back[name].float(), ours[name].float(), atol=1e-7) for name in ours), "names"
    return model


def _mel_where_it_is_heard(mel: Tensor, recorded: Tensor) -> Tensor:
    """``mel`` with the recorded values where both are nothing but the rounding of the Fourier transform.

    More than 60 dB below a frame's loudest band a transform in single precision holds so much of its own rounding that
    processors differ by more than the tolerance: beside a pure tone, by tenths of a decibel.
    """
    floor = recorded.amax(dim=1, keepdim=True) - 60.0
    rounding = (recorded < floor) & ((mel - recorded).abs() < 1.0)
    return torch.where(rounding, recorded, mel)


@torch.no_grad()
def check_muq(golden: Golden) -> None:
    """Everything in a ``songbloom_muq*`` file; each stage from what was recorded before it, then from the audio."""
    model = _model(golden)
    audio = golden.given("wav24k")
    mel = model.mel(audio)
    golden.expect("mel_db", got=_mel_where_it_is_heard(mel, golden.look("mel_db")), **NEAR)
    golden.expect("mel_norm", got=model.normalised(golden.look("mel_db")), **NEAR)
    recorded = golden.look("mel_norm")
    golden.expect("conv_out", got=model.subsample(recorded), **NEAR)
    golden.expect("conv_out", got=model.subsample(recorded, piece=4), name="conv_out in pieces", **NEAR)
    states = list(model.hidden_states(model.subsample(recorded)))
    golden.expect("n_hidden_states", got=len(states))
    for index, state in enumerate(states):
        golden.expect(f"hidden_{index}", got=state, **NEAR)
    golden.expect("last_hidden_state", got=states[-1], **NEAR)
    if golden.has("mel_rvq_codes"):
        golden.expect("mel_rvq_codes", got=model.mel_codes(recorded))
    same = torch.isclose(mel, golden.look("mel_db"), atol=1e-5, rtol=1e-4).all(dim=2).all(dim=1)
    for layer in range(len(states)):  # the whole way from the audio, of items whose every band is heard
        whole = torch.where(same[:, None, None], model.encode(audio, layer), golden.look(f"hidden_{layer}"))
        golden.expect(f"hidden_{layer}", got=whole, name=f"hidden_{layer} from the audio", **NEAR)


CHECKS = {"songbloom_muq": check_muq}
