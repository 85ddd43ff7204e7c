"""Replicas of the same application under Ray Serve: pip install "ray[serve]" && serve run deploy.ray_serve:app

Ray starts the processes, distributes requests among them and restarts those that die. Each replica is the application
of `dalle serve` with its own model; limits of clients hold for each replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray import serve

if TYPE_CHECKING:
    from fastapi import FastAPI


def build() -> FastAPI:
    """Load the model and make the application; runs in each replica."""
    from dalle.apps.server.app import create_app
    from dalle.apps.server.settings import ServeConfig
    from dalle.pipelines.text_to_image import TextToImage

    settings = ServeConfig(max_batch=16)
    return create_app(TextToImage.from_pretrained(settings.model, settings.device, clip=settings.clip), settings)


replicas = serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1}, graceful_shutdown_timeout_s=75)
app = replicas(serve.ingress(build)()).bind()
