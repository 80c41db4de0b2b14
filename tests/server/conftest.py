"""A small reward model for the server's tests."""

import pytest
import torch

from bonmini_guard.reward.model import RewardModel
from tests.reward.test_model import CONFIGS, save

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("served"), CONFIGS["llama"], bonmini_guard={"zero": "outside_option", "version": 1})


@pytest.fixture
def model(folder):
    model = RewardModel.load(folder, device="cpu")
    yield model
    model.close()
