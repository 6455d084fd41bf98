"""What the answers to the notebooks' exercises promise, in the very words that stand in the notebooks.

`EXERCISES` has one entry for each; `check` does it over three seeds. Nothing here holds a number that the answer does
not say, so text and test cannot drift apart.
"""

import dataclasses
import re
from collections.abc import Callable

import nbformat

from tests import exercises as do
from tests.notebooks import FOLDER

SEEDS = range(3)
ANSWER = re.compile(r"^(\d)\. .*?<details><summary>Answer</summary>(.*?)</details>", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Claim:
    """Words of an answer, with {low} and {high} where those numbers stand, and which measured number they are about."""

    words: str
    of: str
    low: float = -float("inf")
    high: float = float("inf")

    @property
    def text(self) -> str:
        return self.words.format(low=f"{self.low:,g}", high=f"{self.high:,g}")


@dataclasses.dataclass(frozen=True)
class Exercise:
    """An exercise: its notebook and number, how it is done, what its answer promises, and whether that is quick."""

    notebook: str
    number: int
    measure: Callable[[int], do.Numbers]
    claims: tuple[Claim, ...]
    quick: bool = False

    @property
    def name(self) -> str:
        return f"{self.notebook}-{self.number}"


def answers(notebook: str) -> dict[int, str]:
    """The hidden answers of a notebook (the number in its name will do), by the exercise's number."""
    (path,) = FOLDER.glob(f"{notebook}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown").partition("## Exercises")[2]
    return {int(number): answer for number, answer in ANSWER.findall(text)}


def check(exercise: Exercise) -> list[str]:
    """Do an exercise over three seeds; what does not come out as its answer says."""
    wrong = []
    for seed in SEEDS:
        found = exercise.measure(seed)
        wrong += [
            f"seed {seed}: {claim.of} is {found[claim.of]:.6g}, the answer says: {claim.text}"
            for claim in exercise.claims
            if not claim.low <= found[claim.of] <= claim.high
        ]
    return wrong


EXERCISES = (
    Exercise("00", 1, do.no_decay, (
        Claim("anywhere from {low} to {high}%", "cut", 20, 95),
        Claim("live it is {low} to {high}%", "live", 96, 99),
    )),
    Exercise("00", 2, do.few_weights, (
        Claim("The first keeps 0.2% of its weights", "fc1", 0.15, 0.25),
        Claim("the last {low} to {high}%", "fc3", 16, 26),
        Claim("loses at most {high} points against 60x", "lost", high=2),
    )),
    Exercise("00", 3, do.momentum_gone, (
        Claim("the live accuracy loses at most {high} points", "live", high=2),
        Claim("the cut one at most {high}", "cut", high=5),
        Claim("halves ten times more slowly", "longer", 9.99, 10.01),
    )),
    Exercise("01", 1, do.largest_compression, (
        Claim("At least 300: there it costs at most {high} point", "lost at 300x", high=1),
    )),
    Exercise("01", 2, do.schedule, (
        Claim("With *GSM at 60×* the cut costs {low} to {high} points", "GSM at 60×, falls, lost", 0, 6),
        Claim("with *too little momentum* still {low} to {high}", "too little momentum, falls, lost", 10, 60),
    )),
    Exercise("01", 3, do.copied_state, (
        Claim("at step 0", "begun", 0, 0),
        Claim("The same settings, seed included", "same", 1, 1),
        Claim("repeats yours to the bit", "repeats", 1, 1),
    ), quick=True),
    Exercise("02", 1, do.single_precision, (
        Claim("{low} to {high}% of those drawn", "single", 50, 65),
        Claim("not 27%", "double", 26, 27.5),
        Claim("less than about 1e-6", "floor", 0.5e-6, 2e-6),
    )),
    Exercise("02", 2, do.random_sets, (
        Claim("its error goes from under {high}%", "least", high=25),
        Claim("to over {low}%", "most", 35),
        Claim("it is off by at most {high}", "absolute", high=0.001),
    )),
    Exercise("02", 3, do.fast_steps, (
        Claim("After 300 steps it is {low} to {high}% off", "error at 0.1", 30, 150),
        Claim("at 0.3 more than {low}%", "error at 0.3", 200),
        Claim("{low} to {high}% of the steps raise the loss", "rises at 0.3", 20, 60),
    )),
    Exercise("03", 1, do.compression_dragged_back, (
        Claim("from 887", "few", 887, 887),
        Claim("to 4,436", "many", 4436, 4436),
        Claim("at least {low} weights", "back", 3549),
    ), quick=True),
    Exercise("03", 2, do.short_controls, (
        Claim("It helps: by {low} to {high} points after the cut, in the mean of both", "gained", 0, 6),
    )),
    Exercise("03", 3, do.patience_of_one, (
        Claim("It lies on that of the re-activated", "differ", 0, 0),
        Claim("all were passive for at least one step", "reactivated", 1),
    ), quick=True),
    Exercise("04", 1, do.rate_held, (
        Claim("Nearly: it costs less than {high} points", "lost, held", -1.5, 1.5),
        Claim("the last epoch asks for {low} to {high} Q", "asked, held", 1.05, 1.2),
        Claim("no more than with the schedule", "asked more", 0),
        Claim("The schedule is there for the accuracy, up to {high} points", "live gained", -0.5, 4),
    )),
    Exercise("04", 2, do.swings_at_099, (
        Claim("weights swing through zero", "swings", 1, 1),
        Claim("αη = 3e-4", "product", 3e-4, 3e-4),
        Claim("the critical value of 0.99 is 2.5e-5", "critical", 2.5e-5, 2.55e-5),
        Claim("after 150 steps the accuracy is below {high}%", "after", high=50),
        Claim("1,000 at the lower rate leave it there", "end", high=50),
    )),
    Exercise("04", 3, do.near_critical, (
        Claim("The larger root lies below the closed form", "0.9 faster", 1.0001),
        Claim("the more so the nearer αη is to critical", "0.98 faster than 0.9", 1.0001),
        Claim("0.98 comes near", "0.98 of critical", 0.85, 1),
        Claim("0.99 passes it", "0.99 of critical", 1),
        Claim("about (1−β)²/4", "critical over that", 0.95, 1.1),
    ), quick=True),
    Exercise("04", 4, do.how_long, (
        Claim("= 2,070 steps by the closed form", "closed form", 2065, 2075),
        Claim("2,010. More if", "exact", 2005, 2015),
        Claim("More if the schedule lowers the rate", "with a schedule", 2075),
    ), quick=True),
    Exercise("05", 1, do.no_momentum, (
        Claim("passive weights shrink by a fixed share in each step", "spread of the share", high=1e-5),
        Claim("how fast the passive ones fall", "half-lives over those at 0.9", 9.99, 10.01),
    ), quick=True),
    Exercise("05", 2, do.at_once, (
        Claim("anything from {low} to {high}%", "once", 70, 98.5),
        Claim("fifteen rounds leave {low} to {high}%", "many", 96, 99),
    )),
    Exercise("05", 3, do.admm_decay, (
        Claim("{low} to {high}% both times", "gsm's", 96, 99),
        Claim("{low} to {high}% both times", "own", 96, 99),
        Claim("at most {high} points apart", "apart", high=1.5),
    )),
    Exercise("06", 1, do.another_seed, (
        Claim("The densities are, within {high}%", "apart", high=10),
        Claim("two seeds share less than {high}% of those that stay", "shared", high=15),
    )),
    Exercise("06", 2, do.papers_gate, (
        Claim("it ends at {low} to {high}%", "gsm", 96, 98.5),
        Claim("at most {high} points from the other", "apart", high=1.5),
    )),
    Exercise("06", 3, do.tickets_at_300, (
        Claim("The random one is at chance, under {high}%", "random", high=20),
        Claim("to {high}% or less", "shuffled", high=75),
        Claim("whose ticket reaches {low} to {high}%", "gsm", 94, 98.5),
        Claim("magnitude loses to GSM", "ahead", 0),
        Claim("by 0 to {high} points", "ahead", 0, 10),
    )),
    Exercise("07", 1, do.starved, (
        Claim("{low} to {high}% of the places that are lost were its own", "first of what was given", 55, 80),
        Claim("it keeps {low} to {high}% of what it had", "fc1 left", 3, 12),
        Claim("the last layer {low} to {high}%", "fc3 left", 25, 50),
    )),
    Exercise("07", 2, do.wide_last_layer, (
        Claim("from {low} to {high}% of 300 weights", "30", 55, 67),
        Claim("{low} to {high}% of 1,000", "100", 34, 45),
    )),
    Exercise("07", 3, do.untrained, (
        Claim("accuracy is at chance, {low} to 20%", "least", 5),
        Claim("accuracy is at chance, 5 to {high}%", "most", high=20),
        Claim("the loss moves by less than {high}", "rise", high=0.1),
        Claim("an epoch of it takes the network to {low} to {high}%", "whole", 25, 65),
        Claim("with 1% of *any* layer it stays at {low} to 25%", "starving, least", 8),
        Claim("with 1% of *any* layer it stays at 8 to {high}%", "starving, most", high=25),
    ), quick=True),
    Exercise("09", 1, do.more_bytes, (
        Claim("{low} to {high}% at k = 1", "between, 1", 50, 60),
        Claim("{low} to {high}% at k = 4", "between, 4", 42, 53),
        Claim("{low} to {high}% found", "single, 1", 70, 77),
        Claim("then {low} to {high}%", "single, 4", 88, 95),
    )),
    Exercise("09", 2, do.larger_batch, (
        Claim("({low} to {high}% in the first third", "early, 256", 50, 65),
        Claim("not {low} to {high}%): larger parts", "early, 64", 38, 49),
        Claim("({low} to {high}% in the last third", "late, 256", 55, 68),
        Claim("Later they do not", "late, less", 0),
        Claim("not {low} to {high}%): with", "late, 64", 62, 72),
        Claim("the run is over after {high} steps", "steps", 200, 200),
    )),
    Exercise("09", 3, do.crossing, (
        Claim("That is 60 ranks at 60x with four bytes each", "four bytes", 60, 60),
        Claim("and 24 with the assumptions above", "as above", 24, 24),
        Claim("there the two lines cross in the figure", "the figure, before", high=1),
        Claim("there the two lines cross in the figure", "the figure, after", 1),
    ), quick=True),
    Exercise("09", 4, do.last_bit, (
        Claim("within {high} steps", "step", 2, 400),
    ), quick=True),
    Exercise("10", 1, do.decay_off, (
        Claim("1,500 steps later the cut still costs {low} to {high} points", "lost", 3, 60),
    )),
    Exercise("10", 2, do.frozen, (
        Claim("Turnover drops to nothing", "turnover, frozen", high=0.1),
        Claim("to {low} to {high}% instead of", "distance, frozen", 3, 8),
        Claim("instead of {low} to {high}%", "distance, plain", 10, 19),
        Claim("Live and cut accuracy end within {high} point", "lost, frozen", -1, 1),
    )),
    Exercise("10", 3, do.seeds_needed, (
        Claim("n is about 90", "seeds", 85, 95),
    ), quick=True),
)  # fmt: skip
