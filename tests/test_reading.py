"""What a reader of the notebooks meets: how many words, how long, in which order, and words that were said before."""

import re

import nbformat
import pytest

from tests.notebooks import FOLDER

COURSE = sorted(path.name for path in FOLDER.glob("*.ipynb"))
WORDS = 3700  # in the first five notebooks together; each is meant for a quarter of an hour
INDEX = (FOLDER / "README.md").read_text(encoding="utf-8")
TIME = re.compile(r"^\*About (\d+ minutes) to read, (.+) to run \(\[words\]\(README.md\)\)\.\*$", re.MULTILINE)


def texts(name: str) -> list[str]:
    """The Markdown cells of a notebook."""
    cells = nbformat.read(FOLDER / name, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def test_the_first_five_are_short():
    counted = {name: sum(len(text.split()) for text in texts(name)) for name in COURSE[:5]}
    assert sum(counted.values()) <= WORDS, counted


@pytest.mark.parametrize("name", COURSE)
def test_a_notebook_begins_with_its_question_and_the_time_it_takes(name):
    first = texts(name)[0]
    question = first.splitlines()[0]
    assert question.startswith("# ") and question.endswith("?")
    reading, running = TIME.search(first).groups()
    (row,) = [line for line in INDEX.splitlines() if line.startswith(f"| [{name.removesuffix('.ipynb')}]({name})")]
    assert question.removeprefix("# ") in row
    assert reading.replace("minutes", "min") in row and running in row


@pytest.mark.parametrize(("name", "following"), list(zip(COURSE, [*COURSE[1:], "README.md"], strict=True)))
def test_a_notebook_ends_with_a_link_to_the_next(name, following):
    assert f"]({following})" in texts(name)[-1].splitlines()[-1]


def test_every_link_between_notebooks_leads_somewhere():
    pages = {"README.md": INDEX, **{name: "\n".join(texts(name)) for name in COURSE}}
    for name, text in pages.items():
        links = re.findall(r"\]\(((?!https?:)[^)#]+)\)|href=\"((?!https?:)[^\"#]+)\"", text)
        assert [link for pair in links for link in pair if link and not (FOLDER / link).exists()] == [], name


@pytest.mark.parametrize("name", COURSE)
def test_nobody_but_the_reader_is_spoken_to(name):
    assert not re.search("reviewer", "\n".join(texts(name)), re.IGNORECASE)


def test_words_are_said_before_they_are_used():
    """In the order of the course, each of these stands first where it is explained; and the glossary has all."""
    text = "\n".join(part for name in COURSE for part in texts(name))
    for word in (
        "Q",
        "active",
        "live",
        "cut",
        "dense epochs",
        "half-life",
        "gate",
        "re-activated",
        "woken",
        "returned",
    ):
        assert re.search(rf"^\| (.+, )?{word}\b", INDEX, re.MULTILINE), f"{word} is not in the glossary"
    for used, said in (
        ("the cut", r"if \*cut\* now"),
        ("free", "it costs no accuracy"),
        ("closes", "the gate is open"),
    ):
        assert re.search(said, text).start() < text.index(used) + 60, used
