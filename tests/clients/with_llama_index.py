"""LlamaIndex's OpenAILike: chat, stream, a class, and plain completions."""

import os

import pydantic
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")
given = {"model": "smollm2", "api_base": URL, "api_key": "none", "max_tokens": 40, "temperature": 0.0}
model = OpenAILike(**given, is_chat_model=True, should_use_structured_outputs=True)
asked = [ChatMessage("The capital of France is?")]
whole = model.chat(asked).message.content
print(whole)
assert "".join(piece.delta or "" for piece in model.stream_chat(asked)) == whole


class City(pydantic.BaseModel):
    name: str
    inhabitants: int


paris = [ChatMessage("Paris has 2 million inhabitants.")]
assert isinstance(model.as_structured_llm(City).chat(paris).raw, City)
calling = OpenAILike(**given, is_chat_model=True, is_function_calling_model=True)
assert isinstance(calling.as_structured_llm(City).chat(paris).raw, City)
assert OpenAILike(**given).complete("The capital of France is").text
