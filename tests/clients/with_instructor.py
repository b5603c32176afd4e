"""Instructor: a class in each of its modes, and as it comes."""

import os

import instructor
import openai
import pydantic

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")


class City(pydantic.BaseModel):
    name: str
    inhabitants: int


asked = [{"role": "user", "content": "Paris has 2 million inhabitants."}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none"), mode=mode)
    given = {"model": "smollm2", "messages": asked, "response_model": City, "temperature": 0}
    found = client.chat.completions.create(**given, max_retries=0)
    print(mode, found)
    assert isinstance(found, City)
    *_, last = client.chat.completions.create_partial(**given)
    assert isinstance(last.name, str) and isinstance(last.inhabitants, int)
