"""A guardrail in a retrieval chain: an answer that its sources do not support is not served.

Offline: a fake chat model, three documents, and a judge that counts supported words. In your application the model is yours
and the judge is ``RewardModel.load("my-reward-model")`` with a calibrated ``profile=``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough

from bonmini_guard import BestOfMiniN, NoAcceptableResponse, reward_function
from bonmini_guard.testing import FakeChatModel

DOCUMENTS = (
    "The library opens at nine and closes at six. On Sundays it stays closed.",
    "A reader may borrow ten books for four weeks. A late book costs twenty cents a day.",
    "The reading room on the second floor has forty seats and a printer.",
)
ANSWERS = {
    "When does the library open?": ["It opens at eight, except in summer.", "The library opens at nine."],
    "Who founded the library?": ["It was founded by Ada Miller in 1902.", "King Harald founded it, after the war."],
}
PROMPT = ChatPromptTemplate.from_messages([("system", "Answer from these sources only:\n{sources}"), ("human", "{question}")])


def words(text: str) -> set[str]:
    """The words of a text that carry meaning."""
    return set(re.findall(r"[a-z]{4,}|\d+", text.lower()))


def retrieve(question: str) -> str:
    """The two documents that share most words with the question."""
    return "\n".join(sorted(DOCUMENTS, key=lambda text: -len(words(text) & words(question)))[:2])


@reward_function(has_zero=True)
def supported(messages: list[BaseMessage], candidates: Sequence[AIMessage]) -> list[float]:
    """Positive if the sources or the question hold every word of the answer."""
    known = set().union(*(words(message.text) for message in messages))
    return [0.5 - len(words(candidate.text) - known) for candidate in candidates]


def speak(messages: list[BaseMessage], number: int) -> str:
    """A model that is right now and then."""
    return ANSWERS[messages[-1].text][number % 2]


def build() -> Runnable[str, str]:
    """The chain: retrieve, ask, guard, parse."""
    guard = BestOfMiniN(generator=FakeChatModel(speak), reward_model=supported, mini_n=2, max_loops=2)
    return {"sources": retrieve, "question": RunnablePassthrough()} | PROMPT | guard | StrOutputParser()


def main() -> None:
    """Ask a question that the documents answer, and one that they do not."""
    warnings.filterwarnings("ignore", message="uncalibrated")
    chain = build()
    for question in ANSWERS:
        try:
            print(f"{question} {chain.invoke(question)}")
        except NoAcceptableResponse as error:
            print(f"{question} (no answer: {error.result.draws} drafts, none supported by the sources)")


if __name__ == "__main__":
    main()
