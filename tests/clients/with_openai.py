"""openai: whole, streamed, as a class, with a tool; responses; embeddings."""

import os
from typing import Literal

import openai
import pydantic

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")
client = openai.OpenAI(base_url=URL, api_key="none")
print([model.id for model in client.models.list()])

asked = [{"role": "user", "content": "The capital of France is?"}]
whole = client.chat.completions.create(model="smollm2", messages=asked, max_tokens=20, temperature=0)
print(whole.choices[0].message.content, whole.usage.total_tokens)

pieces = client.chat.completions.create(
    model="smollm2",
    messages=asked,
    max_tokens=20,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
text = ""
for piece in pieces:
    text += piece.choices[0].delta.content or "" if piece.choices else ""
    usage = piece.usage
assert (text, usage.total_tokens) == (whole.choices[0].message.content, whole.usage.total_tokens)


class Review(pydantic.BaseModel):
    mood: Literal["good", "bad"]
    stars: int


review = [{"role": "user", "content": "Judge: a lovely film, a little long."}]
found = client.chat.completions.parse(model="smollm2", messages=review, response_format=Review)
assert isinstance(found.choices[0].message.parsed, Review)

tool = openai.pydantic_function_tool(Review, name="judge")
called = client.chat.completions.create(
    model="smollm2", messages=review, tools=[tool], tool_choice="required"
).choices[0]
assert called.finish_reason == "tool_calls", called
Review.model_validate_json(called.message.tool_calls[0].function.arguments)

answer = client.responses.parse(model="smollm2", input="Judge: a lovely film.", text_format=Review)
assert isinstance(answer.output_parsed, Review)
vectors = client.embeddings.create(model="smollm2", input=["a film", "a parcel"])  # in base64, by itself
assert len(vectors.data) == 2 and len(vectors.data[0].embedding) == 576

with openai.OpenAI(base_url=URL, api_key="none", max_retries=0) as once:
    try:
        once.chat.completions.create(model="gpt-4o", messages=asked)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found" and error.param == "model", error
    else:
        raise AssertionError("a model that is not served")
