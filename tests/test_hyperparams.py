"""Merging, provenance, checking, the command line, saved configurations."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from songbloom import __version__
from songbloom.architecture import compare_architecture
from songbloom.errors import UserError
from songbloom.hyperparams import (
    Hyperparams,
    Knob,
    Knobs,
    MissingHyperparameter,
    from_json,
    group,
    to_json,
)

KNOBS = Knobs(
    group(
        "model",
        "A model",
        width=Knob(32, "Channels", minimum=1),
        rate=Knob(0.5, "A rate"),
        label=Knob("", "A word"),
        strides=Knob((2, 2), "Strides", minimum=2),
        fractions=Knob((0.5, 0.5), "Fractions"),
        bins=Knob(0, "One size or two", kind="int|ints"),
        cycle=Knob(None, "A cycle", kind="int"),
        loss=Knob("l2", "A loss", choices=("l1", "l2", "lmix")),
    ),
    group(
        "run",
        "A run",
        train=Knob(False, "Train"),
        use_ema=Knob(True, "Average"),
        old=Knob(3, "Nothing", ignored="it never did anything"),
        help=Knob(False, "Help"),
    ),
)
REGISTRY = {"wide": Hyperparams(width=64, rate=1), "deep": Hyperparams(width=48), "typo": Hyperparams(widht=3)}


class TestHyperparams:
    def test_items_are_attributes(self) -> None:
        hps = Hyperparams(width=3)
        hps.depth = 4
        assert hps.width == hps["width"] == 3
        assert hps == {"width": 3, "depth": 4}
        del hps.depth
        assert "depth" not in hps

    @pytest.mark.parametrize("caught", [AttributeError, KeyError, MissingHyperparameter])
    def test_what_is_missing_is_both_errors_and_names_the_nearest(self, caught: type[Exception]) -> None:
        hps = Hyperparams(width=3)
        with pytest.raises(caught, match=r"no hyperparameter is named 'widht' \(did you mean 'width'\?\)"):
            _ = hps.widht
        with pytest.raises(caught):
            _ = hps["widht"]
        with pytest.raises(caught):
            del hps.widht
        assert getattr(hps, "widht", 7) == 7
        assert hps.get("widht") is None

    def test_copies_and_pickles_keep_values_and_sources(self) -> None:
        hps = KNOBS.merge(REGISTRY, "wide", {"label": "x"})
        for other in (hps.copy(), copy.deepcopy(hps), pickle.loads(pickle.dumps(hps)), Hyperparams(hps)):
            assert other == hps
            assert other.sources == hps.sources
            other.sources["width"] = "changed"
            assert hps.sources["width"] == "set 'wide'"


class TestMerge:
    def test_later_wins_and_every_value_knows_its_source(self) -> None:
        hps = KNOBS.merge(REGISTRY, "wide, ,deep,", {"label": "x"})
        assert (hps.width, hps.rate, hps.label, hps.train) == (48, 1.0, "x", False)
        assert [hps.sources[key] for key in ("width", "rate", "label", "train")] == [
            "set 'deep'",
            "set 'wide'",
            "command line",
            "default",
        ]
        assert set(hps) == set(KNOBS)

    def test_names_may_be_a_sequence(self) -> None:
        assert KNOBS.merge(REGISTRY, ("deep", "wide")).width == 64

    def test_an_unknown_set_names_the_nearest(self) -> None:
        with pytest.raises(
            UserError, match=r"no set of hyperparameters is named 'wied' \(did you mean 'wide'\?\)"
        ) as e:
            KNOBS.merge(REGISTRY, "wied")
        assert isinstance(e.value, KeyError)
        assert "\n" not in str(e.value)

    def test_an_unknown_key_names_where_it_stands(self) -> None:
        with pytest.raises(UserError, match=r"set 'typo': no option is named 'widht' \(did you mean 'width'\?\)") as e:
            KNOBS.merge(REGISTRY, "typo")
        assert isinstance(e.value, ValueError)

    def test_a_list_becomes_a_tuple_and_an_int_a_float(self) -> None:
        hps = KNOBS.merge({}, "", {"strides": [4, 2], "rate": 2, "bins": [3, 4], "fractions": 1, "width": 1e3})
        assert (hps.strides, hps.bins, hps.fractions, hps.width) == ((4, 2), (3, 4), (1.0,), 1000)
        assert type(hps.rate) is float
        assert type(hps.width) is int

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("width", True),
            ("width", "3"),
            ("width", 2.5),
            ("width", None),
            ("width", float("inf")),
            ("rate", True),
            ("rate", float("nan")),
            ("train", 1),
            ("train", "True"),
            ("label", 3),
            ("strides", (2, 2.5)),
            ("strides", ()),
            ("strides", "2,2"),
            ("bins", "many"),
        ],
    )
    def test_wrong_types_are_refused(self, key: str, value: Any) -> None:
        with pytest.raises(UserError, match=f"command line: {key} wants "):
            KNOBS.merge({}, "", {key: value})

    def test_ranges_and_choices(self) -> None:
        with pytest.raises(UserError, match="width must be at least 1, not 0"):
            KNOBS.merge({}, "", {"width": 0})
        with pytest.raises(UserError, match=r"strides must be at least 2, not \(2, 1\)"):
            KNOBS.merge({}, "", {"strides": (2, 1)})
        with pytest.raises(UserError, match=r"loss is one of 'l1', 'l2', 'lmix', not 'lmax' \(did you mean 'lmix'\?\)"):
            KNOBS.merge({}, "", {"loss": "lmax"})

    def test_notices_name_what_does_nothing_and_who_set_it(self) -> None:
        assert KNOBS.notices(KNOBS.merge({}, "")) == []
        (line,) = KNOBS.notices(KNOBS.merge({}, "", {"old": 4}))
        assert line == "note: old=4 (command line) is accepted and ignored: it never did anything"


class TestDefinition:
    def test_a_key_in_two_groups_is_refused(self) -> None:
        with pytest.raises(TypeError, match="knob 'a' is both in group 'x' and in 'y'"):
            Knobs(group("x", "", a=Knob(1, "")), group("y", "", a=Knob(2, "")))

    def test_none_needs_a_declared_kind_and_a_default_its_own_type(self) -> None:
        with pytest.raises(TypeError, match="needs a declared kind"):
            group("x", "", a=Knob(None, ""))
        with pytest.raises(TypeError, match="default of a: a wants a whole number"):
            group("x", "", a=Knob(1.5, "", kind="int"))
        with pytest.raises(TypeError, match="knob a has an unknown kind 'whole'"):
            group("x", "", a=Knob(1, "", kind="whole"))


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--width=8"], {"width": 8}),
            (["--width", "8"], {"width": 8}),
            (["--width=1e3"], {"width": 1000}),
            (["--rate", "-3e-4"], {"rate": -3e-4}),
            (["--rate", "-.5"], {"rate": -0.5}),
            (["--rate=1e10"], {"rate": 1e10}),
            (["--rate=2"], {"rate": 2.0}),
            (["--train"], {"train": True}),
            (["--train", "--width=8"], {"train": True, "width": 8}),
            (["--train", "False", "--width=8"], {"train": False, "width": 8}),
            (["--train=False"], {"train": False}),
            (["--train=true"], {"train": True}),
            (["--no-train"], {"train": False}),
            (["--no-use-ema"], {"use_ema": False}),
            (["--no_use_ema"], {"use_ema": False}),
            (["--use-ema=no"], {"use_ema": False}),
            (["--fractions=.5,.5,.125"], {"fractions": (0.5, 0.5, 0.125)}),
            (["--fractions", "-1,.5"], {"fractions": (-1.0, 0.5)}),
            (["--strides=(2,2)"], {"strides": (2, 2)}),
            (["--strides", "(4, 2)"], {"strides": (4, 2)}),
            (["--strides=[4,2]"], {"strides": (4, 2)}),
            (["--strides=3,"], {"strides": (3,)}),
            (["--strides=3"], {"strides": (3,)}),
            (["--bins=3"], {"bins": 3}),
            (["--bins=3,4"], {"bins": (3, 4)}),
            (["--cycle=None"], {"cycle": None}),
            (["--cycle=8"], {"cycle": 8}),
            (["--label=a=b,c"], {"label": "a=b,c"}),
            (["--label="], {"label": ""}),
            (["--label", "歌 1"], {"label": "歌 1"}),
            (["--label=123"], {"label": "123"}),
            (["--width=8", "--width=9"], {"width": 9}),
            (["-h"], {"help": True}),
        ],
    )
    def test_spellings(self, arguments: Sequence[str], expected: dict[str, Any]) -> None:
        got = KNOBS.parse(arguments)
        assert got == expected
        assert [type(value) for value in got.values()] == [type(value) for value in expected.values()]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--widht=8"], r"no option is named --widht \(did you mean '--width'\?\)"),
            (["--no-trian"], r"no option is named --no-trian \(did you mean '--no_train'\?\)"),
            (["--zzz"], "no option is named --zzz; --help lists them all"),
            (["--width"], r"--width needs a value \(a whole number\)"),
            (["--label", "--train"], "--label needs a value"),
            (["--width=eight"], "width wants a whole number, not 'eight'"),
            (["--width=8.5"], "width wants a whole number, not '8.5'"),
            (["--width="], "width wants a whole number, not ''"),
            (["--rate=nan"], "rate wants a number, not 'nan'"),
            (["--strides=2,x"], "strides wants whole numbers such as 3,2, not '2,x'"),
            (["--strides=2,,2"], "strides wants whole numbers"),
            (["--strides="], "strides wants whole numbers"),
            (["--cycle=x"], "cycle wants a whole number or None"),
            (["--bins=x"], "bins wants a whole number or whole numbers"),
            (["--train=maybe"], "train wants True or False"),
            (["--no-train=True"], "takes no value; write --train=True"),
            (["--no-width"], "width is not a flag but a whole number"),
            (["width=8"], "'width=8' belongs to no option; write --key=value"),
            (["-width=8"], "'-width=8' belongs to no option"),
            (["--"], "'--' belongs to no option"),
            (["--train", "x"], "'x' belongs to no option"),
        ],
    )
    def test_mistakes_are_one_line(self, arguments: Sequence[str], message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            KNOBS.parse(arguments)
        assert "\n" not in str(caught.value)

    @given(st.integers(1), st.floats(allow_nan=False), st.lists(st.integers(2), min_size=1), st.booleans())
    def test_what_is_printed_is_read_back(self, width: int, rate: float, strides: list[int], train: bool) -> None:
        arguments = [f"--width={width}", "--rate", repr(rate), f"--strides={tuple(strides)}", f"--train={train}"]
        assert KNOBS.parse(arguments) == {"width": width, "rate": rate, "strides": tuple(strides), "train": train}

    @given(st.lists(st.text(max_size=12), max_size=4))
    def test_nothing_that_is_typed_makes_a_traceback(self, arguments: list[str]) -> None:
        try:
            KNOBS.parse(arguments)
        except UserError as error:
            assert str(error)

    @given(st.sampled_from(sorted(KNOBS)), st.text(max_size=12))
    def test_no_value_makes_a_traceback(self, key: str, text: str) -> None:
        try:
            value = KNOBS.parse([f"--{key}={text}"])[key]
        except UserError:
            return
        assert KNOBS[key].check(value, "again") == value


class TestForPeople:
    def test_help_has_every_key_with_default_meaning_and_group(self) -> None:
        text = KNOBS.help("usage: x")
        for key, knob in KNOBS.items():
            assert f"--{key}={knob.default!r}" in text
            assert knob.meaning in text
            assert f"[{knob.group}]" in text
        assert "accepted and ignored: it never did anything" in text
        assert "A loss. One of 'l1', 'l2', 'lmix'." in text

    def test_explain_has_every_value_and_source(self) -> None:
        hps = KNOBS.merge(REGISTRY, "wide", {"label": "x"})
        lines = {line.split()[0]: line.split() for line in KNOBS.explain(hps).splitlines() if " = " in line}
        assert set(lines) == set(KNOBS)
        assert lines["width"] == ["width", "=", "64", "set", "'wide'"]
        assert lines["label"] == ["label", "=", "'x'", "command", "line"]
        assert lines["train"] == ["train", "=", "False", "default"]


class TestSaved:
    def test_round_trip(self) -> None:
        hps = KNOBS.merge(REGISTRY, "wide", {"strides": (3,), "label": "歌", "rate": float("inf")})
        hps["bandwidth"] = {"l1": 0.5, "shape": (1, (2, 3))}
        saved = from_json(to_json(hps, ["train.py", "--hps=wide"]))
        assert saved.hps == hps
        assert [type(saved.hps[key]) for key in hps] == [type(value) for value in hps.values()]
        assert saved.hps.sources == hps.sources
        assert (saved.version, saved.argv) == (__version__, ("train.py", "--hps=wide"))

    def test_what_json_cannot_hold_is_named(self) -> None:
        with pytest.raises(UserError, match="configuration: thing cannot be saved as JSON"):
            to_json({"width": 1, "thing": object()})

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"hps": 3, "version": "", "argv": [], "sources": {}}'])
    def test_something_else_is_refused_with_its_place(self, text: str) -> None:
        with pytest.raises(UserError, match=r"x/hps\.json: not a configuration that songbloom saved"):
            from_json(text, "x/hps.json")


class TestArchitecture:
    CODEC = Hyperparams(levels=2, downs_t=(3, 2), width=32, hvqvae_multipliers=None, lr=1e-3, sr=8000)
    PRIOR = Hyperparams(
        **{"levels": 2, "level": 1, "prior_width": 64, "cond_width": 8, "labels": False, "t_bins": 64},
        **{"attn_order": 0, "blocks": None, "use_tokens": False, "prime_width": 1, "n_tokens": 0},
    )

    def test_every_mismatch_is_named(self) -> None:
        other = Hyperparams(self.CODEC, width=64, downs_t=[3, 3], lr=1.0)
        assert compare_architecture(self.CODEC, other, "vqvae") == [
            "downs_t is (3, 2) in the checkpoint, (3, 3) asked for",
            "width is 32 in the checkpoint, 64 asked for",
        ]

    def test_equal_in_effect_is_equal(self) -> None:
        saved = Hyperparams(self.CODEC, downs_t=[3, 2], hvqvae_multipliers=[1, 1])
        assert compare_architecture(saved, self.CODEC, "vqvae") == []
        assert compare_architecture({}, self.CODEC, "vqvae") == []

    def test_what_a_prior_does_not_have_does_not_count(self) -> None:
        other = Hyperparams(self.PRIOR, cond_width=9, t_bins=3, blocks=8, prime_width=5)
        assert compare_architecture(self.PRIOR, other, "prior") == []

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"level": 0}, ["level"]),
            ({"prior_width": 65}, ["prior_width"]),
            ({"labels": True, "t_bins": 3}, ["labels", "t_bins"]),
            ({"attn_order": 2, "blocks": 8}, ["attn_order", "blocks"]),
            ({"use_tokens": True, "n_tokens": 4, "prime_width": 2}, ["use_tokens", "n_tokens", "prime_width"]),
        ],
    )
    def test_what_it_has_counts(self, change: dict[str, Any], named: list[str]) -> None:
        lines = compare_architecture(self.PRIOR, Hyperparams(self.PRIOR, **change), "prior")
        assert [line.split()[0] for line in lines] == named

    def test_an_upsampler_counts_its_conditioner(self) -> None:
        upsampler = Hyperparams(self.PRIOR, level=0)
        lines = compare_architecture(upsampler, Hyperparams(upsampler, cond_width=9), "prior")
        assert lines == ["cond_width is 8 in the checkpoint, 9 asked for"]
