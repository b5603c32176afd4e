"""The command ``llm``, by its models with an address of their own."""

import os
import pathlib
import tempfile

URL = os.environ.get("TALLOW_BASE_URL", "http://127.0.0.1:8000/v1")
folder = tempfile.mkdtemp()
os.environ["LLM_USER_PATH"] = folder  # a file of the user's own: ~/.config/io.datasette.llm
pathlib.Path(folder, "extra-openai-models.yaml").write_text(
    f"""
- model_id: served
  model_name: smollm2
  api_base: {URL}
  supports_schema: true
  supports_tools: true
"""
)
import llm  # noqa: E402  (reads the file)

model = llm.get_model("served")
print(model.prompt("The capital of France is?", max_tokens=20, stream=False).text())
assert "".join(model.prompt("The capital of France is?", max_tokens=20))
found = model.prompt("Invent a dog", schema=llm.schema_dsl("name, age int"), max_tokens=100).json()
print(found)
