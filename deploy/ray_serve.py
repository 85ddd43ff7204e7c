"""Replicas of the same application under Ray Serve: pip install "ray[serve]" && serve run deploy.ray_serve:app

Ray starts the processes, sends requests round and restarts what dies; each replica is the application of `dalle serve`
with its own model. Limits of clients hold for each replica.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.types import Receive, Scope, Send


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1}, graceful_shutdown_timeout_s=75)
class Replica:
    """One process with a model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from dalle.apps.server.app import create_app
        from dalle.apps.server.settings import ServeConfig
        from dalle.pipelines.text_to_image import TextToImage

        own = ServeConfig(**settings)
        self.app = create_app(TextToImage.from_pretrained(own.model, own.device, clip=own.clip), own)
        self.app.state.worker.start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self.app(scope, receive, send)

    def check_health(self) -> None:
        """Ray starts a replica anew where this raises."""
        if not self.app.state.worker.alive:
            raise RuntimeError("the worker has ended")


app = Replica.bind({"max_batch": 16})
