import pytest
from tests.helpers import tiny_model

from spqlm.allocation.restriction import Restriction, ties
from spqlm.errors import SpqError
from spqlm.formats.dense import Dense
from spqlm.formats.int4 import Int4
from spqlm.formats.int8 import Int8
from spqlm.model.opening import open_layers
from spqlm.model.view import ModelView

BOTH = (Int4(group_size=32), Int8())


def test_q_k_and_v_are_tied_and_so_are_gate_and_up():
    view = ModelView(tiny_model())
    tied = ties(view, "fused")
    for layer in view.layers:
        names = [[named.name for named in members] for members in layer.together]
        assert [len(members) for members in names] == [3, 2]
        for members in names:
            assert len({tied[name] for name in members}) == 1
        assert layer.attention_output.name not in tied and layer.mlp_output.name not in tied
    assert len(set(tied.values())) == 2 * len(view.layers)


def test_a_family_without_a_gate_has_no_tie_there():
    [layer, *_] = ModelView(tiny_model("opt")).layers
    assert [len(members) for members in layer.together] == [3]


@pytest.mark.parametrize("alike", ["experts", "fused"])
def test_experts_are_tied_by_projection_and_layer(alike):
    model = tiny_model("qwen3_moe")
    open_layers(model)
    view = ModelView(model)
    tied = ties(view, alike)
    experts = [named.name for layer in view.layers for named in layer.experts]
    assert len({tied[name] for name in experts}) == 2 * len(view.layers)
    assert all(name.startswith(f"{tied[name]}.") for name in experts)
    attention = [layer.query.name for layer in view.layers]
    assert all((name in tied) == (alike == "fused") for name in attention)


def test_uniform_ties_the_decoder_and_nothing_else():
    view = ModelView(tiny_model())
    tied = ties(view, "uniform")
    assert set(tied) == {named.name for layer in view.layers for named in layer.linears}
    assert len(set(tied.values())) == 1
    assert ties(view, "free") == {}


def test_a_restriction_keeps_what_is_allowed_and_says_why_nothing_is():
    only = Restriction(lambda role, form: None if form.name == "int8" else "too narrow")
    assert only.allowed(("attention", "mlp"), BOTH) == (Int8(),)
    assert Restriction().allowed(("mlp",), BOTH) == BOTH
    with pytest.raises(SpqError, match=r"no format that mlp weights may take \(int4: too narrow\)"):
        only.allowed(("mlp",), BOTH[:1])


def test_weights_for_which_nothing_offered_is_allowed_stay_floats():
    floats = Restriction(lambda role, form: None if form.name == "dense" else "floats only")
    assert floats.allowed(("embedding", "lm_head"), BOTH) == (Dense(),)


def test_what_one_role_refuses_is_refused_for_roles_that_share_a_menu():
    only = Restriction(
        lambda role, form: "a head" if (role, form.name) == ("lm_head", "int4") else None
    )
    assert only.allowed(("embedding", "lm_head"), BOTH) == (Int8(),)
    assert only.allowed(("embedding",), BOTH) == BOTH
