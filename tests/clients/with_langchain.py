"""LangChain's ChatOpenAI: whole, streamed, as a class in each of its three ways, with a tool."""

import os

import pydantic
from langchain_openai import ChatOpenAI

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")
model = ChatOpenAI(model="smollm2", base_url=URL, api_key="none", temperature=0, max_tokens=40)
whole = model.invoke("The capital of France is?")
print(whole.content, whole.usage_metadata)
assert "".join(piece.content for piece in model.stream("The capital of France is?")) == whole.content


class City(pydantic.BaseModel):
    """A city."""

    name: str
    inhabitants: int


for method in ("json_schema", "function_calling"):
    found = model.with_structured_output(City, method=method).invoke("Paris has 2 million inhabitants.")
    assert isinstance(found, City), (method, found)
roomy = ChatOpenAI(model="smollm2", base_url=URL, api_key="none", temperature=0, max_tokens=500)
anything = roomy.with_structured_output(None, method="json_mode")
assert isinstance(anything.invoke("Name a city and its country, as short JSON."), dict)

called = model.bind_tools([City], tool_choice="any").invoke("Paris has 2 million inhabitants.")
assert called.tool_calls[0]["name"] == "City", called
