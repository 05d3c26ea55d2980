"""A handful of the provider's models: what they accept, cost and make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

_PROMPT: Schema = {"type": "string", "description": "What to make."}
_SEED: Schema = {"type": "integer", "minimum": -1, "maximum": 2_147_483_647, "default": -1}
_SWITCHES: Schema = {
    "enable_base64_output": {"type": "boolean", "default": False},
    "enable_sync_mode": {"type": "boolean", "default": False},
}


@dataclass(frozen=True)
class Model:
    """One model. *surcharges* gives dollars by parameter and value, on top of the base price of one output."""

    id: str
    name: str
    type: str
    base_price: float
    description: str
    properties: Schema
    surcharges: Mapping[str, Mapping[object, float]] = field(default_factory=dict)
    extension: str = "png"

    @property
    def kind(self) -> str:
        """Which of the account's limits it counts against: `image` or `video`."""
        return "video" if self.type.endswith("video") else "image"

    @cached_property
    def schema(self) -> Schema:
        """JSON Schema of the input; unknown fields are refused."""
        return {
            "type": "object",
            "properties": self.properties | _SWITCHES,
            "required": ["prompt"],
            "additionalProperties": False,
            "x-order-properties": [*self.properties, *_SWITCHES],
        }

    @cached_property
    def _validator(self) -> Draft202012Validator:
        return Draft202012Validator(self.schema)

    def complaint(self, given: Mapping[str, object]) -> str | None:
        """What is wrong with an input, in a sentence; None when nothing is."""
        error = next(iter(self._validator.iter_errors(given)), None)
        if error is None:
            return None
        return f"{error.json_path.removeprefix('$.')}: {error.message}".removeprefix("$: ")[:300]

    def outputs(self, given: Mapping[str, Any]) -> int:
        """How many files a task makes."""
        wanted = given.get("num_images", 1)
        return wanted if isinstance(wanted, int) else 1

    def price(self, given: Mapping[str, Any]) -> float:
        """Dollars for one task."""
        extra = 0.0
        for name, steps in self.surcharges.items():
            chosen = given.get(name)
            extra += steps.get(chosen, 0.0) if isinstance(chosen, str | int) else 0.0
        return round((self.base_price + extra) * self.outputs(given), 6)

    def size(self, given: Mapping[str, Any]) -> tuple[int, int]:
        """Pixels of a picture: the `size` asked for, else a square."""
        text = given.get("size")
        width, _, height = (text if isinstance(text, str) else "").partition("*")
        if width.isdecimal() and height.isdecimal():
            return max(1, min(int(width), 2048)), max(1, min(int(height), 2048))
        return 1024, 1024

    def listing(self, server: str, order: int) -> dict[str, object]:
        """The model as `GET /models` shows it."""
        run = {
            "type": "model_run",
            "method": "POST",
            "server": server,
            "api_path": f"/api/v3/{self.id}",
            "request_schema": self.schema,
        }
        return {
            "model_id": self.id,
            "name": self.name,
            "base_price": self.base_price,
            "description": self.description,
            "type": self.type,
            "sort_order": order,
            "api_schema": {"api_schemas": [run]},
        }


_MODELS = (
    Model(
        "openai/dall-e-2", "DALL-E 2", "text-to-image", 0.12, "One picture of a prompt, at a flat price.",
        {"prompt": _PROMPT},
    ),
    Model(
        "openai/dall-e-3", "DALL-E 3", "text-to-image", 0.04, "Pictures in three sizes and two qualities.",
        {
            "prompt": _PROMPT,
            "size": {"type": "string", "enum": ["1024*1024", "1024*1792", "1792*1024"], "default": "1024*1024"},
            "quality": {"type": "string", "enum": ["standard", "hd"], "default": "standard"},
            "style": {"type": "string", "enum": ["vivid", "natural"], "default": "vivid"},
        },
        surcharges={"size": {"1024*1792": 0.04, "1792*1024": 0.04}, "quality": {"hd": 0.04}},
    ),
    Model(
        "openai/gpt-image-1.5/text-to-image", "GPT Image 1.5", "text-to-image", 0.034, "Pictures by quality.",
        {
            "prompt": _PROMPT,
            "size": {"type": "string", "enum": ["1024*1024", "1024*1536", "1536*1024"], "default": "1024*1024"},
            "quality": {"type": "string", "enum": ["low", "medium", "high"], "default": "medium"},
        },
        surcharges={"quality": {"low": -0.025, "high": 0.099}},
    ),
    Model(
        "wavespeed-ai/flux-dev-lora", "FLUX dev with LoRAs", "text-to-image", 0.015, "Several pictures, many knobs.",
        {
            "prompt": _PROMPT,
            "size": {"type": "string", "pattern": r"^\d{3,4}\*\d{3,4}$", "default": "1024*1024"},
            "num_images": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
            "num_inference_steps": {"type": "integer", "minimum": 1, "maximum": 50, "default": 28},
            "guidance_scale": {"type": "number", "minimum": 0, "maximum": 20, "default": 3.5},
            "seed": _SEED,
            "loras": {
                "type": "array",
                "maxItems": 4,
                "items": {
                    "type": "object",
                    "properties": {
                        "path": {"type": "string"},
                        "scale": {"type": "number", "minimum": 0, "maximum": 4, "default": 1},
                    },
                    "required": ["path"],
                    "additionalProperties": False,
                },
            },
        },
    ),
    Model(
        "bytedance/seedance-v1-lite-t2v-480p", "Seedance Lite", "text-to-video", 0.08, "A short film of a prompt.",
        {
            "prompt": _PROMPT,
            "duration": {"type": "integer", "enum": [5, 10], "default": 5},
            "aspect_ratio": {"type": "string", "enum": ["16:9", "9:16", "1:1"], "default": "16:9"},
            "seed": _SEED,
        },
        surcharges={"duration": {10: 0.08}},
        extension="mp4",
    ),
)  # fmt: skip

MODELS: Mapping[str, Model] = {model.id: model for model in _MODELS}
