"""A small reward model for the server's tests."""

import math

import pytest
import torch
from starlette.testclient import TestClient

from bonmini_guard.reward.model import RewardModel
from bonmini_guard.server.app import ScoringServer
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


def local(app):
    """A client on the machine of a server without a token."""
    return TestClient(app, base_url="http://127.0.0.1", headers={"content-type": "application/json"})


@pytest.fixture
def client(model):
    with local(ScoringServer(model).app) as client:
        yield client


def sigmoid(score):
    return 1 / (1 + math.exp(-score))
