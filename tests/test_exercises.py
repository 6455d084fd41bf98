"""The answers to the notebooks' exercises: each promises what a test looks for, and the quick ones are done.

The others take minutes over three seeds: `make soak` does them (tests/soak/test_exercises.py).
"""

import pytest

from tests import answers
from tests.notebooks import FOLDER

ALL = pytest.mark.parametrize("exercise", answers.EXERCISES, ids=lambda exercise: exercise.name)
QUICK = [exercise for exercise in answers.EXERCISES if exercise.quick]


def test_every_exercise_has_a_test():
    there = {
        f"{path.name[:2]}-{number}" for path in FOLDER.glob("*.ipynb") for number in answers.answers(path.name[:2])
    }
    assert sorted(exercise.name for exercise in answers.EXERCISES) == sorted(there)
    assert len(there) >= 30


@ALL
def test_the_answer_says_what_is_tested(exercise):
    said = answers.answers(exercise.notebook)[exercise.number]
    assert [claim.text for claim in exercise.claims if claim.text not in said] == [], said
    assert exercise.claims


@pytest.mark.parametrize("exercise", QUICK, ids=lambda exercise: exercise.name)
def test_a_quick_exercise_comes_out_as_its_answer_says(exercise):
    assert answers.check(exercise) == []


def test_a_wrong_answer_is_noticed():
    (exercise,) = [exercise for exercise in QUICK if exercise.name == "10-3"]
    wrong = answers.Exercise("10", 3, exercise.measure, (answers.Claim("n is about 30", "seeds", 28, 32),))
    assert len(answers.check(wrong)) == len(answers.SEEDS)
    assert "the answer says: n is about 30" in answers.check(wrong)[0]
