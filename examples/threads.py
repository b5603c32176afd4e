"""Eight threads share one model. The weights are in memory once, and each thread gets what it would get
alone."""

from concurrent.futures import ThreadPoolExecutor

import tallow

model = tallow.Model("smollm2")
countries = ["France", "Italy", "Japan", "Egypt", "Peru", "Spain", "Norway", "Kenya"]


def capital(country: str) -> str:
    question = [{"role": "user", "content": f"What is the capital of {country}? One word."}]
    return str(model.generate(question, max_tokens=16, temperature=0))


with ThreadPoolExecutor(max_workers=8) as threads:
    together = list(threads.map(capital, countries))

for country, answer in zip(countries, together, strict=True):
    print(f"{country}: {answer}")
print("the same alone:", together == [capital(country) for country in countries])
