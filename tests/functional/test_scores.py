"""From a network's output to one score per image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.scores import check_images, class_scores, probabilities, resolve_target

IMAGES = torch.zeros(3, 1, 2, 2)


def test_scores_pass_through_and_a_single_score_gets_a_column() -> None:
    two = torch.randn(3, 2)
    assert class_scores(lambda x: two, IMAGES) is two
    assert class_scores(lambda x: two[:, 0], IMAGES).tolist() == two[:, :1].tolist()


def test_score_turns_any_output_into_scores() -> None:
    maps = torch.randn(3, 5, 2, 2)
    found = class_scores(lambda x: {"out": maps}, IMAGES, score=lambda out: out["out"].sum((2, 3)))
    assert torch.equal(found, maps.sum((2, 3)))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"logits": torch.zeros(3, 2)}, ["'logits'", "score="]),
        ((torch.zeros(3, 2), None), ["tuple of 2", "score="]),
        (None, ["NoneType", "score="]),
        (torch.zeros(3, 5, 2, 2), ["(3, 5, 2, 2)", "score="]),
        (torch.zeros(6, 2), ["(6, 2)", "3 images"]),
        (torch.zeros(2), ["(2,)"]),
        (torch.zeros(()), ["()"]),
    ],
)
def test_other_outputs_are_explained(output: object, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        class_scores(lambda x: output, IMAGES)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [1, 0, 3]),
        (2, [2, 2, 2]),
        ([3, 0, 1], [3, 0, 1]),
        ((3, 0, 1), [3, 0, 1]),
        (torch.tensor([3, 0, 1], dtype=torch.int32), [3, 0, 1]),
        (torch.tensor(1), [1, 1, 1]),
    ],
)
def test_targets(target: object, expected: list[int]) -> None:
    scores = torch.tensor([[0.0, 4, 1, 1], [9, 1, 1, 1], [-5, -4, -3, -2]])
    found = resolve_target(scores, target)  # type: ignore[arg-type]
    assert found.dtype == torch.int64 and found.tolist() == expected


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (4, ["4 is out of range", "4 classes", "0 to 3"]),
        (-1, ["-1 is out of range"]),
        ([0, 7, 1], ["7 is out of range"]),
        ([0, 1], ["(2,)", "3 images"]),
        (torch.zeros(3, 1, dtype=torch.int64), ["(3, 1)"]),
        (1.0, ["integers"]),
        (torch.tensor([True, False, True]), ["integers"]),
        ([], ["integers"]),
    ],
)
def test_bad_targets(target: object, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_target(torch.zeros(3, 4), target)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


def test_probabilities() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    expected = scores.double().exp() / scores.double().exp().sum(1, keepdim=True)
    assert probabilities(scores).sub(expected).abs().max() < 1e-6
    assert probabilities(scores[:, :1])[:, 0].tolist() == pytest.approx([1 / (1 + torch.e**-1.0), 0.5])
    assert probabilities(scores.bfloat16()).dtype == torch.float32
    assert probabilities(scores.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 8, 8), ["(3, 8, 8)", "images[None]"]),
        (torch.zeros(8, 8), ["(8, 8)"]),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["uint8", "floating point"]),
        (torch.zeros(0, 3, 8, 8), ["empty"]),
        ([1, 2], ["list"]),
    ],
)
def test_what_is_no_batch_of_images(images: Tensor, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_images(images)
    assert all(word in str(caught.value) for word in words)


def test_probabilities_stay_as_they_are() -> None:
    scores = torch.randn(4, 3)
    found = probabilities(scores)
    assert torch.equal(probabilities(found), found)
    almost = torch.tensor([[0.5, 0.6]])
    torch.testing.assert_close(probabilities(almost), almost.softmax(1))
