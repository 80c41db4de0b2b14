"""What to know of choice rows before training on them: how much "none" there is, copies, conflicts, length, leakage."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bonmini_guard.conversation import prompt_digest
from bonmini_guard.training.choices import ChoiceRow, shown


@dataclass
class Statistics:
    """Counts over choice rows; they take memory for hashes, not for texts.

    Attributes:
        rows: of the file.
        judgements: rows weighted by their counts.
        offered: judgements in which "none" could be chosen.
        none: of those, the ones that chose it.
        sizes: judgements by the number of answers.
        copies: rows that repeat an earlier one exactly.
        repeated: judgements of (prompt, answers) that were judged more than once.
        minority: of those, the ones that differ from the most frequent choice.
        compared: comparisons of the chosen answer with one of another length.
        longer: of those, in which the longer answer was chosen.
        same_text: rows that offer one text twice.
        leaked: held-out prompts that are among the training prompts too, but for case and white space.
    """

    rows: int = 0
    judgements: int = 0
    offered: int = 0
    none: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    copies: int = 0
    repeated: int = 0
    minority: int = 0
    compared: int = 0
    longer: int = 0
    same_text: int = 0
    leaked: int = 0
    prompts: int = 0
    texts: int = 0

    @property
    def share_of_none(self) -> float | None:
        """Of the judgements in which it was offered; None if it never was."""
        return self.none / self.offered if self.offered else None

    def lines(self) -> Iterator[str]:
        """What a reader wants to see, one fact a line."""
        yield f"{self.rows:,} rows, {self.judgements:,} judgements, {self.prompts:,} prompts, {self.texts:,} distinct answers"
        sizes = ", ".join(f"{size}: {count:,}" for size, count in sorted(self.sizes.items()))
        yield f"judgements by number of answers: {sizes}"
        share = self.share_of_none
        if share is not None:
            yield f'"none" was chosen in {share:.1%} of the {self.offered:,} judgements that offered it'
        if self.repeated:
            share = self.minority / self.repeated
            yield f"{share:.0%} of {self.repeated:,} repeated judgements are not the most frequent one: noise, or labels to look at"
        if self.compared:
            yield f"the longer answer won {self.longer / self.compared:.1%} of {self.compared:,} comparisons"

    def warnings(self) -> Iterator[str]:
        """What deserves a look before training."""
        share = self.share_of_none
        if share is None:
            yield '"none" was never offered: these rows rank, and say nothing about zero; add labels with an absolute meaning'
        elif not 0.02 <= share <= 0.98:
            yield f'"none" was chosen in {share:.1%} of the judgements: so one-sided data place the zero poorly'
        if self.copies > 0.01 * self.rows:
            yield f'{self.copies:,} rows repeat an earlier one: remove copies; write "count" where several labellers agree'
        if self.compared >= 100 and not 0.35 <= self.longer / self.compared <= 0.65:
            yield f"the longer answer won {self.longer / self.compared:.0%} of comparisons: the model may learn length"
        if self.same_text:
            yield f"{self.same_text:,} rows offer one text twice: their choice means nothing"
        if self.leaked:
            yield f"{self.leaked:,} held-out prompts are trained on too: the held-out figures will flatter"


def describe(rows: Iterable[ChoiceRow], held_out: Iterable[ChoiceRow] = ()) -> Statistics:
    """Statistics of rows that are to be trained on; ``held_out`` only counts towards ``leaked``."""
    collector = Collector()
    for row in rows:
        collector.add(row)
    return collector.finish(held_out)


class Collector:
    """Collects statistics row by row."""

    def __init__(self) -> None:
        self._found = Statistics()
        self._seen: set[int] = set()
        self._texts: set[int] = set()
        self._prompts: set[str] = set()
        self._answers: dict[int, Counter[int]] = defaultdict(Counter)

    def add(self, row: ChoiceRow) -> None:
        """Count one row."""
        found, count = self._found, row.count
        found.rows += 1
        found.judgements += count
        found.sizes[len(row.responses)] += count
        if row.none_offered:
            found.offered += count
            found.none += count * (row.choice == "none")
        found.same_text += len(set(row.responses)) < len(row.responses)
        self._lengths(row)
        self._identities(row)

    def finish(self, held_out: Iterable[ChoiceRow] = ()) -> Statistics:
        """The statistics of all rows so far."""
        found = self._found
        repeated = [answers for answers in self._answers.values() if answers.total() > 1]
        found.repeated = sum(answers.total() for answers in repeated)
        found.minority = found.repeated - sum(max(answers.values()) for answers in repeated)
        found.prompts, found.texts = len(self._prompts), len(self._texts)
        found.leaked = len({prompt_digest(row.prompt) for row in held_out} & self._prompts)
        return found

    def _lengths(self, row: ChoiceRow) -> None:
        if row.choice == "none":
            return
        lengths = [len(shown(answer)) for answer in row.responses]
        chosen = lengths[row.choice]
        others = [length for length in lengths if length != chosen]
        self._found.compared += row.count * len(others)
        self._found.longer += row.count * sum(chosen > other for other in others)

    def _identities(self, row: ChoiceRow) -> None:
        prompt = prompt_digest(row.prompt)
        self._prompts.add(prompt)
        self._texts.update(hash((row.prompt, text)) for text in row.responses)
        said = hash((row.prompt, row.responses, row.choice, row.none_offered))
        self._found.copies += said in self._seen
        self._seen.add(said)
        chosen = "" if row.choice == "none" else row.responses[row.choice]
        self._answers[hash((row.prompt, frozenset(row.responses), row.none_offered))][hash(chosen)] += row.count


def show(statistics: Statistics) -> str:
    """Facts and warnings as one text, a line each."""
    return "\n".join([*statistics.lines(), *(f"warning: {warning}" for warning in statistics.warnings())])
