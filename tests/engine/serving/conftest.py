"""What tests of a whole server share."""

import pytest

from engine.config import Config, FeedbackConfig, ModelsConfig, ServerConfig


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(
        server=ServerConfig(port=0, default_budget_ms=10_000),  # never overloaded
        models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2),
        feedback=FeedbackConfig(directory=str(tmp_path / "feedback")),
    )
