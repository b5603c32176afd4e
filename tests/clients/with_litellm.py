"""LiteLLM: whole, streamed, with a schema."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # or it asks the network for prices
import litellm
import pydantic

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")
asked = [{"role": "user", "content": "The capital of France is?"}]
given = {"model": "hosted_vllm/smollm2", "api_base": URL, "messages": asked, "max_tokens": 20, "top_k": 1}
whole = litellm.completion(**given)
print(whole.choices[0].message.content, whole.usage.total_tokens)
pieces = litellm.completion(**given, stream=True)
assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content


class City(pydantic.BaseModel):
    name: str
    inhabitants: int


found = litellm.completion(**{**given, "max_tokens": 60}, response_format=City)
City.model_validate(json.loads(found.choices[0].message.content))
