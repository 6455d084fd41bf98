"""The exercises of the notebooks that take long, done over three seeds: what comes out is what the answers say."""

import pytest

from tests import answers

LONG = [exercise for exercise in answers.EXERCISES if not exercise.quick]


@pytest.mark.parametrize("exercise", LONG, ids=lambda exercise: exercise.name)
def test_it_comes_out_as_its_answer_says(exercise):
    assert answers.check(exercise) == []
