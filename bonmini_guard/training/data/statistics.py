"""What to know of choice rows before training on them: how much "none" there is, copies, conflicts, length, leakage."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bonmini_guard.conversation import prompt_digest
from bonmini_guard.training.choices import ChoiceRow, shown


@dataclass
class Statistics:
    """Counts over choice rows, added one by one; they take memory for hashes, not for texts.

    Attributes:
        judgements: rows weighted by their counts; those that ``offered`` "none", that chose ``none``, and by number of answers.
        copies: rows that repeat an earlier one exactly.
        compared: comparisons of the chosen answer with one of another length.
        longer: of those, in which the longer answer was chosen.
        leaked: held-out prompts that are among the training prompts too, but for case and white space.
        prompts, texts: digests.
    """

    rows: int = 0
    judgements: int = 0
    offered: int = 0
    none: int = 0
    sizes: Counter[int] = field(default_factory=Counter)
    copies: int = 0
    compared: int = 0
    longer: int = 0
    same_text: int = 0
    leaked: int = 0
    prompts: set[str] = field(default_factory=set)
    texts: set[int] = field(default_factory=set)
    _seen: set[int] = field(default_factory=set)
    _answers: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, row: ChoiceRow) -> None:
        """Count one row."""
        self.rows += 1
        self.judgements += row.count
        self.sizes[len(row.responses)] += row.count
        if row.none_offered:
            self.offered += row.count
            self.none += row.count * (row.choice == "none")
        self.same_text += len(set(row.responses)) < len(row.responses)
        if row.choice != "none":
            lengths = [len(shown(answer)) for answer in row.responses]
            chosen = lengths[row.choice]
            self.compared += row.count * sum(length != chosen for length in lengths)
            self.longer += row.count * sum(length < chosen for length in lengths)
        self.prompts.add(prompt_digest(row.prompt))
        self.texts.update(hash((row.prompt, text)) for text in row.responses)
        said = hash((row.prompt, row.responses, row.choice, row.none_offered))
        self.copies += said in self._seen
        self._seen.add(said)
        answers = self._answers[hash((row.prompt, frozenset(row.responses), row.none_offered))]
        answers[hash("" if row.choice == "none" else row.responses[row.choice])] += row.count

    @property
    def share_of_none(self) -> float | None:
        """Of the judgements in which it was offered; None if it never was."""
        return self.none / self.offered if self.offered else None

    def lines(self) -> Iterator[str]:
        """What a reader wants to see, one fact a line."""
        prompts, texts = len(self.prompts), len(self.texts)
        yield f"{self.rows:,} rows, {self.judgements:,} judgements, {prompts:,} prompts, {texts:,} distinct answers"
        sizes = ", ".join(f"{size}: {count:,}" for size, count in sorted(self.sizes.items()))
        yield f"judgements by number of answers: {sizes}"
        share = self.share_of_none
        if share is not None:
            yield f'"none" was chosen in {share:.1%} of the {self.offered:,} judgements that offered it'
        if repeated := sum(said.total() for said in self._answers.values() if said.total() > 1):
            share = sum(said.total() - max(said.values()) for said in self._answers.values()) / repeated
            yield f"{share:.0%} of {repeated:,} repeated judgements are not the most frequent one: noise, or labels to look at"
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
    found = Statistics()
    for row in rows:
        found.add(row)
    found.leaked = len({prompt_digest(row.prompt) for row in held_out} & found.prompts)
    return found


def show(statistics: Statistics) -> str:
    """Facts and warnings as one text, a line each."""
    return "\n".join([*statistics.lines(), *(f"warning: {warning}" for warning in statistics.warnings())])
