"""The script for a GPU, run tiny on the CPU."""

import json

import torch

from benchmarks import gpu


def test_it_draws_scores_and_compares_on_the_cpu(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        gpu.main(["--tiny", "--json", str(tmp_path / "gpu.json")])
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["not_measured"] == []
    drawing, scoring = found["shapes"]["tiny"]["drawing"], found["shapes"]["tiny"]["scoring"]
    assert set(drawing) == set(gpu.ways())
    assert all(row["requests_per_second"] > 0 and row["tokens_per_second"] > 0 for row in drawing.values())
    differences = scoring["largest difference of a score"]
    assert max(differences[name] for name in ("packed", "kept prompt", "together")) < 1e-4 < differences["spread of scores"]
    assert "rolling, auto" in capsys.readouterr().out
