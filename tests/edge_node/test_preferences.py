"""What a request may ask for, and what only the settings may say."""

import pytest
from pydantic import ValidationError

from edge_node.preferences import ModelPreferences, Upload, Wishes
from edge_node.settings import Settings


@pytest.mark.parametrize("name", ["upload", "change_threshold"])
def test_a_request_cannot_say_what_is_kept_of_a_model(name: str) -> None:
    with pytest.raises(ValidationError):
        Wishes.model_validate({name: "never"})


def test_a_model_cannot_ask_to_wait_for_the_disk() -> None:
    with pytest.raises(ValidationError):
        ModelPreferences.model_validate({"keep": True})


def test_by_default_what_is_worth_it_is_kept_and_nobody_waits() -> None:
    assert ModelPreferences().upload is Upload.LEARNING
    assert Wishes().keep is False


def test_they_come_from_the_settings() -> None:
    models = '{"a": {"upload": "never", "change_threshold": 0.5}}'
    settings = Settings.model_validate({"models": models})
    assert settings.models["a"] == ModelPreferences(upload=Upload.NEVER, change_threshold=0.5)
    with pytest.raises(ValidationError):
        Settings.model_validate({"models": '{"a": {"change_threshold": -1}}'})


def test_without_a_file_there_is_no_outbox() -> None:
    assert Settings.model_validate({"outbox": ""}).outbox is None
    assert Settings.model_validate({}).outbox is None
