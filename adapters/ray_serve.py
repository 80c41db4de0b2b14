"""The scoring server as a Ray Serve deployment: replicas on many machines behind one address.

Batches are made inside a replica, by tokens: Ray's own batching counts requests, and would wait twice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bonmini_guard.errors import ConfigurationError, needing
from bonmini_guard.server import TOKEN
from bonmini_guard.validation import Amount, Count, checked


class ScoringReplica:
    """One reward model on one machine.

    Args:
        reward_model: folder or id; the folder must be there on every machine.
        load: arguments of :meth:`RewardModel.load`.
        requests: most requests that wait or run here.
    """

    def __init__(self, reward_model: str, load: dict[str, Any], requests: int) -> None:
        from bonmini_guard.reward.declared import load_scorer
        from bonmini_guard.server.app import ScoringServer
        from bonmini_guard.server.door import Limits

        # Ray's own limit comes first; this one is for what reaches the replica past it.
        token = os.environ.get(TOKEN, "").strip() or None
        self._server = ScoringServer(load_scorer(reward_model, **load), token, Limits(requests=requests))
        routes = self._server.routes()
        self._endpoints = {(method, route.path): route.endpoint for route in routes for method in route.methods or ()}

    async def __call__(self, request: Any) -> Any:
        """The answer to one HTTP request."""
        from bonmini_guard.server.door import Refused

        try:
            if (endpoint := self._endpoints.get((request.method, request.url.path))) is None:
                raise Refused(404, "not_found", "Not Found")
            return await endpoint(request)
        except Refused as refused:
            return self._server.refuse(request, refused)


@checked
def scoring_application(
    reward_model: str | os.PathLike[str],
    *,
    replicas: Count = 1,
    most_replicas: Count | None = None,
    gpus_per_replica: Amount = 0.0,
    requests_per_replica: Count = 64,
    **load: Any,
) -> Any:
    """A Ray Serve application, for ``serve.run(scoring_application(...), route_prefix="/")``.

    Ray listens at the loopback unless told otherwise. A token is read from the environment of the replicas, as
    ``BONMINI_GUARD_TOKEN``; set one before Ray listens anywhere else.

    Args:
        reward_model: folder or id of the reward model, or a scorer spec, at the same path on every machine.
        replicas: how many, or the least there are.
        most_replicas: if given, Ray adds replicas up to this number while requests queue, and removes them when they do not.
        gpus_per_replica: GPUs that each reserves.
        requests_per_replica: most requests that one has at a time; Ray holds twice as many, and answers 503 to more.
        **load: arguments of :meth:`RewardModel.load`.

    Raises:
        ConfigurationError: a number is wrong.
        MissingExtraError: Ray Serve is not installed.
    """
    if most_replicas is not None and most_replicas < replicas:
        raise ConfigurationError("most_replicas must be no less than replicas")
    with needing("ray"):
        from ray import serve
    number: dict[str, Any] = {"num_replicas": replicas}
    if most_replicas is not None:
        # Half of what a replica takes keeps it busy; more in its queue is a reason for another.
        target = max(1, requests_per_replica // 2)
        number = {
            "autoscaling_config": {"min_replicas": replicas, "max_replicas": most_replicas, "target_ongoing_requests": target}
        }
    deployment = serve.deployment(
        name="bonmini-guard-scoring",
        max_ongoing_requests=requests_per_replica,
        max_queued_requests=2 * requests_per_replica,
        ray_actor_options={"num_gpus": gpus_per_replica},
        **number,
    )(ScoringReplica)
    place = Path(reward_model)
    return deployment.bind(str(place.absolute() if place.exists() else reward_model), load, requests_per_replica)
