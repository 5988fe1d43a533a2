"""Layers of a layout, and what a partial update covers of them."""

import time

import pytest

from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.stragglers.layers import (
    Coverage,
    Layer,
    Naming,
    check_depth,
    coverage_of,
    layers_of,
)

MODEL = Layout.pack(
    [
        ("conv.weight", "F32", (3, 3)),
        ("conv.bias", "F32", (3,)),
        ("block.0.weight", "F32", (3,)),
        ("block.1.weight", "F32", (3,)),
        ("scale", "F32", ()),
    ]
)
LAYERS = layers_of(MODEL)


def names(layers: tuple[Layer, ...]) -> dict[str, tuple[str, ...]]:
    return {layer.name: layer.tensors for layer in layers}


def test_a_layer_is_a_name_up_to_its_last_dot_in_the_layouts_order() -> None:
    assert list(names(LAYERS).items()) == [
        ("conv", ("conv.weight", "conv.bias")),
        ("block.0", ("block.0.weight",)),
        ("block.1", ("block.1.weight",)),
        ("scale", ("scale",)),
    ]


def test_wide_counters_in_front_do_not_change_the_order_of_layers() -> None:
    layout = Layout.pack(
        [
            ("norm2.count", "I64", ()),
            ("norm1.count", "I64", ()),
            ("norm1.weight", "F32", (2,)),
            ("linear.weight", "F32", (2,)),
            ("norm2.weight", "F32", (2,)),
        ]
    )

    assert list(names(layers_of(layout))) == ["norm1", "linear", "norm2"]
    assert names(layers_of(layout))["norm2"] == ("norm2.count", "norm2.weight")


def test_layers_given_by_hand_keep_their_order_and_take_the_longest_prefix() -> None:
    given = {"head": ["scale", "block.1"], "body": ["block", "conv.weight"], "rest": ["conv"]}

    assert list(names(layers_of(MODEL, given)).items()) == [
        ("head", ("block.1.weight", "scale")),
        ("body", ("conv.weight", "block.0.weight")),
        ("rest", ("conv.bias",)),
    ]
    assert list(names(layers_of(MODEL, ["scale", "block", "conv"]))) == ["scale", "block", "conv"]


def test_a_prefix_ends_at_a_dot() -> None:
    layout = Layout.pack([("layer1.weight", "F32", (1,)), ("layer10.weight", "F32", (1,))])

    with pytest.raises(SpecError, match=r"tensor 'layer10\.weight' is in none of the 1 layers"):
        layers_of(layout, ["layer1"])


@pytest.mark.parametrize(
    ("naming", "text"),
    [
        (["conv", "block"], "tensor 'scale' is in none of the 2 layers"),
        (["conv", "block", "scale", "fc"], "layer 'fc' holds no tensor of the 5"),
        ({"a": ["conv"], "b": ["conv"]}, "prefix 'conv' is given twice: for layer 'a' and for 'b'"),
        (["conv", "conv"], "prefix 'conv' is given twice"),
        ("conv", "neither a list of prefixes nor"),
        ({"a": "conv"}, "layer 'a' is 'conv', not a list of prefixes"),
        ({"a": [""]}, "layer 'a' has prefix ''"),
    ],
)
def test_layers_that_do_not_fit_the_layout_are_rejected(naming: Naming, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        layers_of(MODEL, naming)


def test_a_layer_is_covered_when_all_of_it_is_there() -> None:
    assert coverage_of(LAYERS, {"scale", "block.1.weight"}) == (False, False, True, True)
    assert coverage_of(LAYERS, MODEL.shapes) == (True, True, True, True)


def test_half_a_layer_is_rejected_by_name() -> None:
    with pytest.raises(
        UpdateError, match=r"layer 'conv' is there in part: 1 of its 2 .* 'conv\.bias' the first"
    ):
        coverage_of(LAYERS, {"scale", "conv.weight"})


def test_a_tensor_unknown_to_the_layout_is_rejected_by_name() -> None:
    with pytest.raises(UpdateError, match=r"tensor 'fc\.bias' is not in the round's layout"):
        coverage_of(LAYERS, {"scale", "fc.bias"})


@pytest.mark.parametrize(
    "covered", [(True, True, True), (False, True, True), (False, False, False)]
)
def test_a_cut_off_client_has_the_last_layers(covered: Coverage) -> None:
    check_depth(LAYERS[:3], covered)


@pytest.mark.parametrize(
    ("covered", "holds", "misses"),
    [
        ((True, False, True, True), "conv", "block.0"),
        ((False, True, True, False), "block.0", "scale"),
        ((True, False, False, False), "conv", "block.0"),
    ],
)
def test_a_hole_is_rejected_with_the_layers_around_it(
    covered: Coverage, holds: str, misses: str
) -> None:
    with pytest.raises(UpdateError, match=f"it holds layer '{holds}', but not '{misses}'"):
        check_depth(LAYERS, covered)


@pytest.mark.slow
def test_time_goes_by_the_number_of_tensors_not_its_square() -> None:
    tensors = [(f"layer.{number}", "F32", (1,)) for number in range(200_000)]
    began = time.process_time()
    [layer] = layers_of(Layout.pack(tensors))
    assert len(layer.tensors) == 200_000
    assert time.process_time() - began < 20  # minutes by copying the layer for each tensor


def test_a_name_of_many_dots_is_looked_up_in_time() -> None:
    name = "w" + "." * 1_000_000
    began = time.process_time()
    assert layers_of(Layout.pack([(name, "F32", (1,))]), ["w"]) == (Layer("w", (name,)),)
    with pytest.raises(SpecError, match="in none of the 1 layers"):
        layers_of(Layout.pack([("." + name, "F32", (1,))]), ["w"])
    assert time.process_time() - began < 10
