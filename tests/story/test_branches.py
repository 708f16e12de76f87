"""Where turns hang: the branches of one prompt, and the turns that change others."""

from dataclasses import replace

import pytest
from kept_session import KEPT

from tinystory.story.branches import Branches
from tinystory.story.session_file import load_session
from tinystory.story.tree import ROOT


@pytest.fixture
def tree():
    return load_session(KEPT).tree


def hung(tree, number):
    return [(group.typed, [turn.id for turn in group.turns]) for group in Branches(tree).groups(number)]


def test_branches_of_one_prompt_are_a_group_and_a_change_stands_beside_its_turn(tree):
    """/pick was below the turn that it changes, so that no key led back."""
    assert hung(tree, ROOT) == [("The little owl was", [1, 11, 2, 12, 13, 3, 4])]
    assert {number: turn.id for number, turn in Branches(tree).changes.items()} == {11: 1, 12: 2, 13: 12}
    assert hung(tree, 7) == [("", [8]), ("", [9]), ("", [10])]
    tree.goto(11)  # /pick in the first words of 1, typed when 10 was on the desk
    assert Branches(tree).aside(-1).id == 1
    assert Branches(tree).aside(1).id == 2
    assert Branches(tree).lineage(15) == [15, 14, 13]


def test_the_latest_change_stands_nearest(tree):
    tree.add(replace(tree.turns[11], parent=1))
    assert hung(tree, ROOT)[0][1][:3] == [1, 16, 11]
    assert Branches(tree).aside(-1).id == 1


def test_a_change_of_the_typed_text_begins_a_group_of_its_own(tree):
    tree.add(replace(tree.turns[11], parent=1, kept=2, shared=8, own="e dog", typed="e dog"))
    assert hung(tree, ROOT) == [("The little owl was", [1, 11, 2, 12, 13, 3, 4]), ("", [16])]
