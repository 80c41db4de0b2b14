"""An accelerator behind a chat endpoint with server-sent events: progress while it draws, then the answer.

Offline: the bundled models. Start it with ``python -m examples.sse_endpoint`` and ask::

    curl -N -X POST http://127.0.0.1:8000/chat -H "content-type: application/json" -d '{"prompt": "This film is"}'

A client that goes away cancels its request, and with it the draws.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from bonmini_guard import BestOfMiniN, NoAcceptableResponse, RewardModel
from bonmini_guard.adapters import TransformersGenerator
from bonmini_guard.callbacks import PROGRESS
from bonmini_guard.demo.models import MODELS, NEW_TOKENS, TOP_K, model_path
from bonmini_guard.errors import BonMiniGuardError


class Question(BaseModel):
    """The body of a request."""

    prompt: str = Field(min_length=1, max_length=2000)


def bundled() -> BestOfMiniN:
    """The bundled models with the profile that was calibrated for them."""
    return BestOfMiniN(
        generator=TransformersGenerator.load(str(model_path("lm")), max_new_tokens=NEW_TOKENS, top_k=TOP_K),
        reward_model=RewardModel.load(str(model_path("reward"))),
        profile=MODELS / "accelerator.json",
        progress=True,
        timeout=60.0,
    )


async def tell(guard: BestOfMiniN, prompt: str) -> AsyncIterator[str]:
    """The events of one request."""
    try:
        async for event in guard.astream_events(prompt, version="v2"):
            if event["event"] == "on_custom_event" and event["name"] == PROGRESS:
                yield sse("progress", event["data"])
            elif event["event"] == "on_chain_end" and not event["parent_ids"]:
                message = event["data"]["output"]
                yield sse("answer", {"text": message.text, **message.response_metadata["bonmini_guard"]})
    except NoAcceptableResponse as refused:
        yield sse("refused", {"reason": refused.result.reason})
    except BonMiniGuardError as error:
        yield sse("error", {"kind": type(error).__name__})


def sse(event: str, data: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


def build(guard: BestOfMiniN) -> FastAPI:
    """The application."""
    app = FastAPI(title="Guarded chat")

    @app.post("/chat")
    async def chat(question: Question) -> StreamingResponse:
        """Progress and the answer."""
        return StreamingResponse(tell(guard, question.prompt), media_type="text/event-stream")

    return app


def main() -> None:
    """Serve on the loopback interface."""
    import uvicorn

    uvicorn.run(build(bundled()), host="127.0.0.1", port=8000)


if __name__ == "__main__":
    main()
