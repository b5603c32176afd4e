"""PydanticAI: a class by a tool, by a schema and by the prompt, and as it comes."""

import asyncio
import os

import pydantic
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")
model = OpenAIChatModel("smollm2", provider=OpenAIProvider(base_url=URL, api_key="none"))


class City(pydantic.BaseModel):
    name: str
    inhabitants: int


settings = {"max_tokens": 100, "temperature": 0.0}
for output in (ToolOutput(City), NativeOutput(City)):
    agent = Agent(model, output_type=output, retries=0, model_settings=settings)
    found = agent.run_sync("Paris has 2 million inhabitants.")
    print(type(output).__name__, found.output, found.usage)
    assert isinstance(found.output, City)


async def stream():
    async with Agent(model, model_settings=settings).run_stream("The capital of France is?") as answer:
        return [piece async for piece in answer.stream_text(delta=True)]


assert len(asyncio.run(stream())) > 3
