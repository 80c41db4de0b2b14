"""The five lines of each server's page, against the loopback server of its protocol. ``tests/live`` runs them on real ones."""

from __future__ import annotations

import pytest

pytest.importorskip("openai")
pytest.importorskip("huggingface_hub")

from tests.adapters.loopback import InThread
from tests.adapters.openai_server import OpenAIServer
from tests.adapters.tgi_server import TGIServer
from tests.pages import run_page, server_pages


@pytest.mark.parametrize("page", server_pages())
def test_a_pages_five_lines_run(page, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with InThread(TGIServer() if page == "tgi.md" else OpenAIServer()) as server:
        run_page(page, server.url, tmp_path)
    assert capsys.readouterr().out.startswith("answer")
    assert len(server.requests) == (1 if page.endswith("openai.md") else 4)
